"""PyTorch's exported programs (`.pt2`) on the CPU: the reference the other runtimes are compared with."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree

from runtimes.base import Artifact, ArtifactError
from runtimes.ports import check, free_axes
from tasks.base import Arrays, Port

logging.getLogger("torch.export").setLevel(logging.ERROR)  # it logs the traceback of what it then raises

# An extra file within a `.pt2` with the ports' names, {"inputs": [...], "outputs": [...]}, in the program's order.
PORTS = "pare.ports"


class Session:
    """A loaded `.pt2` file. Ports have the names in the file's extra file PORTS, else those of `forward`'s arguments,
    and its outputs the keys of the dict that it returns, else `output`, or `output_0`, `output_1` ….
    """

    def __init__(
        self, program: torch.export.ExportedProgram, threads: int, artifact: Artifact, names: dict[str, list[str]]
    ) -> None:
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        given, made = program.graph_signature.user_inputs, program.graph_signature.user_outputs
        axes: dict[str, str] = {}
        self.inputs = tuple(
            _port(name, values[node], axes) for name, node in zip(names.get("inputs", given), given, strict=True)
        )
        named = names.get("outputs") or _output_names(program.call_spec.out_spec, len(made))
        self.outputs = tuple(_port(name, values.get(node), axes) for name, node in zip(named, made, strict=True))
        self._model, self._threads, self._path = program.module(), threads, artifact.path
        self._structure = program.call_spec.in_spec

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Every output by name; raises ValueError for inputs that are not those of the ports."""
        args, kwargs = self._arguments(inputs)
        try:
            with torch.inference_mode():
                made = _pytree.tree_leaves(self._model(*args, **kwargs))
        except Exception as problem:
            raise ArtifactError(f"{self._path}: torch {version()} cannot run it: {_reason(problem)}") from None
        return {port.name: each.numpy() for port, each in zip(self.outputs, made, strict=True)}

    def bind(self, inputs: Arrays) -> Callable[[], None]:
        """A call on tensors that share the inputs' memory."""
        args, kwargs = self._arguments(inputs)
        model, inference = self._model, torch.inference_mode

        def call() -> None:
            with inference():
                model(*args, **kwargs)

        return call

    def _arguments(self, inputs: Arrays) -> tuple[tuple[Any, ...], dict[str, Any]]:
        check(self.inputs, inputs)
        # The number of threads belongs to the process, and another session may have set it.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        tensors = [torch.from_numpy(np.require(inputs[port.name], requirements="W")) for port in self.inputs]
        args, kwargs = _pytree.tree_unflatten(tensors, self._structure)
        return args, kwargs


def load(artifact: Artifact, threads: int, batch: int | None = None) -> Session:
    """The file, ready to run on `threads` CPU threads; raises ArtifactError when it does not load.

    `batch` changes nothing: an exported program runs as it was traced.
    """
    content = artifact.read()
    extra = {PORTS: ""}
    try:
        program = torch.export.load(io.BytesIO(content), extra_files=extra)
        return Session(program, threads, artifact, json.loads(extra[PORTS] or "{}"))
    except Exception as problem:  # whatever unpacking, deserialising or tracing raises
        raise ArtifactError(f"{artifact.path}: torch {version()} cannot load it: {_reason(problem)}") from None


def version() -> str:
    """The library's version."""
    return str(torch.__version__)


def _port(name: str, value: Any, axes: dict[str, str]) -> Port:
    """`axes`: torch's own symbol -> the name of a free axis that was met before; added to."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name!r} is {value!r}, not a tensor")
    sizes = [None if isinstance(size, torch.SymInt) else int(size) for size in value.shape]
    shape = tuple(
        axes.setdefault(str(size), axis) if isinstance(axis, str) else axis
        for size, axis in zip(value.shape, free_axes(name, sizes), strict=True)
    )
    return Port(name, shape, str(value.dtype).removeprefix("torch."))


def _output_names(structure: Any, count: int) -> list[str]:
    """The keys of a dict, else numbers."""
    if structure is not None and structure.type is dict and len(structure.context) == count:
        return [str(key) for key in structure.context]
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


def _reason(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]
