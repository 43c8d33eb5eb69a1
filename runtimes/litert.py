"""LiteRT (ai-edge-litert, with XNNPACK) on the CPU: the runtime of `.tflite` files. Imports no TensorFlow."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from runtimes.base import LAYOUTS, Artifact, ArtifactError
from runtimes.ports import batch_axis, check, free_axes, sized
from tasks.base import Arrays, Port

CHUNK = 256  # rows per call when the batch is open: larger ones gain no speed and cost memory
IDENTIFIER = b"TFL3"  # bytes 4 to 8 of every .tflite file
_DTYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.INT8: np.int8,
}


class Session:
    """A loaded `.tflite` file. Ports have the names of its signature where it has one, else its tensors'.

    Where the file marks no axis as free, the first is the batch if the file can be laid out for another one.
    """

    def __init__(self, model: Interpreter, batch: int | None, artifact: Artifact) -> None:
        self._model, self._path = model, artifact.path
        given, made = _ends(model)
        self._indices = {name: each["index"] for name, each in given.items()}
        self._results = {name: each["index"] for name, each in made.items()}
        self._laid_out: dict[str, tuple[int, ...]] = {}
        marked = any(-1 in each["shape_signature"] for each in given.values())
        free = marked or self._takes_rows({name: _sizes(each) for name, each in given.items()}, batch or 2)
        self.inputs = tuple(_port(name, each, free and not marked) for name, each in given.items())
        self.outputs = tuple(_port(name, each, free and not marked) for name, each in made.items())
        self._batch = batch_axis(self.inputs)
        self._chunk = batch or CHUNK
        self._lay_out({port.name: sized(port, {self._batch: batch or 1}) for port in self.inputs})

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Every output by name; raises ValueError for inputs that are not those of the ports."""
        check(self.inputs, inputs)
        try:
            if self._batch is None or any(port.shape[:1] != (self._batch,) for port in (*self.inputs, *self.outputs)):
                return self._call(inputs)
            rows = len(inputs[self.inputs[0].name])
            starts = range(0, max(rows, 1), self._chunk)
            parts = [self._call({n: _rows(each, at, self._chunk) for n, each in inputs.items()}) for at in starts]
        except (ValueError, RuntimeError) as problem:
            raise ArtifactError(f"{self._path}: LiteRT {version()} cannot run it: {_reason(problem)}") from None
        if len(parts) == 1:
            return {name: each[:rows] for name, each in parts[0].items()}
        return {name: np.concatenate([part[name] for part in parts]) for name in self._results}

    def bind(self, inputs: Arrays) -> Callable[[], None]:
        """A call that copies the inputs in and the results out, as the library has it."""
        check(self.inputs, inputs)
        sizes = {name: each.shape for name, each in inputs.items()}
        self._lay_out(sizes)
        set_tensor, invoke, get_tensor = self._model.set_tensor, self._model.invoke, self._model.get_tensor
        feed = [(self._indices[name], each) for name, each in inputs.items()]
        results = list(self._results.values())

        def call() -> None:
            if self._laid_out is not sizes:  # other inputs were run in between
                self._lay_out(sizes)
            for index, array in feed:
                set_tensor(index, array)
            invoke()
            for index in results:
                get_tensor(index)

        return call

    def _call(self, inputs: Arrays) -> dict[str, np.ndarray]:
        self._lay_out({name: each.shape for name, each in inputs.items()})
        for name, each in inputs.items():
            self._model.set_tensor(self._indices[name], each)
        self._model.invoke()
        return {name: self._model.get_tensor(index) for name, index in self._results.items()}

    def _lay_out(self, sizes: dict[str, tuple[int, ...]]) -> None:
        """Allocate the tensors for inputs of these shapes, unless they lie there already."""
        if sizes != self._laid_out:
            self._laid_out = {}
            for name, shape in sizes.items():
                self._model.resize_tensor_input(self._indices[name], shape)
            self._model.allocate_tensors()
        self._laid_out = sizes

    def _takes_rows(self, sizes: dict[str, tuple[int, ...]], rows: int) -> bool:
        """Whether the file, made for one row, can be laid out for `rows` of them and gives as many."""
        if any(shape[:1] != (1,) for shape in sizes.values()):
            return False
        try:
            self._lay_out({name: (rows, *shape[1:]) for name, shape in sizes.items()})
        except (ValueError, RuntimeError):
            self._lay_out(sizes)
            return False
        return all(each["shape"][0] == rows for each in self._model.get_output_details() if len(each["shape"]))


