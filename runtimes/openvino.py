"""OpenVINO on the CPU, for `.onnx` files: an extra, `.venv/bin/pip install -e '.[openvino]' -c constraints.txt`."""

from __future__ import annotations

import numpy as np

from runtimes.base import Artifact, ArtifactError

try:
    import openvino
except ImportError:
    raise ImportError(
        "runtime: 'openvino' is not installed; in a checkout run "
        ".venv/bin/pip install -e '.[openvino]' -c constraints.txt"
    ) from None


class Session:
    """A loaded `.onnx` file; `input_shape` is of one input, without the batch."""

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        given = compiled.input()
        if given.element_type != openvino.Type.f32 or any(size.is_dynamic for size in list(given.partial_shape)[1:]):
            raise ValueError(
                f"its input is {given.element_type} {given.partial_shape}, not f32 with only the batch open"
            )
        self.input_shape: tuple[int, ...] = tuple(size.get_length() for size in list(given.partial_shape)[1:])
        self._output = compiled.output()
        self._request = compiled.create_infer_request()

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """float32 [N, ...] -> float32 [N, classes]."""
        self._request.infer([inputs], share_inputs=True, share_outputs=True)
        # The request's output memory is overwritten by its next call.
        scores: np.ndarray = self._request.get_output_tensor(0).data.copy()
        return scores


def load(artifact: Artifact, threads: int, batch: int | None = None) -> Session:
    """The file, ready to predict on `threads` CPU threads; raises ArtifactError when it does not load.

    `batch` fixes the batch size. Weights and activations stay float32: by default OpenVINO turns
    them into bfloat16 on CPUs that have it, which would not be the file's arithmetic.
    """
    content = artifact.read()
    try:
        core = openvino.Core()
        model = core.read_model(content)
        if batch is not None:
            model.reshape([batch, *list(model.input().partial_shape)[1:]])
        return Session(core.compile_model(model, "CPU", _options(threads)))
    except Exception as problem:  # its errors are plain RuntimeErrors with the reason in the last lines
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[-1]
        raise ArtifactError(f"{artifact.path}: OpenVINO {version()} cannot load it: {reason}") from None


def version() -> str:
    """The library's version."""
    return str(openvino.__version__)


def _options(threads: int) -> dict[str, object]:
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
