"""Layer by layer: how far an ONNX file's activations are from the dense file's, what its weights cost, its time.

`layers("onnxruntime", [dense, *files], inputs)`. A layer is an operator that multiplies by stored weights. Activations
are compared by linear CKA, which also compares layers of different widths, as pruned ones are: Kornblith, Norouzi, Lee,
Hinton, "Similarity of neural network representations revisited", ICML 2019; its estimate without bias for few samples:
Song, Smola, Gretton, Bedo, Borgwardt, "Feature selection via dependence maximization", JMLR 13, 2012.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from runtimes import examples, process, profile, quiet
from runtimes.base import Artifact, load
from tasks.base import Arrays

MODULE = "runtimes.onnx_layers"
SAMPLES = 512  # rows of activations that are compared: pixels of an image count as samples
_VALUES = 400_000  # of inputs in the rows that are run
_LIMIT = 300.0  # seconds
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "QLinearConv", "QLinearMatMul"}
_WEIGHTED |= {"ConvInteger", "MatMulInteger", "QGemm", "DynamicQuantizeMatMul", "Gather"}


@dataclass(frozen=True)
class Layer:
    """One layer. `difference`: 1 - CKA to the dense file's layer, in [0, 1], None where there is no counterpart.

    `ms` per call, None where the profiler does not name it. `size_bytes`: its stored tensors, each packed with zstd.
    """

    name: str
    type: str
    difference: float | None
    ms: float | None
    size_bytes: int


@dataclass(frozen=True)
class Layers:
    """A file's layers in the order in which they run. `rest`: type -> ms of the operators that are none of them."""

    layers: tuple[Layer, ...]
    rest: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return asdict(self)


def layers(
    runtime: str, files: Sequence[Artifact], inputs: Arrays, threads: int = 1, batch: int = 1, runs: int = 20
) -> list[Layers]:
    """Of each file, the first of which is the dense one. `inputs`: valid ones, by the task's names and in its layout.

    Measured in a process of its own while the host is quiet. Raises ArtifactError for a file that does not load,
    LatencyError when the process fails, ValueError for a file that is not ONNX or a runtime without a profiler.
    """
    if wrong := [each.path for each in files if each.format != "onnx"]:
        raise ValueError(f"{wrong[0]}: layers are told apart in .onnx files only")
    with tempfile.TemporaryDirectory() as folder:
        arrays: dict[str, Any] = dict(inputs)
        np.savez(Path(folder, "inputs.npz"), **arrays)
        request = {
            "runtime": runtime,
            "files": [{"path": str(e.path.resolve()), "format": e.format, "sha256": e.sha256} for e in files],
            "folder": folder,
            "threads": threads,
            "batch": batch,
            "runs": runs,
        }
        with quiet.measuring():
            found = process.ask(process.start(MODULE), request, _LIMIT, "layers")
    return [Layers(tuple(Layer(**each) for each in one["layers"]), one["rest"]) for one in found["files"]]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """In the process: the layers of every file."""
    given = examples.read(Path(request["folder"], "inputs.npz"))
    few = {name: array[: _rows(given)] for name, array in given.items()}
    one = Path(request["folder"], "one.npz")
    np.savez(one, **{name: array[: request["batch"]] for name, array in given.items()})  # type: ignore[arg-type]
    dense: list[np.ndarray] | None = None
    found = []
    for file in request["files"]:
        asked = {**request, "file": file, "inputs": str(one)}
        operators = profile.answer(asked)["operators"] or []
        known, seen = _read(Path(file["path"]), few)
        dense = dense if dense is not None else seen
        pairs = zip(dense, seen, strict=True) if len(dense) == len(seen) else ((None, each) for each in seen)
        differences = [None if was is None or was is now else difference(was, now) for was, now in pairs]
        found.append(asdict(_timed(known, differences, operators)))
    return {"files": found}


