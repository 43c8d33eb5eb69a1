"""One file per model, checked against it: ONNX with named inputs, outputs and free axes, or torch's own pt2."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from tasks.base import Port, TaskError
from trainers.onnx.graph import described
from trainers.pytorch import exporter
from trainers.pytorch.capture import CaptureError, Example, UnknownOperatorError, capture, outputs_of, ports_of

FLOAT_ERROR, INTEGER_ERROR = 1e-3, 0.2  # relative, root of the mean square: what a right file may differ by
INTEGER = {"QuantizeLinear", "DynamicQuantizeLinear"}
# Ways to a file beside torch.export: the operators of one run, or the network's code compiled.
TRACED, COMPILED = "torchscript", "torchscript-compiled"
TORCHSCRIPT = {TRACED: "TorchScript, which recorded one run", COMPILED: "TorchScript's compiler"}


class ExportError(TaskError):
    """A file that could not be written, or that is not what it was made of."""


def export(
    model: nn.Module,
    example: Example,
    path: Path,
    about: Mapping[str, str],
    inputs: Sequence[Port] = (),
    outputs: Sequence[Port] = (),
) -> str:
    """Write `model`, in eval mode, to `path`, whose suffix (.onnx or .pt2) is the format; the bytes are reproducible.

    `example`: the inputs by position, two rows or more. `about`: what the file says of itself (metadata_props).
    `inputs`, `outputs`: names and free axes; without them the first axis is free. Returns the way that the file was
    made. Raises CaptureError for a network that no file can hold, ExportError where the file does not say what the
    model says, at several batch sizes and lengths.
    """
    example = tuple(each.cpu().contiguous() for each in example)
    with torch.no_grad():
        answers = outputs_of(model(*example))
    inputs, outputs = inputs or ports_of(example, "input"), outputs or ports_of(answers, "output")
    if path.suffix == ".pt2":
        program = capture(model, example, inputs)
        check(program_runner(program), model, example, inputs, outputs)
        torch.export.save(program, path, extra_files=dict(about))
        return "torch.export"
    made, way, failed = _made(model, example, inputs, outputs)
    content = described(made, about, inputs, outputs).SerializeToString()
    file_runner(content, inputs, outputs)(example)
    integer = any(node.op_type in INTEGER for node in made.graph.node)
    # Of an integer file what is written is checked, not the kernels: in a deep network each rounding may tip the next.
    run = file_runner(content, inputs, outputs, optimized=not integer)
    try:
        for given in (example, *(_other_values(model, example) if failed else ())):
            check(run, model, given, inputs, outputs, INTEGER_ERROR if integer else FLOAT_ERROR)
    except ExportError as wrong:
        if failed is None:
            raise
        reason, place = _why(failed)
        raise ExportError(
            f"{reason.rstrip('.')}; by {TORCHSCRIPT[way]}, it is another network: {wrong.message}", "export", place
        ) from failed
    path.write_bytes(content)
    return way


def _made(
    model: nn.Module, example: Example, inputs: Sequence[Port], outputs: Sequence[Port]
) -> tuple[onnx.ModelProto, str, Exception | None]:
    """The ONNX model by the first exporter that knows the network, its name, and why torch.export did not."""
    try:
        return *exporter.to_onnx(capture(model, example, inputs), inputs, outputs), None
    except Exception as problem:  # the exporter's own classes have no common base
        failed = problem
    reason, place = _why(failed)
    # Of a network that decides by its data one run holds for that run alone: it is compiled or has no file.
    decides = isinstance(failed, CaptureError) and not isinstance(failed, UnknownOperatorError)
    ways = {COMPILED: exporter.scripted} if decides else {TRACED: exporter.traced, COMPILED: exporter.scripted}
    for way, make in ways.items():
        try:
            return make(model, example, inputs, outputs), way, failed
        except Exception as problem:
            last = _first_line(problem).rstrip(".:")
    if decides:
        raise CaptureError(f"{reason}; nor can TorchScript compile it: {last}", "export", place) from failed
    raise ExportError(f"none of torch's exporters knows the network: {reason}", "export", place) from failed


def _why(problem: Exception) -> tuple[str, str]:
    """The reason, and the user's line where it is known."""
    return (problem.message, problem.place) if isinstance(problem, TaskError) else (_first_line(problem), "")


