"""The PyTorch trainer. This module imports no torch: the driver reads the capabilities."""

from trainers.base import Capabilities

CAPABILITIES = Capabilities(
    models=("lenet5", "lenet300", "convnet"),
    granularities=("none", "unstructured", "n_m", "channel"),
    schemes=("none", "dynamic_int8", "static_int8", "qat_int8", "qat_int4"),
    clusters=(0,),
    formats=("onnx", "pt2"),
)
