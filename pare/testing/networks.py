"""Two small networks with known answers, as files of the formats that our own runtimes load.

`images`: float32 images of 3 channels, one output. `words`: int64 ids and float32 weights of any length, two outputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.base import Arrays, Port

HIDDEN = 512  # wide enough that every library splits the work over its threads
WORDS, WIDTH, CLASSES = 20, 8, 3


@dataclass(frozen=True)
class Network:
    """`inputs`, `outputs`: its ports, images as NCHW. `example(rows, seed)`: valid inputs. `reference`: the outputs."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: Mapping[str, np.ndarray]
    example: Callable[[int, int], dict[str, np.ndarray]]
    reference: Callable[[Arrays], dict[str, np.ndarray]]


def _drawn(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


_IMAGES = _drawn(first=(16, HIDDEN), bias=(HIDDEN,), second=(HIDDEN, CLASSES))
_WORDS = _drawn(table=(WORDS, WIDTH), last=(WIDTH, CLASSES))


def _image_example(rows: int, seed: int) -> dict[str, np.ndarray]:
    return {"images": np.random.default_rng(seed).standard_normal((rows, 3, 4, 4), dtype=np.float32)}


def _image_reference(inputs: Arrays) -> dict[str, np.ndarray]:
    flat = inputs["images"].mean(1).reshape(-1, 16)
    return {"scores": np.maximum(flat @ _IMAGES["first"] + _IMAGES["bias"], 0) @ _IMAGES["second"]}


def _word_example(rows: int, seed: int) -> dict[str, np.ndarray]:
    rng, length = np.random.default_rng(seed), 2 + seed % 5
    return {
        "ids": rng.integers(0, WORDS, (rows, length)),
        "weights": rng.random((rows, length), dtype=np.float32),
    }


def _word_reference(inputs: Arrays) -> dict[str, np.ndarray]:
    pooled = (_WORDS["table"][inputs["ids"]] * inputs["weights"][..., None]).mean(1)
    return {"scores": pooled @ _WORDS["last"], "pooled": pooled}


IMAGES = Network(
    "images",
    (Port("images", ("batch", 3, 4, 4), layout="NCHW"),),
    (Port("scores", ("batch", CLASSES)),),
    _IMAGES,
    _image_example,
    _image_reference,
)
NETWORKS = (
    IMAGES,
    Network(
        "words",
        (Port("ids", ("batch", "length"), "int64"), Port("weights", ("batch", "length"))),
        (Port("scores", ("batch", CLASSES)), Port("pooled", ("batch", WIDTH))),
        _WORDS,
        _word_example,
        _word_reference,
    ),
)


def write(network: Network, path: Path) -> None:
    """The network as a file of the format that the path's suffix names: onnx, pt2 or tflite."""
    suffix = path.suffix.lstrip(".")
    if suffix not in WRITERS:
        raise ValueError(f"{path}: only {', '.join(WRITERS)} files are written here; give check_runtime a `make`")
    WRITERS[suffix](network, path)


def _write_onnx(network: Network, path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    if network is IMAGES:
        nodes = [
            helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1], keepdims=0),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("Gemm", ["flat", "first", "bias"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["relu"]),
            helper.make_node("MatMul", ["relu", "second"], ["scores"]),
        ]
    else:
        nodes = [
            helper.make_node("Gather", ["table", "ids"], ["found"]),
            helper.make_node("Unsqueeze", ["weights", "two"], ["columns"]),
            helper.make_node("Mul", ["found", "columns"], ["product"]),
            helper.make_node("ReduceMean", ["product"], ["pooled"], axes=[1], keepdims=0),
            helper.make_node("MatMul", ["pooled", "last"], ["scores"]),
        ]
    inputs, outputs = (
        [helper.make_tensor_value_info(port.name, kinds[port.dtype], port.shape) for port in ports]
        for ports in (network.inputs, network.outputs)
    )
    stored = [numpy_helper.from_array(array, name) for name, array in network.weights.items()]
    stored.append(numpy_helper.from_array(np.array([2]), "two"))
    graph = helper.make_graph(nodes, network.name, inputs, outputs, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


def _write_pt2(network: Network, path: Path) -> None:
    import torch

    weights = {name: torch.from_numpy(array) for name, array in network.weights.items()}

    class Images(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            hidden = torch.relu(images.mean(1).flatten(1) @ weights["first"] + weights["bias"])
            return hidden @ weights["second"]

    class Words(torch.nn.Module):
        def forward(self, ids: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
            pooled = (weights["table"][ids] * weight[..., None]).mean(1)
            return {"scores": pooled @ weights["last"], "pooled": pooled}

    free = {name: torch.export.Dim(name, min=1, max=4096) for name in ("batch", "length")}
    shapes = tuple(
        {axis: free[size] for axis, size in enumerate(port.shape) if isinstance(size, str)} for port in network.inputs
    )
    example = tuple(torch.from_numpy(array) for array in network.example(2, 3).values())
    module = Images() if network is IMAGES else Words()
    program = torch.export.export(module, example, dynamic_shapes=shapes, strict=True)
    names = {"inputs": [p.name for p in network.inputs], "outputs": [p.name for p in network.outputs]}
    torch.export.save(program, path, extra_files={"pare.ports": json.dumps(names)})


def _write_tflite(network: Network, path: Path) -> None:
    from pare.testing.tflite import Graph

    graph = Graph()
    if network is IMAGES:
        images = graph.tensor("images", (1, 4, 4, 3), marked=(-1, 4, 4, 3))
        mean = graph.mean(images, "mean", (1, 4, 4), axis=3)
        hidden = graph.fully_connected(mean, "hidden", network.weights["first"], network.weights["bias"], relu=True)
        outputs = [graph.fully_connected(hidden, "scores", network.weights["second"])]
        inputs = [images]
    else:
        ids = graph.tensor("ids", (1, 1), np.int64, marked=(-1, -1))
        weights = graph.tensor("weights", (1, 1), marked=(-1, -1))
        found = graph.gather(network.weights["table"], ids, "found", (1, 1, WIDTH))
        product = graph.multiply(found, graph.expanded(weights, "columns", (1, 1, 1)), "product", (1, 1, WIDTH))
        pooled = graph.mean(product, "pooled", (1, WIDTH), axis=1)
        outputs = [graph.fully_connected(pooled, "scores", network.weights["last"]), pooled]
        inputs = [ids, weights]
    path.write_bytes(graph.written(inputs, outputs))


WRITERS: dict[str, Callable[[Network, Path], None]] = {
    "onnx": _write_onnx,
    "pt2": _write_pt2,
    "tflite": _write_tflite,
}
