"""What is served: the model's file with all that serving needs to know of it, as one folder or one value.

    about.json    About: name, version, sha256, runtime, threads, ports, pre- and postprocessing
    model.SUFFIX  the artifact, byte for byte; or model.pare, which unpacks to it (docs/format.md)
    example.npz   inputs and what the file answered to them when it was picked: who loads it checks itself
    files/        what the preprocessing reads, such as tokenizer.json

A picked folder has this form, and so have the artifacts of the registered model.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import runtimes.base
from packing.decode import PackError, unpack
from runtimes.base import Artifact
from runtimes.ports import batch_axis
from tasks.base import Arrays, Port

FREE = 2  # rows of the example
TOLERANCE = 0.05  # of the example's answers, relative: other CPUs round int8 otherwise, a wrong file is far off


class PackageError(RuntimeError):
    """A model that cannot be served; the message says what is wrong with which file, and the remedy."""


@dataclass(frozen=True)
class About:
    """What is known of a model's file. `version`: the registry's, or the first 12 digits of the sha256.

    `serving`: tasks.base.Serving.to_dict(), None for arrays in and out. `latency_ms`: batch size -> milliseconds, as
    the study measured it.
    """

    name: str
    sha256: str
    format: str
    runtime: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    version: str = ""
    threads: int = 1
    serving: Mapping[str, Any] | None = None
    latency_ms: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> About:
        """What `to_dict` gave; raises PackageError when a field is missing. Fields that it does not know it ignores."""
        known = {name: values[name] for name in About.__dataclass_fields__ if name in values}
        try:
            for ends in ("inputs", "outputs"):
                ports = values[ends]
                known[ends] = tuple(Port(**{**port, "shape": tuple(port["shape"])}) for port in ports)
            return About(**known)
        except (KeyError, TypeError) as missing:
            raise PackageError(f"about.json: it does not describe a model ({missing}); pick the model again") from None

    @property
    def key(self) -> str:
        """File and version in one: the same file may be registered twice."""
        return f"{self.sha256[:32]}-{self.label}"

    @property
    def label(self) -> str:
        """How an answer names the version."""
        return self.version or self.sha256[:12]

    def batched(self) -> bool:
        """Whether requests can share a batch: the first axis of every input and output is open."""
        return all(port.shape and isinstance(port.shape[0], str) for port in (*self.inputs, *self.outputs))


@dataclass(frozen=True)
class Package:
    """A model in memory: `content` is the file's bytes, `files` what travels along, `example` (inputs, outputs)."""

    about: About
    content: bytes
    files: Mapping[str, bytes] = field(default_factory=dict)
    example: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]] | None = None

    @staticmethod
    def read(folder: Path) -> Package:
        """The package in the folder; raises PackageError when it is none, or its file is not the one described."""
        try:
            about = About.from_dict(json.loads((folder / "about.json").read_text()))
            content = _content(folder, about.format)
        except OSError as problem:
            raise PackageError(f"{problem.filename}: {problem.strerror}; pick the model again") from None
        except ValueError as problem:
            raise PackageError(f"{folder / 'about.json'}: it is no JSON ({problem}); pick the model again") from None
        files = {p.name: p.read_bytes() for p in sorted((folder / "files").glob("*")) if p.is_file()}
        made = Package(about, content, files, _example(folder / "example.npz"))
        made.verify()
        return made

    def verify(self) -> None:
        """Raise PackageError unless the content has the sha256 that is said of it."""
        if hashlib.sha256(self.content).hexdigest() != self.about.sha256:
            raise PackageError(
                f"model.{self.about.format}: its sha256 is not {self.about.sha256[:12]}..., as about.json says; "
                "the file was damaged or replaced: pick the model again"
            )

    def write(self, folder: Path) -> Artifact:
        """Write the package to the folder; the artifact carries the sha256 that the file must have."""
        (folder / "files").mkdir(parents=True, exist_ok=True)
        file = folder / f"model.{self.about.format}"
        file.write_bytes(self.content)
        for name, content in self.files.items():
            (folder / "files" / Path(name).name).write_bytes(content)
        if self.example is not None:
            named = {
                f"{end}.{name}": v for end, each in zip("io", self.example, strict=True) for name, v in each.items()
            }
            kept = io.BytesIO()
            np.savez(kept, allow_pickle=False, **named)
            (folder / "example.npz").write_bytes(kept.getvalue())
        (folder / "about.json").write_text(json.dumps(self.about.to_dict(), indent=1) + "\n")
        return Artifact(file, self.about.format, self.about.sha256)

    def named(self, version: str) -> Package:
        """The same under a registry's version."""
        return replace(self, about=replace(self.about, version=version))


