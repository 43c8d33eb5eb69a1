"""ONNX Runtime on the CPU: the default runtime of `.onnx` files."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from runtimes import cpu, onnx_operators
from runtimes.base import Artifact, ArtifactError
from runtimes.ports import check, free_axes
from runtimes.profile import OperatorTime, repeat
from tasks.base import Arrays, Port

log = logging.getLogger(__name__)

# Makes int8 weights uint8, for x86 CPUs without VNNI: there sums of uint8 times int8 overflow, and labels change.
# With VNNI they do not, and the option makes int8 slower (experiments/LOG.md). It refuses files in which two
# DequantizeLinear share a zero point or a weight; some without zero points fail at the first run.
WIDENED = "session.x64quantprecision"

# As ONNX Runtime names the element types -> NumPy's names, of those that NumPy has.
DTYPES = {"float": "float32", "double": "float64", "float16": "float16", "bool": "bool"}
DTYPES |= {f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


class Session:
    """A loaded `.onnx` file. `plain`: loads it without WIDENED, where `model` was loaded with it."""

    def __init__(
        self,
        model: onnxruntime.InferenceSession,
        artifact: Artifact,
        plain: Callable[[], onnxruntime.InferenceSession] | None = None,
    ) -> None:
        self.inputs = tuple(_port(node) for node in model.get_inputs())
        self.outputs = tuple(_port(node) for node in model.get_outputs())
        self._model, self._path, self._plain = model, artifact.path, plain
        self._names = [port.name for port in self.outputs]

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Every output by name; raises ValueError for inputs that are not those of the ports."""
        check(self.inputs, inputs)
        try:
            made = self._made(inputs)
        except Exception as problem:  # its exception classes have no common base
            raise ArtifactError(f"{self._path}: ONNX Runtime {version()} cannot run it: {_reason(problem)}") from None
        return dict(zip(self._names, made, strict=True))

    def bind(self, inputs: Arrays) -> Callable[[], None]:
        """A call as an application in Python makes it: new results each time (experiments/LOG.md on I/O binding)."""
        check(self.inputs, inputs)
        if self._plain:
            self.run(inputs)  # what WIDENED makes fail is loaded without it now
        run, names, feed = self._model.run, self._names, dict(inputs)

        def call() -> None:
            run(names, feed)

        return call

    def end_profiling(self) -> str:
        """The path of the profile, where the options asked for one."""
        return str(self._model.end_profiling())

    def _made(self, inputs: Arrays) -> list[np.ndarray]:
        try:
            return self._model.run(self._names, inputs)
        except Exception as problem:
            if self._plain is None:
                raise
            model = self._plain()
            made: list[np.ndarray] = model.run(self._names, inputs)
            self._model, self._plain = model, None
            _say_not_widened(self._path, _reason(problem))
            return made


def load(artifact: Artifact, threads: int, batch: int | None = None) -> Session:
    """The file, ready to run on `threads` CPU threads; raises ArtifactError when it does not load.

    `batch` changes nothing: fixing the batch gained nothing on LeNet-5 (experiments/LOG.md).
    """
    return _load(artifact, functools.partial(_options, threads))


def operators(artifact: Artifact, inputs: Arrays, threads: int, runs: int, folder: Path) -> list[OperatorTime]:
    """The operators that ONNX Runtime runs, from its profiler; `folder` is for its files. Shares are not known yet."""
    optimized = folder / "optimized.onnx"

    def options(widened: bool) -> onnxruntime.SessionOptions:
        made = _options(threads, widened)
        made.enable_profiling, made.profile_file_prefix = True, str(folder / "profile")
        made.optimized_model_filepath = str(optimized)
        return made

    session = _load(artifact, options)
    repeat(lambda: session.run(inputs), runs + 1)
    return onnx_operators.times(Path(session.end_profiling()), optimized)


def _load(artifact: Artifact, options: Callable[[bool], onnxruntime.SessionOptions]) -> Session:
    content = artifact.read()

    def model(widened: bool) -> onnxruntime.InferenceSession:
        # The fallback would load what failed once more, and announce it on standard output.
        return onnxruntime.InferenceSession(
            content, options(widened), providers=["CPUExecutionProvider"], enable_fallback=False
        )

    try:
        if not cpu.saturates_int8():
            return Session(model(widened=False), artifact)
        try:
            return Session(model(widened=True), artifact, lambda: model(widened=False))
        except Exception as problem:
            session = Session(model(widened=False), artifact)
            _say_not_widened(artifact.path, _reason(problem))
            return session
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


@functools.cache
def _say_not_widened(path: Path, reason: str) -> None:
    """Once per file: each is loaded many times."""
    log.warning(
        "%s: ONNX Runtime refuses it with %s (%s); loaded without: this CPU has no VNNI, so sums of int8 products may "
        "overflow and outputs differ from those on other CPUs; give every DequantizeLinear a zero point of its own",
        *(path, WIDENED, reason),
    )


def _options(threads: int, widened: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # errors are raised
    # By default idle pool threads keep spinning after a run and would slow down whatever is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if widened:
        options.add_session_config_entry(WIDENED, "1")
    return options