Run = Callable[[Example], Sequence[np.ndarray]]


def file_runner(content: bytes, inputs: Sequence[Port], outputs: Sequence[Port], optimized: bool = True) -> Run:
    """The ONNX model `content` on ONNX Runtime, one thread. Raises ExportError when it does not load."""
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # its exception classes have no common base
        raise ExportError(
            f"ONNX Runtime cannot load the file that was made: {_first_line(problem)}", "export"
        ) from None
    known = {each.name for each in session.get_inputs()}  # one that the model ignores is not among them

    def run(given: Example) -> Sequence[np.ndarray]:
        feeds = {port.name: each.numpy() for port, each in zip(inputs, given, strict=True) if port.name in known}
        found: Sequence[np.ndarray] = session.run([port.name for port in outputs], feeds)
        return found

    return run


def program_runner(program: torch.export.ExportedProgram) -> Run:
    """The captured program in torch."""
    module = program.module()
    return lambda given: [each.detach().numpy() for each in outputs_of(module(*given))]


def check(
    run: Run,
    model: nn.Module,
    example: Example,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    allowed: float = FLOAT_ERROR,
) -> None:
    """Raise ExportError when `run` does not say what `model` says, at several sizes of every free axis.

    `allowed`: the relative error that an output may have. Sizes that the model itself refuses are left out.
    """
    for given in (example, *_other_sizes(example, inputs)):
        try:
            with torch.no_grad():
                wanted = outputs_of(model(*given))
        except Exception:
            if given is example:
                raise
            continue
        sizes = ", ".join(f"{port.name} {tuple(each.shape)}" for port, each in zip(inputs, given, strict=True))
        try:
            found = run(given)
        except Exception as problem:
            reason = _first_line(problem)
            raise ExportError(f"the file fails at {sizes}, where the model runs: {reason}", "export") from None
        for port, said, exact in zip(outputs, found, wanted, strict=True):
            error = relative_error(np.asarray(said), exact.numpy())
            if not error <= allowed:
                raise ExportError(
                    f"the file's output {port.name} is not the model's at {sizes}: relative error {error:.2g}, "
                    f"at most {allowed:g} is rounding",
                    "export",
                )


def _first_line(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


def _other_sizes(example: Example, inputs: Sequence[Port]) -> Iterator[Example]:
    """The example with one row, with three rows, and with each further free axis halved."""
    names = [name for port in inputs for name in port.shape if isinstance(name, str)]
    for name in dict.fromkeys(names):
        size = next(
            each.shape[port.shape.index(name)] for each, port in zip(example, inputs, strict=True) if name in port.shape
        )
        for length in (1, size + 1) if name == names[0] else (max(2, size // 2),):
            yield tuple(
                _resized(each, port.shape.index(name), length) if name in port.shape else each
                for each, port in zip(example, inputs, strict=True)
            )


def _other_values(model: nn.Module, example: Example) -> Iterator[Example]:
    """The example with other values: a file that holds what one run decided by its data says something else then."""
    for factor in (-3.0, 0.1):
        given = tuple(each * factor if each.is_floating_point() else each.flip(0) for each in example)
        with contextlib.suppress(Exception), torch.no_grad():  # values that the model itself refuses are left out
            model(*given)
            yield given


def _resized(tensor: torch.Tensor, axis: int, length: int) -> torch.Tensor:
    rows = torch.arange(length) % tensor.shape[axis]
    return tensor.index_select(axis, rows).contiguous()


def relative_error(said: np.ndarray, exact: np.ndarray) -> float:
    """Root mean square of the difference over that of `exact`; inf for other shapes or values not finite alike."""
    if said.shape != exact.shape:
        return np.inf
    a, b = said.astype(np.float64), exact.astype(np.float64)
    same = np.isfinite(b)
    if not np.array_equal(same, np.isfinite(a)):
        return np.inf
    scale = np.sqrt(np.mean(b[same] ** 2)) if same.any() else 0.0
    error = np.sqrt(np.mean((a[same] - b[same]) ** 2)) if same.any() else 0.0
    return float(error / scale) if scale else float(error)