def _content(folder: Path, suffix: str) -> bytes:
    """The model's bytes; unpacked, where the folder holds it packed alone. Raises OSError, PackageError."""
    file, packed = folder / f"model.{suffix}", folder / "model.pare"
    if file.exists() or not packed.exists():
        return file.read_bytes()
    try:
        return unpack(packed.read_bytes())
    except PackError as problem:
        raise PackageError(f"{packed}: {problem}; pick the model again") from None


def make(
    file: Path,
    name: str,
    runtime: str,
    threads: int = 1,
    serving: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    ports: tuple[Sequence[Port], Sequence[Port]] | None = None,
    latency_ms: Mapping[str, float] | None = None,
) -> Package:
    """A package of the exported file: it is run once on example inputs, whose answers travel along.

    `ports`: the task's own, whose layouts and kinds the file does not know. Raises ArtifactError when it does not run.
    """
    artifact = Artifact.of(file)
    session = runtimes.base.load(runtime).load(artifact, threads)
    inputs, outputs = (
        tuple(_described(port, said) for port in found)
        for found, said in zip((session.inputs, session.outputs), ports or ((), ()), strict=True)
    )
    about = About(
        name=name,
        sha256=artifact.sha256,
        format=artifact.format,
        runtime=runtime,
        inputs=inputs,
        outputs=outputs,
        threads=threads,
        serving=serving,
        latency_ms=dict(latency_ms or {}),
    )
    given = example_of(inputs)
    answered = {name: np.array(value) for name, value in session.run(given).items()}
    return Package(about, artifact.read(), dict(files or {}), (given, answered))


def example_of(inputs: Sequence[Port], rows: int = FREE, length: int = 16) -> dict[str, np.ndarray]:
    """Inputs that any model takes: seeded noise for floats, zeros and ones for integers, which are valid as ids too.

    The batch axis, where it is open, holds `rows`; other open axes `length`.
    """
    random = np.random.default_rng(0)
    batch = batch_axis(inputs)
    made = {}
    for port in inputs:
        shape = [axis if isinstance(axis, int) else rows if axis == batch else length for axis in port.shape]
        if np.dtype(port.dtype).kind == "f":
            made[port.name] = random.standard_normal(shape).astype(port.dtype)
        else:
            made[port.name] = random.integers(0, 2, shape).astype(port.dtype)
    return made


def check_example(about: About, run: Any, example: tuple[Arrays, Arrays] | None) -> None:
    """Raise PackageError where the model does not answer its own example as it did when it was picked."""
    if example is None:
        return
    inputs, expected = example
    try:
        found = run(inputs)
    except Exception as problem:  # each runtime raises what it likes
        raise PackageError(f"{about.name}: it fails on its own example: {_first_line(problem)}") from None
    for name, wanted in expected.items():
        got = np.asarray(found.get(name, np.nan), np.float64)
        if got.shape != wanted.shape or not np.isfinite(got).all():
            raise PackageError(f"{about.name}: output {name} of its example is {got.shape} or not finite")
        scale = float(np.sqrt(np.mean(np.square(wanted, dtype=np.float64)))) or 1.0
        error = float(np.sqrt(np.mean((got - wanted) ** 2))) / scale
        if error > TOLERANCE:
            raise PackageError(
                f"{about.name}: output {name} of its example is off by {error:.0%}; the file is not the one that was "
                "picked, or this runtime computes otherwise"
            )


def _described(port: Port, said: Sequence[Port]) -> Port:
    """The file's port with what the task knows of it besides: layout, kind, axis."""
    for known in said:
        if known.name == port.name:
            return replace(port, layout=known.layout or port.layout, kind=known.kind, axis=known.axis)
    return port


def _example(file: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None:
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:
            ends = {end: {n[2:]: stored[n] for n in stored.files if n.startswith(f"{end}.")} for end in "io"}
    except (OSError, ValueError) as problem:
        raise PackageError(f"{file}: it cannot be read ({_first_line(problem)}); pick the model again") from None
    return ends["i"], ends["o"]


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0][:300]
