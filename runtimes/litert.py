"""LiteRT (ai-edge-litert, with XNNPACK) on the CPU: the runtime of `.tflite` files. Imports no TensorFlow."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib import metadata

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from runtimes.base import Artifact, ArtifactError

CHUNK = 256  # rows per call when the batch is open: larger ones gain no speed and cost memory
IDENTIFIER = b"TFL3"  # bytes 4 to 8 of every .tflite file
_DTYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.INT8: np.int8,
}


class Session:
    """A loaded `.tflite` file; `input_shape` is of one input, without the batch."""

    def __init__(self, model: Interpreter, batch: int | None) -> None:
        if (len(model.get_input_details()), len(model.get_output_details())) != (1, 1):
            raise ValueError("it must have one input and one output")
        given = model.get_input_details()[0]
        if given["dtype"] is not np.float32:
            raise ValueError(f"its input is {given['dtype'].__name__}, not float32")
        self.input_shape: tuple[int, ...] = tuple(int(size) for size in given["shape"][1:])
        self._model, self._input = model, given["index"]
        self._output = model.get_output_details()[0]["index"]
        self._chunk = batch or CHUNK
        self._rows = 0
        self._resize(batch or 1)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """float32 [N, ...] -> float32 [N, classes]; raises ValueError for another shape or dtype."""
        if inputs.dtype != np.float32 or inputs.shape[1:] != self.input_shape:
            wanted = ", ".join(map(str, ("N", *self.input_shape)))
            raise ValueError(f"inputs: {inputs.dtype} {inputs.shape}; must be float32 [{wanted}]")
        if len(inputs) == self._rows:  # the way of every timed call
            return self._run(inputs)
        parts = [self._run(inputs[start : start + self._chunk]) for start in range(0, len(inputs), self._chunk)]
        return np.concatenate(parts) if parts else self._run(np.zeros((1, *self.input_shape), np.float32))[:0]

    def _run(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) != self._rows:
            self._resize(len(rows))
        self._model.set_tensor(self._input, rows)
        self._model.invoke()
        scores: np.ndarray = self._model.get_tensor(self._output)
        return scores

    def _resize(self, rows: int) -> None:
        self._model.resize_tensor_input(self._input, (rows, *self.input_shape))
        self._model.allocate_tensors()
        self._rows = rows


def load(artifact: Artifact, threads: int, batch: int | None = None) -> Session:
    """The file, ready to predict on `threads` CPU threads; raises ArtifactError when it does not load.

    `batch` fixes the rows per call: the tensors are laid out for it now, not at the first prediction.
    """
    content = _content(artifact)
    try:
        with _stderr_closed():
            return Session(Interpreter(model_content=content, num_threads=threads), batch)
    except (ValueError, RuntimeError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise ArtifactError(f"{artifact.path}: LiteRT {version()} cannot load it: {reason}") from None


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
