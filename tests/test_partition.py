"""Graphs cut into parts: the same answers, balance, little data across; what cannot be cut says why."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from runtimes import onnxruntime as runtime
from runtimes.base import Artifact
from serving import package, partition, pieces, profile
from serving.package import Package, PackageError, example_of
from serving.partition import Graph, PartitionError
from serving.settings import Settings

RANDOM = np.random.default_rng(0)


class Net:
    """A graph that is built node by node."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, values: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def conv(self, x: str, a: int, b: int) -> str:
        kernel = self.weight((RANDOM.standard_normal((b, a, 3, 3)) / (3 * a**0.5)).astype(np.float32))
        return self.add("Conv", x, kernel, pads=[1, 1, 1, 1])

    def linear(self, x: str, a: int, b: int) -> str:
        return self.add("MatMul", x, self.weight((RANDOM.standard_normal((a, b)) / a**0.5).astype(np.float32)))

    def made(self, inputs: dict[str, Sequence[int | str]], outputs: dict[str, str]) -> bytes:
        nodes = [*self.nodes, *(helper.make_node("Identity", [t], [name]) for name, t in outputs.items())]
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs.items()]
        gives = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
        graph = helper.make_graph(nodes, "net", ends, gives, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model).SerializeToString()


def residual(blocks: int = 4) -> bytes:
    """Convolutions with skip connections, a second output from the middle."""
    net = Net()
    x = net.conv("x", 3, 8)
    middle = x
    for i in range(blocks):
        y = net.conv(net.add("Relu", net.conv(x, 8, 8)), 8, 8)
        x = net.add("Relu", net.add("Add", x, y))
        middle = x if i == 1 else middle
    pooled = net.add("Flatten", net.add("GlobalAveragePool", x))
    return net.made({"x": ["batch", 3, 12, 12]}, {"logits": net.linear(pooled, 8, 5), "middle": middle})


def branches() -> bytes:
    """Three branches over two inputs, joined by a concatenation; one input is used first at the end."""
    net = Net()
    parts = [net.add("Relu", net.linear(net.add("Tanh", net.linear("x", 16, 32)), 32, 8)) for _ in range(3)]
    joined = net.add("Concat", *parts, "late", axis=1)
    return net.made({"x": ["batch", 16], "late": ["batch", 4]}, {"y": net.linear(joined, 28, 3)})


def attention() -> bytes:
    """Two blocks of attention whose reshapes take their sizes from the input's shape."""
    net = Net()
    x = "x"
    for _ in range(2):
        shape = net.add("Shape", x)
        flat = net.add("Reshape", x, net.weight(np.array([-1, 16], np.int64)))
        q, k, v = (net.add("Reshape", net.linear(flat, 16, 16), shape) for _ in range(3))
        scores = net.add("Softmax", net.add("MatMul", q, net.add("Transpose", k, perm=[0, 2, 1])), axis=-1)
        x = net.add("Add", x, net.add("MatMul", scores, v))
    return net.made({"x": ["batch", "length", 16]}, {"y": x})


def quantized(folder: Path) -> bytes:
    """The residual net in int8, quantize/dequantize pairs around every operator."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = 3

        def get_next(self) -> dict[str, np.ndarray] | None:
            self.left -= 1
            return {"x": RANDOM.standard_normal((2, 3, 12, 12)).astype(np.float32)} if self.left >= 0 else None

    (folder / "float.onnx").write_bytes(residual())
    quantize_static(
        folder / "float.onnx",
        folder / "int8.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return (folder / "int8.onnx").read_bytes()


def packed(content: bytes, folder: Path, name: str = "net") -> Package:
    (folder / f"{name}.onnx").write_bytes(content)
    return package.make(folder / f"{name}.onnx", name, "onnxruntime")


def chained(found: Sequence[Package], inputs: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = dict(inputs)
    for index, each in enumerate(found):
        arrays = pieces.load(each, folder / f"part{index}").compute(arrays)
    return arrays


def scaled() -> bytes:
    """The batch's size, a number without an axis, is used again at the end."""
    net = Net()
    rows = net.add("Gather", net.add("Shape", "x"), net.weight(np.array(0, np.int64)))
    y = net.add("Relu", net.linear(net.add("Relu", net.linear("x", 16, 16)), 16, 16))
    return net.made({"x": ["batch", 16]}, {"y": net.add("Div", y, net.add("Cast", rows, to=TensorProto.FLOAT))})


NETS: dict[str, Callable[[], bytes]] = {
    "scaled": scaled,
    "residual": residual,
    "branches": branches,
    "attention": attention,
}


@pytest.mark.parametrize("balance", ["time", "memory"])
@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("net", NETS)
def test_the_parts_answer_as_the_whole_for_any_batch(net: str, parts: int, balance: str, tmp_path: Path) -> None:
    made = packed(NETS[net](), tmp_path)
    found = pieces.cut(made, Settings("net", balance=balance), parts)
    assert len(found) == parts
    whole = runtime.load(Artifact.of(tmp_path / "net.onnx"), 1)
    for rows in (1, 3, 8):
        inputs = example_of(made.about.inputs, rows, 5)
        answers = chained(found, inputs, tmp_path)
        for name, wanted in whole.run(inputs).items():
            np.testing.assert_allclose(answers[name], wanted, atol=1e-5, rtol=1e-5)


