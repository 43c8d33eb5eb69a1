"""A picked model as MLflow serves it: preprocessing, runtime and labels in one file that stands alone.

MLflow copies this file beside the model ("models from code"), so it imports nothing of Pare: numpy, pandas, mlflow and
the runtime are all it needs. The input is float32 because MLflow casts a request to the signature's type unasked: as
uint8 every pixel scaled to 0..1 would become black, and be answered.
"""

import json
import platform
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST


class PickedModel(mlflow.pyfunc.PythonModel):
    """Images float32 [N, 28, 28], grey values from 0 to 255 -> a row each: `label`, and its softmax `probability`."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        """Load the file on the runtime its suffix names."""
        if (server := sys.modules.get("mlflow.pyfunc.scoring_server")) is not None:
            _answer_clearly(server)
        path = Path(context.artifacts["model"])
        self.about = json.loads(Path(context.artifacts["about"]).read_text())
        self.logits = _onnx(path) if path.suffix == ".onnx" else _tflite(path)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Labels of the images; raises MlflowException, which is served as a 400, when they are no grey images."""
        images = np.asarray(model_input, np.float32)
        height, width = self.about["shape"]
        if images.ndim != 3 or images.shape[1:] != (height, width) or not len(images):
            raise _invalid(f"inputs: shape {list(images.shape)} is not valid; send [N, {height}, {width}]")
        if not ((images >= 0) & (images <= 255) & (images == np.floor(images))).all():
            low, high = float(np.min(images)), float(np.max(images))
            raise _invalid(
                f"inputs: pixels from {low:g} to {high:g} are not valid; send whole grey values from 0 to 255, "
                "not scaled: the model does that"
            )
        pixels = (images / 255.0 - self.about["mean"]) / self.about["std"]
        logits = self.logits(pixels[:, None] if self.about["layout"] == "NCHW" else pixels[..., None])
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        return pd.DataFrame({"label": scores.argmax(1).astype(np.int64), "probability": scores.max(1).astype(float)})


def _invalid(message):  # type: ignore[no-untyped-def]
    return MlflowException(message, error_code=BAD_REQUEST)


def _answer_clearly(server):  # type: ignore[no-untyped-def]
    """Make MLflow's server answer every request it cannot read with a short 400.

    By itself it repeats the request in the answer (350 MB for 50 MB of noise), and gives a 500 where the type of the
    content is missing or JSON is nested too deeply. This model's requirements pin the version that is patched here.
    """
    answer = server.invocations

    def invocations(data, content_type, model, input_schema):  # type: ignore[no-untyped-def]
        try:
            return answer(data, content_type or "application/json", model, input_schema)
        except MlflowException as error:
            text = str(error.message)
            if text.startswith("Failed to predict data"):
                text = text.rpartition("Error: ")[2]  # what stands before repeats the images
            error.message = text if len(text) <= 1000 else f"{text[:300]} ... ({len(text)} characters)"
            raise
        except Exception as error:
            raise _invalid(f"The request cannot be read: {type(error).__name__}: {str(error)[:300]}") from None

    server.invocations = invocations


def _onnx(path):  # type: ignore[no-untyped-def]
    import onnxruntime

    def logits_of(options):  # type: ignore[no-untyped-def]
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        session.run(
            None, {given.name: np.zeros([size if isinstance(size, int) else 1 for size in given.shape], np.float32)}
        )
        return lambda pixels: session.run(None, {given.name: np.ascontiguousarray(pixels, np.float32)})[0]

    options = onnxruntime.SessionOptions()
    if _saturates_int8():
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return logits_of(options)
    except (
        Exception
    ):  # the option refuses files in which two DequantizeLinear share a zero point, some at the first run
        return logits_of(onnxruntime.SessionOptions())


def _saturates_int8():  # type: ignore[no-untyped-def]
    """As runtimes/cpu.py: whether int8 sums overflow, on x86 without VNNI."""
    cpuinfo = Path("/proc/cpuinfo")
    return platform.machine() in ("x86_64", "AMD64") and not (cpuinfo.exists() and "vnni" in cpuinfo.read_text())


def _tflite(path):  # type: ignore[no-untyped-def]
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    given, gives = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def logits(pixels):  # type: ignore[no-untyped-def]
        interpreter.resize_tensor_input(given, pixels.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given, np.ascontiguousarray(pixels, np.float32))
        interpreter.invoke()
        return interpreter.get_tensor(gives).copy()

    return logits


mlflow.models.set_model(PickedModel())
