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
    """Grey images float32 [N, H, W], values from 0 to 255 -> a row each: `label`, and its softmax `probability`.

    A model of anything else takes its inputs by name, prepared as for training, and gives its outputs by name.
    """

    # Else MLflow warns that type hints are missing: the signature is stored with the model.
    _skip_type_hint_validation = True

    def load_context(self, context):  # type: ignore[no-untyped-def]
        """Load the file on the runtime its suffix names."""
        if (server := sys.modules.get("mlflow.pyfunc.scoring_server")) is not None:
            _answer_clearly(server)
        path = Path(context.artifacts["model"])
        self.about = json.loads(Path(context.artifacts["about"]).read_text())
        self.run = _open(path, int(self.about.get("threads", 1)))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Labels, or outputs; raises MlflowException, which is served as a 400, for inputs that are not valid."""
        if "ports" in self.about:
            return self.outputs(model_input)
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
        (logits,) = self.run([pixels[:, None] if self.about["layout"] == "NCHW" else pixels[..., None]])
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        return pd.DataFrame({"label": scores.argmax(1).astype(np.int64), "probability": scores.max(1).astype(float)})

    def outputs(self, given):  # type: ignore[no-untyped-def]
        """`{name: array}` of the outputs, from `{name: array}` of the inputs, or the array of the only one."""
        ports = self.about["ports"]
        if not isinstance(given, dict):
            given = {ports["inputs"][0]["name"]: given}
        names = [port["name"] for port in ports["inputs"]]
        if set(given) != set(names):
            raise _invalid(f"inputs: {', '.join(given)} are not valid; send {', '.join(names)}")
        arrays = []
        for port in ports["inputs"]:
            array = np.asarray(given[port["name"]], port["dtype"])
            if array.ndim != len(port["shape"]):
                raise _invalid(f"inputs: {port['name']} has {array.ndim} axes; send {port['shape']}")
            if self.about["layout"] == "NHWC" and port["layout"] == "NCHW":
                array = np.moveaxis(array, 1, -1)
            arrays.append(np.ascontiguousarray(array))
        try:
            found = self.run(arrays)
        except Exception as error:
            raise _invalid(f"inputs: the model cannot take them: {str(error)[:300]}") from None
        return {port["name"]: array for port, array in zip(ports["outputs"], found, strict=True)}


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


def _open(path, threads):  # type: ignore[no-untyped-def]
    """The file on as many threads as its latency was measured with."""
    return _onnx(path, threads) if path.suffix == ".onnx" else _tflite(path, threads)


def _onnx(path, threads):  # type: ignore[no-untyped-def]
    import onnxruntime

    def runner(options):  # type: ignore[no-untyped-def]
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        given = session.get_inputs()
        kinds = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
        types = [kinds.get(port.type, np.float32) for port in given]
        sizes = [[size if isinstance(size, int) else 1 for size in port.shape] for port in given]
        names = [port.name for port in given]
        session.run(None, {n: np.zeros(size, kind) for n, size, kind in zip(names, sizes, types, strict=True)})
        return lambda arrays: session.run(
            None, {n: np.ascontiguousarray(a, kind) for n, a, kind in zip(names, arrays, types, strict=True)}
        )

    def settings(saturate):  # type: ignore[no-untyped-def]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if saturate:
            options.add_session_config_entry("session.x64quantprecision", "1")
        return options

    try:
        return runner(settings(_saturates_int8()))
    except Exception:
        # The option refuses files in which two DequantizeLinear share a zero point, some at the first run.
        return runner(settings(False))


def _saturates_int8():  # type: ignore[no-untyped-def]
    """As runtimes/cpu.py: whether int8 sums overflow, on x86 without VNNI."""
    cpuinfo = Path("/proc/cpuinfo")
    return platform.machine() in ("x86_64", "AMD64") and not (cpuinfo.exists() and "vnni" in cpuinfo.read_text())


def _tflite(path, threads):  # type: ignore[no-untyped-def]
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    given, gives = interpreter.get_input_details(), interpreter.get_output_details()

    def run(arrays):  # type: ignore[no-untyped-def]
        for port, array in zip(given, arrays, strict=True):
            interpreter.resize_tensor_input(port["index"], array.shape)
        interpreter.allocate_tensors()
        for port, array in zip(given, arrays, strict=True):
            interpreter.set_tensor(port["index"], np.ascontiguousarray(array, port["dtype"]))
        interpreter.invoke()
        return [interpreter.get_tensor(port["index"]).copy() for port in gives]

    return run


mlflow.models.set_model(PickedModel())
