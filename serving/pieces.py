"""Parts of a model as packages: cut from a package, checked against the whole, loaded where they compute."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import runtimes.base
from runtimes.base import Artifact
from serving import model, partition, policy, profile, source
from serving.package import Package, PackageError, example_of
from serving.partition import Graph, PartitionError
from serving.settings import Settings

Arrays = Mapping[str, np.ndarray]
CLOSE = 1e-5  # of the largest answer; an int8 graph must give the very same
ROUNDS = 3  # of measuring the parts and shifting the cuts
MB = 1024 * 1024
MOST = 64  # parts


@dataclass(frozen=True)
class Loaded:
    """A part that computes: `compute`: living tensors at its begin -> at its end. `verify` raises PackageError."""

    compute: Callable[[Arrays], dict[str, np.ndarray]]
    verify: Callable[[], None]


def count(settings: Settings) -> int:
    """How many parts the settings ask for; with `max_part_mb` the fewest whose weights stay below it."""
    if not settings.max_part_mb:
        return max(1, settings.parts)
    found = source.of(settings)
    content = found.read(found.newest()).content
    limit = settings.max_part_mb * MB
    if len(content) <= limit:
        return max(1, settings.parts)
    graph = Graph(content)
    for parts in range(max(2, settings.parts, int(np.ceil(len(content) / limit))), MOST + 1):
        try:
            if max(len(piece.content) for piece in _by_memory(graph, parts)) <= limit:
                return parts
        except PartitionError:  # no more places to cut at
            break
    raise PartitionError(f"max_part_mb={settings.max_part_mb:g}: one operator's weights alone are larger; allow more")


def cut(package: Package, settings: Settings, parts: int) -> list[Package]:
    """The package's parts, in order; raises PackageError where it cannot be cut, or its parts answer otherwise."""
    about = package.about
    if about.format != "onnx":
        raise PackageError(f"parts={parts}: only an ONNX file can be cut, and this is .{about.format}; write parts=1")
    try:
        graph = Graph(package.content)
        inputs = example_of(about.inputs, rows=1)
        by_memory = settings.balance == "memory" or bool(settings.max_part_mb)
        made = _by_memory(graph, parts, inputs) if by_memory else _by_time(graph, package, parts, inputs)
        found = [_packed(package, piece) for piece in made]
        _check(package, found, any(node.op_type == "QuantizeLinear" for node in graph.nodes))
    except PartitionError as problem:
        raise PackageError(f"{about.name}: {problem}") from None
    return found


def load(package: Package, home: Path) -> Loaded:
    """The part, ready to compute in this process."""
    package.verify()
    artifact = package.write(home)
    session = runtimes.base.load(package.about.runtime).load(artifact, package.about.threads)
    gives = (package.about.serving or {})["gives"]
    reads = [port.name for port in session.inputs]

    def compute(arrays: Arrays) -> dict[str, np.ndarray]:
        made = session.run({name: np.asarray(arrays[name], order="C") for name in reads})
        return {name: made[name] if name in made else arrays[name] for name in gives}

    return Loaded(compute, lambda: model.verified(artifact))


def _by_memory(graph: Graph, parts: int, inputs: Arrays | None = None) -> list[partition.Piece]:
    sizes = profile.tensor_bytes(graph, inputs) if inputs is not None else {}
    return list(partition.pieces(graph, partition.places(graph, parts, graph.memory(), sizes)))


def _by_time(graph: Graph, package: Package, parts: int, inputs: Arrays) -> list[partition.Piece]:
    """Cut by what the nodes took, measure the parts, correct the nodes by that, cut again; the best of all."""
    costs, sizes = profile.node_ms(graph, inputs), profile.tensor_bytes(graph, inputs)
    best: tuple[float, list[partition.Piece]] = (np.inf, [])
    tried = set[tuple[int, ...]]()
    for _ in range(ROUNDS):
        cuts = partition.places(graph, parts, costs, sizes)
        if tuple(cuts) in tried:
            break
        tried.add(tuple(cuts))
        made = list(partition.pieces(graph, cuts))
        spent = _measured([_packed(package, piece) for piece in made], inputs)
        if max(spent) < best[0]:
            best = (max(spent), made)
        ends = [0, *cuts, len(graph.nodes)]
        for begin, end, ms in zip(ends, ends[1:], spent, strict=False):
            costs[begin:end] *= ms / max(float(costs[begin:end].sum()), 1e-9)
    return best[1]


def _measured(found: Sequence[Package], inputs: Arrays) -> list[float]:
    spent = []
    arrays = dict(inputs)
    for each in found:
        session = _session(each)
        given = {port.name: arrays[port.name] for port in session.inputs}
        run = session.run
        timing = policy.measure(lambda _, run=run, given=given: run(given), (1,), 0.2)  # type: ignore[misc]
        spent.append(timing[1].median_ms)
        arrays |= run(given)
    return spent


def _session(package: Package) -> Any:
    with tempfile.TemporaryDirectory(prefix="pare-part-") as folder:
        artifact: Artifact = package.write(Path(folder))
        return runtimes.base.load(package.about.runtime).load(artifact, package.about.threads)


def _packed(package: Package, piece: partition.Piece) -> Package:
    """A part as a package; `serving` says what it hands on, the ports are those that its file is found to have."""
    sha256 = hashlib.sha256(piece.content).hexdigest()
    said = {"takes": list(piece.takes), "gives": list(piece.gives)}
    about = replace(package.about, sha256=sha256, serving=said)
    return Package(about, piece.content)


def _check(package: Package, found: Sequence[Package], exact: bool) -> None:
    """Raise PartitionError unless the parts answer as the whole, `exact` or to CLOSE of the largest answer."""
    inputs = example_of(package.about.inputs)
    wanted, arrays = _session(package).run(inputs), dict(inputs)
    for each in found:
        session = _session(each)
        made = session.run({port.name: arrays[port.name] for port in session.inputs})
        arrays = {name: made[name] if name in made else arrays[name] for name in (each.about.serving or {})["gives"]}
    for name, value in wanted.items():
        error = float(np.max(np.abs(np.asarray(arrays[name], np.float64) - value))) if value.size else 0.0
        scale = max(1.0, float(np.max(np.abs(value)))) if value.size else 1.0
        if error > (0.0 if exact else CLOSE * scale):
            raise PartitionError(
                f"parts={len(found)}: output {name} of the parts differs from the whole by {error:.2g}; write parts=1"
            )
