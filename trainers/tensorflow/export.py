"""The trained model as one `.tflite` file: inputs and outputs as the model has them, whatever is inside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import tensorflow as tf
import tf_keras
from tensorflow.lite.python import schema_py_generated as schema

from tasks.base import TaskInfo
from trainers.base import TrainingError
from trainers.tensorflow.course import Course

CALIBRATION_ROWS = 500
IDENTIFIER = b"TFL3"


def export(model: tf_keras.Model, scheme: str, course: Course) -> Path:
    """Write `model.tflite` into the job's folder; `static_int8` is calibrated on training samples.

    Raises TrainingError when TensorFlow Lite has no operator for a part of the model.
    """
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if scheme != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if scheme == "static_int8":
        converter.representative_dataset = lambda: _calibration(model, course)
    try:
        content = converter.convert()
    except Exception as problem:  # the converter's classes have no common base
        reason = next((line for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
        raise TrainingError(f"export: TensorFlow Lite cannot hold this model: {reason.strip()}") from problem
    file = course.job.folder / "model.tflite"
    file.write_bytes(_named(content, model, course.info))
    return file


def _calibration(model: tf_keras.Model, course: Course) -> Iterator[Any]:
    names = [port.name for port in course.info.inputs]
    for inputs in course.calibration(CALIBRATION_ROWS):
        if len(names) == 1:
            yield [inputs[names[0]]]
        else:
            # By the model's own names: the converter has another order of its own.
            yield {own: inputs[name] for own, name in zip(model.input_names, names, strict=True)}


def _named(content: bytes, model: tf_keras.Model, info: TaskInfo) -> bytes:
    """The file with the ports' names in its signature, without which several inputs or outputs are not told apart."""
    if len(info.inputs) == len(info.outputs) == 1:
        return content
    parsed = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    for signature in parsed.signatureDefs:
        for ends, own, ports in (
            (signature.inputs, model.input_names, info.inputs),
            (signature.outputs, model.output_names, info.outputs),
        ):
            names = dict(zip(own, (port.name for port in ports), strict=True))
            for end in ends:
                end.name = names[end.name.decode()]
    builder = flatbuffers.Builder(len(content))
    builder.Finish(parsed.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())
