"""The exported file as an Artifact, and the Runtime protocol that runs it. No runtime is imported here."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zstandard

from runtimes import foreign
from tasks.base import Arrays, Port

# runtime -> the file format it loads; the first format a study's runtime names is what its trainer exports.
FORMATS = {"onnxruntime": "onnx", "openvino": "onnx", "torch": "pt2", "litert": "tflite"}
# format -> how image inputs are laid out: each framework's own convention, kept so that no transpose is exported.
LAYOUTS = {"onnx": "NCHW", "pt2": "NCHW", "tflite": "NHWC"}


class ArtifactError(RuntimeError):
    """A file that its runtime cannot load or run; the message names file, runtime and reason."""


class LatencyError(RuntimeError):
    """The measuring process crashed, ran out of time or had no valid inputs; the message says how."""


@dataclass(frozen=True)
class Artifact:
    """An exported model file as it was when it was made."""

    path: Path
    format: str
    sha256: str

    @staticmethod
    def of(path: Path) -> Artifact:
        """The file at `path`; its suffix is its format."""
        return Artifact(path, path.suffix.lstrip("."), hashlib.sha256(path.read_bytes()).hexdigest())

    def size_bytes(self) -> int:
        """Bytes after zstd level 19: what a device downloads."""
        return len(zstandard.ZstdCompressor(level=19).compress(self.path.read_bytes()))

    def read(self) -> bytes:
        """The file's bytes; raises ArtifactError when it is missing or no longer the file that was made."""
        try:
            content = self.path.read_bytes()
        except OSError as problem:
            raise ArtifactError(f"{self.path}: cannot be read ({problem.strerror})") from None
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise ArtifactError(f"{self.path}: not the file that was made (sha256 differs); make it again")
        return content

    @property
    def layout(self) -> str:
        """How image inputs are laid out: NCHW or NHWC."""
        return LAYOUTS.get(self.format, "NCHW")


class Session(Protocol):
    """A loaded model. `inputs`, `outputs`: what it takes and gives, in the artifact's layout."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Every output by name; an earlier result is never overwritten.

        Raises ValueError when names, dtypes or shapes are not those of `inputs`, ArtifactError when the file fails.
        """
        ...

    def bind(self, inputs: Arrays) -> Callable[[], None]:
        """What is timed: one call on these inputs, as an application makes it; it returns when the results are there.

        Inputs are checked now, not at the call, and are read at the call from the memory they lie in. On a GPU the call
        waits for the GPU.
        """
        ...


def run_single(session: Session, inputs: np.ndarray) -> np.ndarray:
    """The one output of a model with one input; raises ValueError where it has more."""
    if len(session.inputs) != 1 or len(session.outputs) != 1:
        ends = f"inputs {[p.name for p in session.inputs]}, outputs {[p.name for p in session.outputs]}"
        raise ValueError(f"the file has {ends}; run_single() takes files of one input and one output")
    return session.run({session.inputs[0].name: inputs})[session.outputs[0].name]


class Runtime(Protocol):
    """Runs exported files: functions of a module.

    Ours are `runtimes/NAME.py`; one of another package is any module that has FORMAT besides, the suffix of its files
    (`runtimes/foreign.py`). Two more are used where they are there: `gpu() -> str`, the name of the GPU it runs on,
    since figures of different GPUs never compare, and `operators(artifact, inputs, threads, runs, folder)`, a list of
    `runtimes.profile.OperatorTime`.
    """

    def load(self, artifact: Artifact, threads: int, batch: int | None = None) -> Session:
        """The file, ready to run on `threads` CPU threads; `batch` fixes the batch size where that is faster.

        Raises ArtifactError when the file does not load.
        """
        ...

    def version(self) -> str:
        """The runtime library's version."""
        ...


def names() -> tuple[str, ...]:
    """The runtimes that are here: our own, and those of other packages by their entry points."""
    return (*FORMATS, *(name for name in foreign.names() if name not in FORMATS))


def format_of(name: str) -> str:
    """The file format that the named runtime loads; imports no runtime. Raises ValueError when there is none."""
    if name in FORMATS:
        return FORMATS[name]
    if not foreign.is_address(name):
        raise ValueError(
            f"runtime: {name!r} is not a runtime; choose from {', '.join(names())}, or name one of your own as "
            "package.module or FILE.py"
        )
    return foreign.format_of(name)


def load(name: str) -> Runtime:
    """The named runtime; imports it (and nothing else heavy).

    Raises ValueError for one that is not found, ImportError with the command that installs one of ours.
    """
    runtime: Any = importlib.import_module(f"runtimes.{name}") if name in FORMATS else None
    if runtime is None:
        format_of(name)
        runtime = foreign.load(name)
    found: Runtime = runtime
    return found
