"""The trained model as one `.tflite` file: float32 images in, float32 logits out, whatever is inside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras

from tasks.mnist.data import normalized
from trainers.base import Job
from trainers.tensorflow.train import dataset

CALIBRATION_IMAGES = 500


def export(model: tf_keras.Model, scheme: str, job: Job) -> Path:
    """Write `model.tflite` into the job's folder; `static_int8` is calibrated on the first training images."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if scheme != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if scheme == "static_int8":
        converter.representative_dataset = lambda: _calibration(job)
    file = job.folder / "model.tflite"
    file.write_bytes(converter.convert())
    return file


def _calibration(job: Job) -> Iterator[list[np.ndarray]]:
    images = normalized(dataset(job).train.images[:CALIBRATION_IMAGES], "NHWC")
    for image in images:
        yield [image[None]]
