"""A network as a captured program: torch.export with the free axes that the task names, and errors in its user's terms.

The network takes tensors by position and returns one tensor or a tuple (trainers/pytorch/program.py).
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, has_free_symbols

from tasks.base import Port, TaskError
from trainers.pytorch.lowering import plain, without_mutation

Example = tuple[torch.Tensor, ...]
BATCH = "batch"
TORCH, OURS = str(Path(torch.__file__).parent), str(Path(__file__).parent)


class CaptureError(TaskError):
    """A network that no file can hold as it stands: a free axis is fixed, or its data decide what is computed."""


class UnknownOperatorError(CaptureError):
    """A network that torch.export does not know; another exporter may."""


def ports_of(tensors: Example, name: str) -> tuple[Port, ...]:
    """Ports for tensors that no task describes: `name`, or `name_0`, `name_1` ..., each with its first axis free."""
    names = [name] if len(tensors) == 1 else [f"{name}_{i}" for i in range(len(tensors))]
    return tuple(
        Port(name, (BATCH, *tensor.shape[1:]) if tensor.dim() else (), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in zip(names, tensors, strict=True)
    )


def outputs_of(answer: object) -> Example:
    """What a network returned, one tensor or a sequence of them, as a tuple. Raises CaptureError for anything else."""
    found = tuple(answer) if isinstance(answer, (tuple, list)) else (answer,)
    if not found or not all(isinstance(each, torch.Tensor) for each in found):
        kinds = ", ".join(type(each).__name__ for each in found) or "nothing"
        raise CaptureError(f"the network must return a tensor or a tuple of tensors; it returned {kinds}", "export")
    return found


def capture(model: nn.Module, example: Example, inputs: Sequence[Port] = ()) -> ExportedProgram:
    """The program of `model`, which is in eval mode, with every axis free that the ports name by a text.

    `example`: the inputs by position, with two rows or more and no free axis of length 1 (torch would take a length of
    1 for a constant). `inputs`: their ports; without them the first axis of each is free. Raises CaptureError where the
    network's own code fixes a free axis or decides by the data's values, naming the line.
    """
    inputs = inputs or ports_of(example, "input")
    free = tuple(
        {axis: Dim.DYNAMIC for axis, size in enumerate(port.shape) if isinstance(size, str)} for port in inputs
    )
    assert len(free) == len(example), f"{len(example)} inputs for {len(free)} ports"
    try:
        with _quietly():
            program = torch.export.export(model, example, dynamic_shapes=(free,) if _gathers(model) else free)
            plain(program.graph)
            return program if without_mutation(program.graph) else program.run_decompositions({})
    except GuardOnDataDependentSymNode as problem:
        place, code = user_line(problem)
        raise CaptureError(
            f"the network decides by the values of its data{f': `{code}`' if code else ''}; a captured program "
            "holds one fixed sequence of operators, so write it with torch.where or torch.cond, or compress the part "
            "without it",
            "export",
            place,
        ) from problem
    except torch._dynamo.exc.UserError as problem:
        if fixed := _about_fixed(model, example, inputs, free):
            raise CaptureError(fixed, "export") from problem
        raise _unknown(problem) from problem
    except Exception as problem:
        raise _unknown(problem) from problem


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch says of its own inner workings: warnings in every capture, the graph so far in every error."""
    loggers = [logging.getLogger(name) for name in ("torch.fx.experimental.symbolic_shapes", "torch._export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _gathers(model: nn.Module) -> bool:
    """Whether forward takes `*inputs`: torch.export then wants the axes of all of them as one value."""
    kinds = [each.kind for each in inspect.signature(model.forward).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds


def _about_fixed(model: nn.Module, example: Example, inputs: Sequence[Port], free: Sequence[dict[int, Any]]) -> str:
    """What is wrong when free axes turned out fixed, in words; "" when they did not."""
    loose = tuple(dict.fromkeys(axes, Dim.AUTO) for axes in free)
    try:
        program = torch.export.export(model, example, dynamic_shapes=(loose,) if _gathers(model) else loose)
    except Exception:
        return ""
    given = [node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    fixed = {
        f"{port.shape[axis]!r} of input {port.name} is fixed at {value.shape[axis]}"
        for port, axes, value in zip(inputs, free, given, strict=True)
        for axis in axes
        if not has_free_symbols(value.shape[axis])
    }
    if not fixed:
        return ""
    return (
        f"the network's own code fixes a free axis ({', '.join(sorted(fixed))}): a Python loop over it, a tensor of "
        "that size inside the model or int(x.shape[0]) does this; compute with whole tensors and x.shape instead"
    )


def _unknown(problem: Exception) -> UnknownOperatorError:
    place, code = user_line(problem)
    reason = next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
    at = f" at `{code}`" if code else ""
    return UnknownOperatorError(f"torch.export cannot capture the network{at}: {reason}", "export", place)


def user_line(problem: BaseException) -> tuple[str, str]:
    """`FILE:LINE` and its code of the innermost frame of `problem` that is neither torch's nor ours; "" without."""
    for frame in reversed(traceback.extract_tb(problem.__traceback__)):
        if not frame.filename.startswith((TORCH, OURS, "<")):
            return f"{frame.filename}:{frame.lineno}", (frame.line or "").strip()
    return "", ""
