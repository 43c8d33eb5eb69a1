"""ONNX Runtime on the CPU: the default runtime of `.onnx` files."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime

from runtimes.base import Artifact, ArtifactError
from runtimes.ports import check, free_axes
from tasks.base import Arrays, Port

# As ONNX Runtime names the element types -> NumPy's names, of those that NumPy has.
DTYPES = {"float": "float32", "double": "float64", "float16": "float16", "bool": "bool"}
DTYPES |= {f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


class Session:
    """A loaded `.onnx` file."""

    def __init__(self, model: onnxruntime.InferenceSession, artifact: Artifact) -> None:
        self.inputs = tuple(_port(node) for node in model.get_inputs())
        self.outputs = tuple(_port(node) for node in model.get_outputs())
        self._model, self._path = model, artifact.path
        self._names = [port.name for port in self.outputs]

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Every output by name; raises ValueError for inputs that are not those of the ports."""
        check(self.inputs, inputs)
        try:
            return dict(zip(self._names, self._model.run(self._names, inputs), strict=True))
        except Exception as problem:  # its exception classes have no common base
            raise ArtifactError(f"{self._path}: ONNX Runtime {version()} cannot run it: {_reason(problem)}") from None

    def bind(self, inputs: Arrays) -> Callable[[], None]:
        """A call as an application in Python makes it: new results each time (experiments/LOG.md on I/O binding)."""
        check(self.inputs, inputs)
        run, names, feed = self._model.run, self._names, dict(inputs)

        def call() -> None:
            run(names, feed)

        return call


def load(artifact: Artifact, threads: int, batch: int | None = None) -> Session:
    """The file, ready to run on `threads` CPU threads; raises ArtifactError when it does not load.

    `batch` changes nothing: fixing the batch gained nothing on LeNet-5 (experiments/LOG.md).
    """
    content = artifact.read()
    try:
        model = onnxruntime.InferenceSession(content, _options(threads), providers=["CPUExecutionProvider"])
        return Session(model, artifact)
    except Exception as problem:  # its exception classes have no common base
        raise ArtifactError(f"{artifact.path}: ONNX Runtime {version()} cannot load it: {_reason(problem)}") from None


def version() -> str:
    """The library's version."""
    return str(onnxruntime.__version__)


def _port(node: onnxruntime.NodeArg) -> Port:
    dtype = DTYPES.get(node.type.removeprefix("tensor(").removesuffix(")"))
    if dtype is None:
        raise ValueError(f"{node.name!r} is a {node.type}; it must be a tensor of {', '.join(DTYPES)}")
    shape = free_axes(node.name, node.shape)
    return Port(node.name, shape, dtype)


def _reason(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


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