def test_int8_parts_answer_exactly_and_hand_on_bytes(tmp_path: Path) -> None:
    made = packed(quantized(tmp_path), tmp_path)
    found = pieces.cut(made, Settings("net"), 3)
    whole = runtime.load(Artifact.of(tmp_path / "net.onnx"), 1)
    inputs = {"x": RANDOM.standard_normal((64, 3, 12, 12)).astype(np.float32)}
    answers = chained(found, inputs, tmp_path)
    for name, wanted in whole.run(inputs).items():
        np.testing.assert_array_equal(answers[name], wanted)
    arrays = pieces.load(found[0], tmp_path / "first").compute(inputs)
    assert any(value.dtype == np.uint8 for value in arrays.values())


def test_a_cut_within_fused_integer_operators_is_refused_where_nothing_else_is_there() -> None:
    net = Net()
    scale, zero = net.weight(np.array(0.1, np.float32)), net.weight(np.array(128, np.uint8))
    x = net.add("DequantizeLinear", net.add("QuantizeLinear", "x", scale, zero), scale, zero)
    y = net.add("Relu", net.linear(x, 4, 4))
    y = net.add("DequantizeLinear", net.add("QuantizeLinear", y, scale, zero), scale, zero)
    content = net.made({"x": ["batch", 4]}, {"y": y})
    graph = Graph(content)
    able = [at for at in range(1, len(graph.nodes)) if graph.allowed(at)]
    assert [graph.living(at) for at in able] == [["t0"], ["t4"]]  # the two quantized tensors
    with pytest.raises(PartitionError, match="only 2 places can be cut"):
        partition.places(graph, 4, np.ones(len(graph.nodes)), {})


def test_memory_is_balanced_and_a_limit_gives_the_fewest_parts(tmp_path: Path) -> None:
    net = Net()
    x = "x"
    for _ in range(8):
        x = net.add("Relu", net.linear(x, 64, 64))
    made = packed(net.made({"x": ["batch", 64]}, {"y": x}), tmp_path)
    found = pieces.cut(made, Settings("net", balance="memory"), 4)
    sizes = [len(each.content) for each in found]
    assert max(sizes) < 1.3 * min(sizes)
    made.write(tmp_path / "picked")
    limit = Settings("net", model=str(tmp_path / "picked"), max_part_mb=0.035)
    assert pieces.count(limit) == 4  # two matrices of 16 KB each
    with pytest.raises(PartitionError, match="one operator's weights alone are larger"):
        pieces.count(Settings("net", model=str(tmp_path / "picked"), max_part_mb=0.01))


def test_time_and_bytes_are_those_of_the_nodes() -> None:
    net = Net()
    small = net.linear("x", 8, 8)
    large = net.linear(net.linear(small, 8, 2048), 2048, 2048)
    graph = Graph(net.made({"x": ["batch", 8]}, {"y": large}))
    inputs = {"x": np.ones((4, 8), np.float32)}
    spent = profile.node_ms(graph, inputs)
    assert spent.argmax() == 2
    assert profile.tensor_bytes(graph, inputs)["t1"] == 4 * 2048 * 4


@given(
    st.lists(st.floats(0.01, 10), min_size=2, max_size=12),
    st.lists(st.integers(1, 1000), min_size=12, max_size=12),
    st.integers(2, 4),
)
@settings(max_examples=60)
def test_no_other_cut_is_better(costs: list[float], crossing: list[int], parts: int) -> None:
    count = len(costs)
    if parts > count:
        return
    net = Net()
    x = "x"
    for _ in costs[:-1]:
        x = net.add("Relu", x)
    graph = Graph(net.made({"x": ["batch", 2]}, {"y": x}))
    sizes = {f"t{i}": crossing[i] for i in range(count)}
    found = partition.places(graph, parts, np.array(costs), sizes)

    def worst(cuts: Sequence[int]) -> float:
        return max(sum(costs[a:b]) for a, b in itertools.pairwise([0, *cuts, count]))

    def crosses(cuts: Sequence[int]) -> int:
        return sum(crossing[cut - 1] for cut in cuts)

    every = list(itertools.combinations(range(1, count), parts - 1))
    best = min(map(worst, every))
    assert worst(found) <= best * partition.NEAR + 1e-9
    assert crosses(found) <= min(crosses(cuts) for cuts in every if worst(cuts) <= best * partition.NEAR - 1e-9)


def test_what_cannot_be_cut_says_why(tmp_path: Path) -> None:
    net = Net()
    content = net.made({"x": ["batch", 2]}, {"y": net.add("Relu", "x")})
    with pytest.raises(PackageError, match="has only 2 nodes"):
        pieces.cut(packed(content, tmp_path), Settings("net"), 3)
    other = packed(content, tmp_path)
    other = Package(package.About("n", "", "tflite", "litert", (), ()), b"", {}, None)
    with pytest.raises(PackageError, match=r"only an ONNX file can be cut, and this is \.tflite"):
        pieces.cut(other, Settings("net"), 2)
    constant = Net()
    content = constant.made({"x": ["batch", 2]}, {"y": constant.add("Relu", constant.weight(np.ones(3, np.float32)))})
    with pytest.raises(PartitionError, match="does not depend on the inputs"):
        Graph(content)
