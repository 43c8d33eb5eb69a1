"""OpenVINO on the CPU, for `.onnx` files: an extra, `.venv/bin/pip install -e '.[openvino]' -c constraints.txt`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from runtimes.base import Artifact, ArtifactError
from runtimes.ports import BATCH, check, free_axes
from runtimes.profile import OperatorTime, repeat, typical_ms
from runtimes.signal_stack import signal_stack_kept
from tasks.base import Arrays, Port

try:
    import openvino
except ImportError:
    raise ImportError(
        "runtime: 'openvino' is not installed; in a checkout run "
        ".venv/bin/pip install -e '.[openvino]' -c constraints.txt"
    ) from None


class Session:
    """A loaded `.onnx` file."""

    def __init__(self, compiled: openvino.CompiledModel, artifact: Artifact) -> None:
        self.inputs = tuple(_port(end) for end in compiled.inputs)
        self.outputs = tuple(_port(end) for end in compiled.outputs)
        self._compiled, self._path = compiled, artifact.path
        self._request = compiled.create_infer_request()

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Every output by name; raises ValueError for inputs that are not those of the ports."""
        check(self.inputs, inputs)
        try:
            self._share(self._request, inputs)
            self._request.infer()
        except Exception as problem:
            raise ArtifactError(f"{self._path}: OpenVINO {version()} cannot run it: {_reason(problem)}") from None
        # The request's output memory is overwritten by its next call.
        return {port.name: self._request.get_output_tensor(i).data.copy() for i, port in enumerate(self.outputs)}

    def bind(self, inputs: Arrays) -> Callable[[], None]:
        """A call that finds its inputs in memory that was set once, and copies each result.

        `infer([...])` would convert the inputs in Python at every call: 45 µs (experiments/LOG.md).
        """
        check(self.inputs, inputs)
        request = self._compiled.create_infer_request()
        self._share(request, inputs)
        infer, result, outputs = request.infer, request.get_output_tensor, range(len(self.outputs))

        def call() -> None:
            infer()
            for index in outputs:
                result(index).data.copy()

        return call

    def profiled(self) -> list[openvino.ProfilingInfo]:
        """What each operator of the last run took, where the options asked for it."""
        return [each for each in self._request.get_profiling_info() if each.status == each.Status.EXECUTED]

    def _share(self, request: openvino.InferRequest, inputs: Arrays) -> None:
        for index, port in enumerate(self.inputs):
            array = np.require(inputs[port.name], requirements=["C", "W"])  # it shares no other memory
            request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))


def load(artifact: Artifact, threads: int, batch: int | None = None) -> Session:
    """The file, ready to run on `threads` CPU threads; raises ArtifactError when it does not load.

    `batch` fixes the batch size. Weights and activations stay float32: by default OpenVINO turns
    them into bfloat16 on CPUs that have it, which would not be the file's arithmetic.
    """
    return _load(artifact, batch, _options(threads))


def _load(artifact: Artifact, batch: int | None, options: dict[str, object]) -> Session:
    content = artifact.read()
    try:
        core = openvino.Core()
        model = core.read_model(content)
        if batch is not None:
            model.reshape({end: _fixed(end, batch) for end in model.inputs})
        with signal_stack_kept():
            return Session(core.compile_model(model, "CPU", options), artifact)
    except Exception as problem:  # its errors are plain RuntimeErrors with the reason in the last lines
        raise ArtifactError(f"{artifact.path}: OpenVINO {version()} cannot load it: {_reason(problem)}") from None


def operators(artifact: Artifact, inputs: Arrays, threads: int, runs: int, folder: Path) -> list[OperatorTime]:
    """The operators that OpenVINO runs, from its profiler. Shares are not known yet."""
    rows = next((len(array) for array in inputs.values() if array.ndim), None)
    session = _load(artifact, rows, {**_options(threads), "PERF_COUNT": True})
    taken: dict[tuple[str, str, str], list[float]] = {}

    def call() -> None:
        session.run(inputs)
        for each in session.profiled():
            taken.setdefault((each.node_name, each.node_type, each.exec_type), []).append(
                each.real_time.total_seconds() * 1000
            )

    session.run(inputs)
    repeat(call, runs)
    return [
        OperatorTime(name, kind, kernel, typical_ms(ms), float("nan"), kernel.lower().endswith(("i8", "u8")))
        for (name, kind, kernel), ms in taken.items()
    ]


def version() -> str:
    """The library's version."""
    return str(openvino.__version__)


def _fixed(end: openvino.Output, batch: int) -> openvino.PartialShape:
    """The input's shape with its free first axis fixed."""
    port, sizes = _port(end), list(end.partial_shape)
    return openvino.PartialShape([batch, *sizes[1:]] if port.shape[:1] == (BATCH,) else sizes)


def _port(end: openvino.Output) -> Port:
    if end.partial_shape.rank.is_dynamic:
        raise ValueError(f"{end.any_name!r} has a free number of axes")
    sizes = [None if size.is_dynamic else size.get_length() for size in end.partial_shape]
    return Port(end.any_name, free_axes(end.any_name, sizes), end.element_type.to_dtype().name)


def _reason(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[-1]


def _options(threads: int) -> dict[str, object]:
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
