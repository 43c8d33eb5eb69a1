"""Smaller graphs compute the same: on whole numbers to the bit, because their sums are exact in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from packing.graph.channel_steps import split_channel_steps
from packing.graph.dead_units import remove_dead_units
from packing.graph.implied import drop_defaults, flatten_reshapes, positive_zeros
from packing.graph.integers import store_integers
from packing.graph.names import shorten
from packing.graph.smaller import smaller
from packing.pack import pack
from tests.onnx_graphs import outputs, random_model


@given(st.integers(0, 10_000), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_any_network_on_whole_numbers_keeps_every_bit(seed: int, integers: bool, fold: bool) -> None:
    model = random_model(seed, whole=True)
    kept = model.SerializeToString()
    made, about = smaller(model, integers=integers, fold=fold)
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_array_equal(outputs(made, whole=True), outputs(model, whole=True))
    assert about == {"seed": "of a test"}
    assert model.SerializeToString() == kept, "the model given was changed"


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_any_network_keeps_its_outputs_to_rounding(seed: int) -> None:
    model = random_model(seed)
    np.testing.assert_allclose(outputs(smaller(model)[0]), outputs(model), rtol=1e-4, atol=1e-4)


Node = tuple[str, list[str], str, dict[str, Any]]  # kind, inputs, output, attributes


def whole(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Whole numbers other than zero."""
    return (rng.integers(1, 4, shape) * rng.choice([-1, 1], shape)).astype(np.float32)


