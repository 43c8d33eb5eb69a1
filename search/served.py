"""A picked model as MLflow serves it: preprocessing, runtime and labels in one file that stands alone.

MLflow copies this file beside the model ("models from code"), so it imports nothing of Pare: numpy, pandas, mlflow and
the runtime are all it needs.
"""

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd


class PickedModel(mlflow.pyfunc.PythonModel):
    """uint8 images [N, 28, 28] -> one row per image: `label`, and its softmax `probability`."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        """Load the file on the runtime its suffix names."""
        path = Path(context.artifacts["model"])
        self.about = json.loads(Path(context.artifacts["about"]).read_text())
        self.logits = _onnx(path) if path.suffix == ".onnx" else _tflite(path)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Labels of the images; raises ValueError naming shape or dtype when the input is no stack of images."""
        images = np.asarray(model_input)
        height, width = self.about["shape"]
        if images.ndim != 3 or images.shape[1:] != (height, width):
            raise ValueError(f"inputs: shape {images.shape} is not valid; send [N, {height}, {width}]")
        pixels = (images.astype(np.float32) / 255.0 - self.about["mean"]) / self.about["std"]
        logits = self.logits(pixels[:, None] if self.about["layout"] == "NCHW" else pixels[..., None])
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        return pd.DataFrame({"label": scores.argmax(1).astype(np.int64), "probability": scores.max(1).astype(float)})


def _onnx(path):  # type: ignore[no-untyped-def]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: np.ascontiguousarray(pixels, np.float32)})[0]


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
