"""ONNX Runtime on the CPU: the default runtime of `.onnx` files."""

from __future__ import annotations

import numpy as np
import onnxruntime

from runtimes.base import Artifact, ArtifactError


class Session:
    """A loaded `.onnx` file; `input_shape` is of one input, without the batch."""

    def __init__(self, model: onnxruntime.InferenceSession) -> None:
        if (len(model.get_inputs()), len(model.get_outputs())) != (1, 1):
            raise ValueError("it must have one input and one output")
        (given,), (made,) = model.get_inputs(), model.get_outputs()
        if given.type != "tensor(float)" or not all(isinstance(size, int) for size in given.shape[1:]):
            raise ValueError(f"its input is {given.type} {given.shape}, not float32 with only the batch left open")
        self.input_shape: tuple[int, ...] = tuple(given.shape[1:])
        self._model, self._input, self._outputs = model, given.name, [made.name]

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """float32 [N, ...] -> float32 [N, classes]."""
        scores: np.ndarray = self._model.run(self._outputs, {self._input: inputs})[0]
        return scores


def load(artifact: Artifact, threads: int, batch: int | None = None) -> Session:
    """The file, ready to predict on `threads` CPU threads; raises ArtifactError when it does not load.

    `batch` changes nothing: fixing the batch gained nothing on LeNet-5 (experiments/LOG.md).
    """
    content = artifact.read()
    try:
        return Session(onnxruntime.InferenceSession(content, _options(threads), providers=["CPUExecutionProvider"]))
    except Exception as problem:  # its exception classes have no common base
        reason = str(problem).strip().splitlines()[0]
        raise ArtifactError(f"{artifact.path}: ONNX Runtime {version()} cannot load it: {reason}") from None


def version() -> str:
    """The library's version."""
    return str(onnxruntime.__version__)


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # By default idle pool threads go on spinning after a run and would slow down whatever is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Without VNNI (AVX2 machines) sums of uint8 times int8 saturate and labels change; with VNNI this does nothing.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options