def load(artifact: Artifact, threads: int, batch: int | None = None) -> Session:
    """The file, ready to run on `threads` CPU threads; raises ArtifactError when it does not load.

    `batch` fixes the rows per call: the tensors are laid out for it now, not at the first run.
    """
    content = _content(artifact)
    try:
        with _stderr_closed():
            return Session(Interpreter(model_content=content, num_threads=threads), batch, artifact)
    except Exception as problem:  # a damaged file makes its Python side raise anything
        raise ArtifactError(f"{artifact.path}: LiteRT {version()} cannot load it: {_reason(problem)}") from None


def version() -> str:
    """The runtime library's version."""
    return metadata.version("ai-edge-litert")


def kernels(artifact: Artifact) -> list[np.ndarray]:
    """The file's constant tensors of two and more dimensions, as stored: float32, float16 or int8."""
    content = _content(artifact)
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
        found = [_constant(model, tensor) for graph in model.subgraphs for tensor in graph.tensors]
    except Exception as problem:  # flatbuffers raises whatever reading past the end gives
        raise ArtifactError(f"{artifact.path}: LiteRT {version()} cannot load it: {problem!r}") from None
    return [kernel for kernel in found if kernel is not None]


def zeros(artifact: Artifact) -> tuple[int, int]:
    """(zeros, weights) over the file's kernels; small weights that int8 rounds to zero count as zeros too."""
    found = kernels(artifact)
    return sum(int(np.sum(kernel == 0)) for kernel in found), sum(kernel.size for kernel in found)


def _ends(model: Interpreter) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The details of inputs and outputs by name, in the file's order."""
    given = {each["index"]: each["name"] for each in model.get_input_details()}
    made = {each["index"]: each["name"] for each in model.get_output_details()}
    for signature in model.get_signature_list():
        runner = model.get_signature_runner(signature)
        given |= {e["index"]: name for name, e in runner.get_input_details().items() if e["index"] in given}
        made |= {e["index"]: name for name, e in runner.get_output_details().items() if e["index"] in made}
    return (
        {given[each["index"]]: each for each in model.get_input_details()},
        {made[each["index"]]: each for each in model.get_output_details()},
    )


def _sizes(details: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in details["shape"])


def _port(name: str, details: dict[str, Any], rows_free: bool) -> Port:
    """`rows_free`: the first axis is the batch although the file does not mark it."""
    marks = [None if size == -1 else int(size) for size in details["shape_signature"]]
    shape = free_axes(name, [None, *marks[1:]] if rows_free and marks else marks)
    return Port(name, shape, np.dtype(details["dtype"]).name, LAYOUTS["tflite"] if len(shape) == 4 else "")


def _rows(array: np.ndarray, start: int, count: int) -> np.ndarray:
    """That many rows from `start` on; one of zeros where there are none, since the library runs no empty batch."""
    return array[start : start + count] if len(array) else np.zeros((1, *array.shape[1:]), array.dtype)


def _reason(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


def _constant(model: schema.ModelT, tensor: schema.TensorT) -> np.ndarray | None:
    raw = model.buffers[tensor.buffer].data
    if raw is None or tensor.type not in _DTYPES or tensor.shape is None or len(tensor.shape) < 2:
        return None
    return np.frombuffer(raw.tobytes(), _DTYPES[tensor.type]).reshape(tensor.shape)


def _content(artifact: Artifact) -> bytes:
    content = artifact.read()
    if content[4:8] != IDENTIFIER:
        reason = "it does not carry the mark TFL3; export it again"
        raise ArtifactError(f"{artifact.path}: LiteRT {version()} cannot load it: {reason}")
    return content


@contextlib.contextmanager
def _stderr_closed() -> Iterator[None]:
    """The library announces its first XNNPACK delegate on stderr, has no switch for that, and raises its errors."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
