"""The TensorFlow trainer, on tf_keras and TF-MOT. Imports no TensorFlow: the driver reads the capabilities."""

from trainers.base import Capabilities

CAPABILITIES = Capabilities(
    granularities=("none", "unstructured", "block", "n_m", "channel"),
    schemes=("none", "float16", "dynamic_int8", "static_int8", "qat_int8"),
    clusters=(0, 8, 16, 32),
    formats=("tflite",),
    tuning=("weight_decay", "label_smoothing", "trainable"),
)