def network(nodes: list[Node], **stored: np.ndarray) -> onnx.ModelProto:
    """Input `image` float32 [batch, 2, 8, 8], output `logits`."""
    made = [helper.make_node(kind, inputs, [out], **attributes) for kind, inputs, out, attributes in nodes]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 2, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "any"])
    tensors = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph(made, "network", [image], [logits], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return model


LENET: list[Node] = [
    ("Conv", ["image", "w1", "b1"], "a", {}),
    ("Relu", ["a"], "b", {}),
    ("MaxPool", ["b"], "c", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("Conv", ["c", "w2", "b2"], "d", {}),
    ("Relu", ["d"], "e", {}),
    ("Flatten", ["e"], "f", {}),
    ("Gemm", ["f", "w3", "b3"], "g", {"transB": 1}),
    ("Relu", ["g"], "h", {}),
    ("Gemm", ["h", "w4", "b4"], "logits", {"transB": 1}),
]


def lenet(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = {
        "w1": whole(rng, 6, 2, 3, 3),
        "w2": whole(rng, 5, 6, 3, 3),
        "w3": whole(rng, 7, 5),
        "w4": whole(rng, 4, 7),
    }
    return weights | {f"b{i}": whole(rng, len(weights[f"w{i}"])) for i in range(1, 5)}


def widths(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def shrunk(model: onnx.ModelProto, fold: bool = True) -> tuple[onnx.ModelProto, int]:
    """(without its dead units, how many went); what it computes is compared first."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    removed = remove_dead_units(made, fold)
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_array_equal(outputs(made, whole=True), outputs(model, whole=True))
    return made, removed


def test_units_that_nothing_reads_go() -> None:
    weights = lenet()
    weights["w2"][:, [1, 4]] = 0
    weights["w3"][:, 2] = 0
    weights["w4"][:, [0, 6]] = 0
    made, removed = shrunk(network(LENET, **weights))
    assert removed == 5
    assert widths(made)["w1"] == (4, 2, 3, 3)
    assert widths(made)["w2"] == (4, 4, 3, 3)
    assert widths(made)["w3"] == (5, 4)
    assert widths(made)["w4"] == (4, 5)


def test_units_that_never_change_go_into_the_next_bias() -> None:
    """Through a ReLU: a negative bias becomes nothing, a positive one is added."""
    weights = lenet()
    weights["w1"][[0, 3]] = 0
    weights["b1"][[0, 3]] = (-2, 3)
    weights["w3"][[1, 2]] = 0
    weights["b3"][[1, 2]] = (5, -1)
    made, removed = shrunk(network(LENET, **weights))
    assert removed == 4
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    np.testing.assert_array_equal(stored["b2"], weights["b2"] + 3 * weights["w2"][:, 3].sum(axis=(1, 2)))
    np.testing.assert_array_equal(stored["b4"], weights["b4"] + 5 * weights["w4"][:, 1])
    kept, few = shrunk(network(LENET, **weights), fold=False)
    assert few == 2, "only those whose value is 0"
    assert widths(kept)["w4"] == (4, 6)


def test_what_dies_with_a_unit_goes_too() -> None:
    """A unit that only dead units read is dead: found in as many rounds as it takes."""
    weights = lenet()
    weights["w4"][:, 3] = 0  # so unit 3 of w3 is not read
    weights["w3"][[0, 1, 2, 4, 5, 6], 2] = 0  # and is the only one that reads channel 2 of w2
    assert shrunk(network(LENET, **weights))[1] == 2


def test_a_map_that_is_flattened_loses_all_its_inputs() -> None:
    nodes: list[Node] = [*LENET[:5], ("Flatten", ["e"], "f", {}), ("Gemm", ["f", "w3", "b3"], "logits", {"transB": 0})]
    nodes[2] = ("Identity", ["b"], "c", {})
    weights = lenet()
    weights["w3"] = whole(np.random.default_rng(1), 5 * 16, 3)
    weights["b3"] = weights["b3"][:3]
    weights["w2"][3] = 0
    made, removed = shrunk(network(nodes, **{name: value for name, value in weights.items() if name[1] != "4"}))
    assert removed == 1
    assert widths(made)["w3"] == (4 * 16, 3)


def test_a_constant_that_meets_padding_stays() -> None:
    """At the border the next convolution reads zeros and not the constant: no bias can say that."""
    nodes: list[Node] = list(LENET)
    nodes[3] = ("Conv", ["c", "w2", "b2"], "d", {"pads": [1, 1, 1, 1]})
    nodes[5:] = [("GlobalMaxPool", ["e"], "p", {}), ("Flatten", ["p"], "f", {}), *LENET[6:]]
    weights = lenet()
    weights["w1"][[0, 3]] = 0
    weights["b1"][[0, 3]] = (-2, 3)
    assert shrunk(network(nodes, **weights))[1] == 1


def test_depthwise_convolutions_shrink_with_their_channels() -> None:
    nodes: list[Node] = [*LENET[:2], ("Conv", ["b", "wd", "bd"], "c", {"group": 6, "pads": [1, 1, 1, 1]}), *LENET[3:5]]
    nodes += [("GlobalMaxPool", ["e"], "p", {}), ("Flatten", ["p"], "f", {}), *LENET[6:]]
    rng = np.random.default_rng(2)
    weights = lenet() | {"wd": whole(rng, 6, 1, 3, 3), "bd": whole(rng, 6)}
    weights["w2"][:, 5] = 0  # not read
    weights["w1"][1], weights["b1"][1] = 0, -1  # zero before it, so its bias after it
    weights["wd"][2] = 0  # only its bias after it
    weights["w1"][3], weights["b1"][3] = 0, 4  # a constant before it, but padding makes it none after it
    made, removed = shrunk(network(nodes, **weights))
    assert removed == 3
    assert widths(made)["wd"] == (3, 1, 3, 3)
    group = next(a.i for node in made.graph.node for a in node.attribute if a.name == "group")
    assert group == 3


def test_a_residual_branch_is_left_whole() -> None:
    nodes: list[Node] = [
        ("Conv", ["image", "w1", "b1"], "a", {"pads": [1, 1, 1, 1]}),
        ("Conv", ["a", "w2"], "c", {"pads": [1, 1, 1, 1]}),
        ("Add", ["a", "c"], "d", {}),
        ("GlobalMaxPool", ["d"], "e", {}),
        ("Flatten", ["e"], "f", {}),
        ("Gemm", ["f", "w3"], "logits", {"transB": 1}),
    ]
    rng = np.random.default_rng(0)
    weights = {"w1": whole(rng, 6, 2, 3, 3), "b1": whole(rng, 6), "w2": whole(rng, 6, 6, 3, 3), "w3": whole(rng, 4, 6)}
    weights["w3"][:, 0] = weights["w1"][1] = weights["w2"][2] = 0
    assert shrunk(network(nodes, **weights))[1] == 0


def test_a_tensor_that_leaves_the_graph_keeps_its_width() -> None:
    weights = lenet()
    weights["w4"][:, 0] = 0
    model = network(LENET, **weights)
    model.graph.output.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, None))
    assert remove_dead_units(model) == 0


def test_quantized_layers_lose_dead_units_with_their_scales() -> None:
    """int8 weights with a scale per channel, int32 biases, activations quantized between the layers."""
    rng = np.random.default_rng(0)
    nodes: list[Node] = [
        ("DequantizeLinear", ["q1", "s1"], "w1", {"axis": 0}),
        ("DequantizeLinear", ["i1", "s2"], "b1", {"axis": 0}),
        ("Conv", ["image", "w1", "b1"], "a", {}),
        ("Relu", ["a"], "b", {}),
        ("QuantizeLinear", ["b", "one", "zero"], "c", {}),
        ("DequantizeLinear", ["c", "one", "zero"], "d", {}),
        ("Flatten", ["d"], "e", {}),
        ("DequantizeLinear", ["q2", "one"], "w2", {}),
        ("Gemm", ["e", "w2"], "logits", {"transB": 1}),
    ]
    stored: dict[str, np.ndarray] = {
        "q1": whole(rng, 6, 2, 3, 3).astype(np.int8),
        "i1": whole(rng, 6).astype(np.int32),
        "s1": np.array([1, 2, 1, 0.5, 1, 2], np.float32),
        "s2": np.array([1, 2, 1, 0.5, 1, 2], np.float32),
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
        "q2": whole(rng, 4, 6 * 36).astype(np.int8),
    }
    stored["q1"][1], stored["i1"][1] = 0, -3  # zero after the ReLU
    stored["q1"][4], stored["i1"][4] = 0, 3  # a constant that int32 cannot take up exactly: it stays
    stored["q2"][:, 3 * 36 : 4 * 36] = 0
    model = network(nodes, **stored)
    assert remove_dead_units(model) == 0, "`one` serves two tensors"
    stored["two"] = stored["one"]
    nodes[7] = ("DequantizeLinear", ["q2", "two"], "w2", {})
    made, removed = shrunk(network(nodes, **stored))
    assert removed == 2
    assert widths(made)["s1"] == widths(made)["s2"] == (4,)
    assert widths(made)["q2"] == (4, 4 * 36)


def test_names_are_short_and_inputs_keep_theirs() -> None:
    model = network(LENET, **lenet())
    model.producer_name, model.doc_string = "someone", "of no use"
    helper.set_model_props(model, {"recipe": "{}"})
    assert shorten(model) == {"recipe": "{}"}
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["image", "logits"]
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}
    assert {len(name) for name in names - {"image", "logits"}} == {1}
    assert (model.producer_name, model.doc_string, len(model.metadata_props)) == ("", "", 0)


def test_names_inside_branches_are_renamed_with_the_others() -> None:
    """A branch reads a tensor from outside; its own tensors have names that no other graph has."""
    branch = [
        helper.make_graph([helper.make_node(kind, ["doubled_value"], ["inside"])], kind, [], [])
        for kind in ("Abs", "Neg")
    ]
    for graph in branch:
        graph.output.append(helper.make_tensor_value_info("inside", TensorProto.FLOAT, None))
    nodes = [
        helper.make_node("Add", ["image", "image"], ["doubled_value"]),
        helper.make_node("If", ["condition_name"], ["logits"], then_branch=branch[0], else_branch=branch[1]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 2, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(np.array(False), "condition_name")]
    model = helper.make_model(helper.make_graph(nodes, "g", [image], [logits], stored))
    model.ir_version = 10
    before = outputs(model)
    shorten(model)
    assert b"_name" not in model.SerializeToString()
    assert b"doubled" not in model.SerializeToString()
    np.testing.assert_array_equal(outputs(model), before)


def test_attributes_that_say_nothing_go() -> None:
    model = network(LENET, **lenet())
    explicit = {"strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4, "group": 1, "kernel_shape": [3, 3]}
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.attribute.extend(helper.make_attribute(name, value) for name, value in explicit.items())
        if node.op_type == "Gemm":
            node.attribute.extend(
                helper.make_attribute(name, value) for name, value in {"alpha": 1.0, "beta": 1.0}.items()
            )
    before = outputs(model, whole=True)
    drop_defaults(model)
    said = {attribute.name for node in model.graph.node for attribute in node.attribute}
    assert said == {"transB", "kernel_shape", "strides"}  # the last two are the pooling's
    np.testing.assert_array_equal(outputs(model, whole=True), before)


@pytest.mark.parametrize(
    ("shape", "flat"), [([-1, 128], True), ([0, 128], True), ([0, -1], True), ([-1, 64], False), ([2, 64], False)]
)
def test_only_a_reshape_that_flattens_becomes_one(shape: list[int], flat: bool) -> None:
    nodes: list[Node] = [("Reshape", ["image", "shape"], "x", {}), ("Identity", ["x"], "logits", {})]
    model = network(nodes, shape=np.array(shape, np.int64))
    flatten_reshapes(model)
    assert (model.graph.node[0].op_type == "Flatten") == flat
    assert ("shape" in widths(model)) != flat


def test_integers_are_stored_as_such_and_floats_stay() -> None:
    weights = lenet()
    weights["w1"] = (weights["w1"] * np.float32(np.float16(0.3))).astype(np.float32)
    weights["w3"] = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    model = network(LENET, **weights)
    before, exact = outputs(model), outputs(model, whole=True)
    assert store_integers(model, smallest=20) == 3
    onnx.checker.check_model(model, full_check=True)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types["w1_int8"] == types["w2_int8"] == types["w4_int8"] == TensorProto.INT8
    assert types["w3"] == TensorProto.FLOAT
    np.testing.assert_array_equal(outputs(model, whole=True), exact)  # the dequantization folded when it is loaded
    np.testing.assert_allclose(outputs(model), before, rtol=1e-5)  # ONNX Runtime's other kernels for such layers


def test_weights_of_a_matmul_stay_floats() -> None:
    """ONNX Runtime makes a MatMulNBits of a MatMul with dequantized weights, and that rounds what it multiplies."""
    weights = lenet()
    nodes = [*LENET[:-1], ("MatMul", ["h", "w4"], "logits", {})]
    model = network(nodes, **weights | {"w4": weights["w4"].T})
    assert store_integers(model, smallest=1) == 6
    assert "w4" in widths(model)


def test_zeros_of_layers_lose_their_sign_and_divisors_keep_theirs() -> None:
    weights = lenet()
    weights["w1"][0] = -0.0
    nodes: list[Node] = [
        *LENET[:-1],
        ("Gemm", ["h", "w4", "b4"], "y", {"transB": 1}),
        ("Div", ["y", "zero"], "logits", {}),
    ]
    model = network(nodes, **weights, zero=np.array(-0.0, np.float32))
    before = outputs(model)
    positive_zeros(model)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert not np.signbit(stored["w1"][0]).any()
    assert np.signbit(stored["zero"])
    np.testing.assert_array_equal(outputs(model), before)


def folded(rng: np.random.Generator, biased: bool, grids: bool = True) -> onnx.ModelProto:
    """Two convolutions as an exporter leaves them: weights on one grid times a normalization's factor per channel."""
    stored: dict[str, np.ndarray] = {}
    for name, shape in (("w1", (12, 2, 3, 3)), ("w2", (8, 12, 3, 3))):
        integers = rng.integers(-3, 4, shape) * (rng.random(shape) < 0.3)
        step = np.float32(0.0371) if grids else rng.standard_normal(shape).astype(np.float32)
        stored[name] = (integers.astype(np.float32) * step) * rng.lognormal(size=(shape[0], 1, 1, 1)).astype(np.float32)
    stored |= {"b1": rng.standard_normal(12).astype(np.float32), "b2": rng.standard_normal(8).astype(np.float32)}
    nodes: list[Node] = [
        ("Conv", ["image", "w1", "b1"] if biased else ["image", "w1"], "c1", {}),
        ("Relu", ["c1"], "r1", {}),
        ("Conv", ["r1", "w2", "b2"] if biased else ["r1", "w2"], "c2", {}),
        ("Flatten", ["c2"], "logits", {}),
    ]
    kept = {name: value for name, value in stored.items() if biased or name.startswith("w")}
    return network(nodes, **kept)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_a_grid_per_channel_becomes_one_of_integers(seed: int, biased: bool) -> None:
    rng = np.random.default_rng(seed)
    model = folded(rng, biased)
    made, _ = smaller(model, fold=False, steps=True)
    before, after = outputs(model), outputs(made)
    assert np.abs(before - after).max() <= 2e-3 * np.abs(before).max()
    weights = [numpy_helper.to_array(t) for t in made.graph.initializer if len(t.dims) == 4]
    assert all((value == np.rint(value)).all() and np.abs(value).max() <= 3 for value in weights)
    plain, _ = smaller(model, fold=False)
    assert len(pack(made.SerializeToString())) < 0.75 * len(pack(plain.SerializeToString()))


def test_weights_on_one_grid_or_none_stay_as_they_are() -> None:
    rng = np.random.default_rng(0)
    model = folded(rng, True, grids=False)
    assert split_channel_steps(model) == 0
    for name, value in {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) == 4}.items():
        whole_numbers = (np.rint(3 * np.tanh(value)) + 0.0).astype(np.float32) * np.float32(0.25)  # no -0.0
        next(t for t in model.graph.initializer if t.name == name).CopyFrom(
            numpy_helper.from_array(whole_numbers, name)
        )
    assert split_channel_steps(model) == 0
