"""An ONNX file with real answers and no training code: convolutions, and a head that was fitted by least squares."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tasks.base import Task, TaskSpec
from tasks.load import load

SIDE, CLASSES = 12, 4


@dataclass
class Told:
    """A timer that says what it was told to say, in turn; `asked`: how many files each time."""

    seconds: list[list[float]]
    target: str = "a test"
    asked: list[int] = field(default_factory=list)

    def __call__(self, files: Sequence[Path]) -> list[float]:
        self.asked.append(len(files))
        return self.seconds.pop(0)


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [count, 1, 12, 12], int64 [count]: a bright bar in one of four places, with noise."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, count)
    found = draw.normal(0, 0.4, (count, 1, SIDE, SIDE)).astype(np.float32)
    for index, label in enumerate(labels):
        start = draw.integers(0, 2) + 6 * (label % 2)
        rows = slice(start, start + 4)
        if label < 2:
            found[index, 0, rows] += 1.0
        else:
            found[index, 0, :, rows] += 1.0
    return found, labels


def network(folder: Path) -> Path:
    """Convolution, batch norm, ReLU, convolution, ReLU, pooling, two matrices; 4 scores."""
    draw = np.random.default_rng(0)
    weights = {
        "w1": draw.normal(0, 0.5, (16, 1, 3, 3)),
        "scale": draw.uniform(0.5, 1.5, 16),
        "shift": draw.normal(0, 0.1, 16),
        "mean": draw.normal(0, 0.1, 16),
        "variance": draw.uniform(0.5, 1.5, 16),
        "w2": draw.normal(0, 0.1, (32, 16, 3, 3)),
        "b2": draw.normal(0, 0.1, 32),
        "w3": draw.normal(0, 0.05, (64, 288)),
        "b3": draw.normal(0, 0.1, 64),
    }
    images, labels = pictures(2000, 99)
    features = _run(_model(weights, "features", (64,)), images)
    wide = np.concatenate([features, np.ones((len(features), 1))], 1)
    head = np.linalg.lstsq(wide.T @ wide + 1e-2 * np.eye(65), wide.T @ np.eye(CLASSES)[labels], rcond=None)[0]
    file = folder / "bars.onnx"
    onnx.save(_model(weights | {"w4": 5 * head[:64], "b4": 5 * head[64]}, "logits", (CLASSES,)), file)
    return file


def _model(weights: dict[str, np.ndarray], output: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1"], ["a"], name="conv1", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["b"], name="norm"),
        node("Relu", ["b"], ["c"], name="relu1"),
        node("Conv", ["c", "w2", "b2"], ["d"], name="conv2", pads=[1, 1, 1, 1]),
        node("Relu", ["d"], ["e"], name="relu2"),
        node("MaxPool", ["e"], ["f"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["f"], ["g"], name="flatten"),
        node("Gemm", ["g", "w3", "b3"], ["h"], name="wide", transB=1),
        node("Relu", ["h"], ["features"], name="relu3"),
    ]
    if "w4" in weights:
        nodes.append(node("Gemm", ["features", "w4", "b4"], ["logits"], name="head"))
    graph = helper.make_graph(
        nodes,
        "bars",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", *shape])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)


def _run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    found: np.ndarray = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": images})[0]
    return found


def bars(targets: bool = True) -> Task:
    """The task: the file with 300 training, 200 validation and 100 test pictures; without targets, agreement."""
    folder = Path(tempfile.mkdtemp(prefix="pare-bars-"))
    network(folder)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 300), ("val", 200), ("test", 100)):
        images, labels = pictures(count, count)
        arrays |= {f"{split}_x": images} | ({f"{split}_y": labels} if targets else {})
    np.savez(folder / "bars.npz", **arrays)
    return load(TaskSpec(model="bars.onnx", data="npz:bars.npz", folder=str(folder)), folder / "cache")
