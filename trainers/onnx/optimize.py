"""An ONNX file as the recipes begin with it: a modern opset, constants folded, nothing that is not needed."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import onnx
from onnxscript import optimizer

from tasks.base import Arrays
from trainers.base import TrainingError
from trainers.onnx import run

OPSET = 17  # what is older has no scale per channel (13), and no operator that later versions took apart
ROUNDING = 1e-4  # relative: what a graph that means the same may differ by


def optimized(model: onnx.ModelProto, samples: Sequence[Arrays]) -> tuple[onnx.ModelProto, list[str]]:
    """(the model in a modern opset with its constants folded, what could not be done).

    Each step is kept only where the file then says the same for `samples`.
    """
    exact, notes = run.outputs(model, samples), []
    for name, step in (("converted to opset 17", _converted), ("simplified", _folded)):
        try:
            made = step(model)
            if run.relative_error(run.outputs(made, samples), exact) <= ROUNDING:
                model = made
            else:
                notes.append(f"the graph is not {name}: the file would say something else")
        except Exception as problem:  # the libraries raise whatever happens inside
            notes.append(f"the graph is not {name}: {run.reason(problem)}")
    return named(model), notes


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    version = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    return model if version >= OPSET else onnx.version_converter.convert_version(model, OPSET)


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        made: onnx.ModelProto = optimizer.optimize(model)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    names = [[value.name for value in each.graph.input] for each in (made, model)]
    if names[0] != names[1]:
        raise TrainingError("its inputs would change")
    return made


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a name on every node, each once: what is kept float or whole is told by name."""
    taken = {node.name for node in model.graph.node if node.name}
    seen: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in seen:
            node.name = _free(f"{node.op_type}_{node.output[0]}", taken)
            taken.add(node.name)
        seen.add(node.name)
    return model


def _free(name: str, taken: set[str]) -> str:
    count, found = 0, name
    while found in taken:
        count, found = count + 1, f"{name}_{count + 1}"
    return found
