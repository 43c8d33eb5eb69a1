"""PyTorch's exported programs (`.pt2`) on the CPU: the reference the other runtimes are compared with."""

from __future__ import annotations

import io

import numpy as np
import torch

from runtimes.base import Artifact, ArtifactError


class Session:
    """A loaded `.pt2` file; `input_shape` is of one input, without the batch."""

    def __init__(self, program: torch.export.ExportedProgram, threads: int) -> None:
        names = program.graph_signature.user_inputs
        if len(names) != 1:
            raise ValueError(f"it must have one input, not {len(names)}")
        given = next(node.meta["val"] for node in program.graph.nodes if node.name == names[0])
        if given.dtype != torch.float32 or not all(isinstance(size, int) for size in given.shape[1:]):
            raise ValueError(f"its input is {given.dtype} {tuple(given.shape)}, not float32 with only the batch open")
        self.input_shape: tuple[int, ...] = tuple(given.shape[1:])
        self._model, self._threads = program.module(), threads

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """float32 [N, ...] -> float32 [N, classes]."""
        # The number of threads belongs to the process, and another session may have set it.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            scores: np.ndarray = self._model(torch.from_numpy(inputs)).numpy()
        return scores


def load(artifact: Artifact, threads: int, batch: int | None = None) -> Session:
    """The file, ready to predict on `threads` CPU threads; raises ArtifactError when it does not load.

    `batch` changes nothing: an exported program runs as it was traced.
    """
    content = artifact.read()
    try:
        return Session(torch.export.load(io.BytesIO(content)), threads)
    except Exception as problem:  # whatever unpacking, deserialising or tracing raises
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise ArtifactError(f"{artifact.path}: torch {version()} cannot load it: {reason}") from None


def version() -> str:
    """The library's version."""
    return str(torch.__version__)