def _rows(given: Arrays) -> int:
    first = next(iter(given.values()))
    return int(np.clip(_VALUES // max(1, first[:1].size), 8, 64))


@dataclass(frozen=True)
class _Known:
    """A layer of the graph: what can be read without running it. `tensors`: names of its stored tensors."""

    name: str
    node: str
    type: str
    output: str
    tensors: frozenset[str]
    size_bytes: int


def _read(path: Path, inputs: Arrays) -> tuple[list[_Known], list[np.ndarray]]:
    """The file's layers, and float32 [samples, features] of what each gives to the inputs."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    known = found_in(model)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=each.output) for each in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fed = examples.whole(load("onnxruntime").load(Artifact.of(path), 1).inputs, inputs)
    return known, [samples(array) for array in session.run(None, dict(fed))]


def found_in(model: Any) -> list[_Known]:
    """The graph's layers, in order: operators that take stored weights of two or more axes."""
    graph = model.graph
    stored = {each.name: each for each in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    reached: dict[str, frozenset[str] | None] = {name: frozenset([name]) for name in stored}

    def of(name: str) -> frozenset[str] | None:
        """The stored tensors that the tensor is made of alone; None where an input of the model takes part."""
        if name not in reached:
            node = makers.get(name)
            reached[name] = None
            if node is not None:
                parts = [of(each) for each in node.input if each]
                if all(part is not None for part in parts):
                    reached[name] = frozenset(each for part in parts if part is not None for each in part)
        return reached[name]

    found = []
    for node in graph.node:
        if node.op_type in _WEIGHTED and of(node.output[0]) is None:
            tensors = frozenset(each for name in node.input if name for each in (of(name) or ()))
            if any(len(stored[name].dims) > 1 for name in tensors):
                size = sum(packed(stored[name].SerializeToString()) for name in tensors)
                weights = max(tensors, key=lambda name: int(np.prod(stored[name].dims or [1])))
                found.append(_Known(_named(node.name, weights), node.name, node.op_type, node.output[0], tensors, size))
    return found


def _named(node: str, weights: str) -> str:
    """A name for people: that of the module whose weight it is, where the file kept it."""
    for end in ("_quantized", "_zero_point", "_scale", ".weight", "_weight"):
        weights = weights.removesuffix(end)
    return weights if any(c.isalpha() for c in weights) else node or weights


def packed(content: bytes) -> int:
    """Bytes after zstd level 19, as `Artifact.size_bytes` counts a file."""
    return len(zstandard.ZstdCompressor(level=19).compress(content))


def _timed(known: Sequence[_Known], differences: Sequence[float | None], operators: list[dict[str, Any]]) -> Layers:
    """The layers with the time of the operators that take their weights; `rest`: that of all others, by type."""
    left, times = list(operators), list[float | None]()
    for each in known:
        own = [o for o in left if o["weights"] in each.tensors or (each.node and o["name"] == each.node)]
        left = [o for o in left if o not in own]
        times.append(sum(o["ms"] for o in own) if own else None)
    # The runtime reorders some weights and names the result itself: those operators are told by type and order.
    for kind in {each.type for each in known}:
        nameless = [at for at, each in enumerate(known) if each.type == kind and times[at] is None]
        alike = [o for o in left if o["type"].endswith(kind)]
        if len(nameless) == len(alike):
            for at, one in zip(nameless, alike, strict=True):
                times[at] = one["ms"]
            left = [o for o in left if o not in alike]
    made = [
        Layer(each.name, each.type, far, ms, each.size_bytes)
        for each, far, ms in zip(known, differences, times, strict=True)
    ]
    rest: dict[str, float] = {}
    for one in left:
        rest[one["type"]] = rest.get(one["type"], 0.0) + one["ms"]
    return Layers(tuple(made), dict(sorted(rest.items(), key=lambda item: -item[1])))


def samples(array: np.ndarray) -> np.ndarray:
    """Activations as float64 [samples, features]: of an image every pixel is a sample, of a text every token."""
    values = np.asarray(array, np.float64)
    if values.ndim == 4:
        values = np.moveaxis(values, 1, -1)
    values = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values[:, None]
    chosen = np.random.default_rng(0).permutation(len(values))[:SAMPLES]
    return values[np.sort(chosen)]


def difference(one: np.ndarray, other: np.ndarray) -> float | None:
    """1 - linear CKA of [samples, features] and [samples, other features], between 0 and 1; None without variance."""
    if len(one) != len(other) or len(one) < 4:
        return None
    first, second = (_without_diagonal(each) for each in (one, other))
    same = _dependence(first, first) * _dependence(second, second)
    return None if same <= 0 else float(np.clip(1 - _dependence(first, second) / np.sqrt(same), 0.0, 1.0))


def _without_diagonal(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(axis=0)
    products = centred @ centred.T
    np.fill_diagonal(products, 0.0)
    return np.asarray(products)


def _dependence(one: np.ndarray, other: np.ndarray) -> float:
    """Song's unbiased estimate of the Hilbert-Schmidt independence criterion, of [n, n] without their diagonals."""
    n = len(one)
    crossed = float((one.sum(axis=0) * other.sum(axis=0)).sum())
    total = float(one.sum()) * float(other.sum())
    return (float((one * other).sum()) + total / ((n - 1) * (n - 2)) - 2 * crossed / (n - 2)) / (n * (n - 3))


if __name__ == "__main__":
    process.serve(answer)
