"""One version of the model, loaded: verified, checked on its example, measured, batched. No server, no Ray."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import runtimes.base
from runtimes.base import Artifact, ArtifactError
from serving import policy
from serving.batcher import Batcher
from serving.package import About, Package, PackageError, check_example, example_of
from serving.policy import Plan
from serving.process import Process
from serving.protocol import Ends

Arrays = Mapping[str, np.ndarray]
SIDE_BYTES = 1024 * 1024 * 1024  # of inputs and outputs in a measured batch


@dataclass
class Model:
    """A version that can answer. `verify` raises PackageError when its file is no longer the one that was picked."""

    about: About
    batcher: Batcher
    process: Process
    ends: Ends
    verify: Callable[[], None]

    @property
    def plan(self) -> Plan:
        """How its requests are batched."""
        return self.batcher.plan

    def close(self) -> None:
        """Once nothing of it is asked any more."""
        self.batcher.close()


def load(package: Package, folder: Path, p99_ms: float | None, largest: int | None = None) -> Model:
    """The model in this process. Raises PackageError when its file is damaged, does not load or fails its example.

    `largest`: no larger batches than this, whatever was measured.
    """
    package.verify()
    artifact = package.write(folder)
    try:
        session = runtimes.base.load(package.about.runtime).load(artifact, package.about.threads)
    except (ArtifactError, ImportError, ValueError) as problem:
        raise PackageError(f"{package.about.name}: it does not load: {problem}") from None
    check_example(package.about, session.run, package.example)
    plan = planned(package.about, session.run, p99_ms, largest)
    return _model(package, folder, Batcher(session.run, plan, package.about.batched()), lambda: verified(artifact))


def piped(
    package: Package, folder: Path, plan: Plan, run: Callable[[Arrays], Awaitable[Arrays]], concurrent: int
) -> Model:
    """The model whose file is elsewhere: `run` sends a batch through its parts, `concurrent` batches at once."""
    package = Package(package.about, b"", package.files)
    package.write(folder)
    return _model(package, folder, Batcher(run, plan, package.about.batched(), concurrent), lambda: None)


def planned(about: About, run: Callable[[Arrays], object], p99_ms: float | None, largest: int | None = None) -> Plan:
    """Measure batches on this machine, and choose."""
    example = example_of(about.inputs, rows=1)
    if not about.batched():
        timings = policy.measure(lambda _: run(example), sizes=(1,), seconds=0.3)
        return policy.choose(timings, p99_ms)
    bytes_each = sum(value.nbytes for value in example.values()) + 1
    sizes = tuple(s for s in policy.SIZES if s * bytes_each <= SIDE_BYTES and s <= (largest or s))
    inputs = {size: {n: np.repeat(v, size, axis=0) for n, v in example.items()} for size in sizes}
    plan = policy.choose(policy.measure(lambda size: run(inputs[size]), sizes), p99_ms)
    open_axes = any(isinstance(size, str) for port in about.inputs for size in port.shape[1:])
    return replace(plan, inline=0) if open_axes else plan  # a long text takes many times what the example took


def verified(artifact: Artifact) -> None:
    """Raise PackageError unless the file on disk has its sha256."""
    try:
        found = hashlib.sha256(artifact.path.read_bytes()).hexdigest()
    except OSError as problem:
        raise PackageError(f"{artifact.path}: it cannot be read ({problem.strerror})") from None
    if found != artifact.sha256:
        raise PackageError(f"{artifact.path}: its sha256 is {found[:12]}..., not {artifact.sha256[:12]}...")


def _model(package: Package, folder: Path, batcher: Batcher, verify: Callable[[], None]) -> Model:
    about = package.about
    ports = ([p.__dict__ for p in about.inputs], [p.__dict__ for p in about.outputs])
    process = Process(about.serving, *ports, folder / "files")
    return Model(about, batcher, process, Ends.of(about.inputs, about.outputs), verify)


async def warm(model: Model) -> None:
    """One answer through the whole way, so that the first client does not wait for it."""
    await asyncio.wait_for(model.batcher.infer(example_of(model.about.inputs, rows=1)), 120)
