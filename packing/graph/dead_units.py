"""Units that make no difference are removed, exactly: those that nothing reads, and those that never change.

A unit is an output channel of a convolution or an output of a fully connected layer. One whose outgoing weights are all
zero is dropped. One whose incoming weights are all zero has the same value for every input; that value times its
outgoing weights goes into the next layer's biases. The way from a layer to the next may lead through activations,
pooling, flattening, depthwise convolutions, and quantize-dequantize pairs; a tensor that several nodes read (a residual
branch) is left whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx

from packing.graph.index import Index, attribute, prune_unused
from packing.graph.layers import Layer, Parameter, layer, parameter

# What becomes of a value that never changes; NaN stands for one that does. Of other functions only f(0) = 0 is used.
VALUE_STAYS = {"Identity", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"}
ZERO_STAYS = {"Tanh", "Elu", "LeakyRelu", "HardSwish", "Gelu", "Selu", "Mish", "Swish", "Abs", "QuantizeLinear"}
ZERO_STAYS |= {"DequantizeLinear", "AveragePool", "Dropout"}
POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
OTHERS = {"Sigmoid", "HardSigmoid", "Clip", "Softplus"}


@dataclass
class _Way:
    """From a layer to the next: what else has an element for each unit, and what a unit's value is if it is fixed."""

    start: Layer
    fixed: np.ndarray  # float32 [units], NaN where the value changes
    last: bool  # whether units lie along the last axis, else along axis 1 with maps behind
    flattened: bool = False
    along: list[tuple[Parameter, int]] = field(default_factory=list)  # parameters on the way, the axis of their units
    grouped: list[onnx.NodeProto] = field(default_factory=list)  # depthwise convolutions
    end: Layer | None = None


def remove_dead_units(model: onnx.ModelProto, fold: bool = True) -> int:
    """Remove them from `model` in place until none is left; returns how many units went.

    `fold`: whether units with a fixed value other than zero go too; their weights move into a bias, which then no
    longer lies on a coarse grid where it did before.
    """
    removed = 0
    while found := sum(_shrink(Index(model), node, fold) for node in model.graph.node):
        removed += found
    prune_unused(model)
    return removed


def _shrink(index: Index, node: onnx.NodeProto, fold: bool) -> int:
    """Remove the dead units of the layer that the node is; returns how many there were."""
    start = layer(index, node)
    way = _follow(index, start) if start is not None else None
    if way is None or way.end is None:
        return 0
    dead = _dead(way, way.end, fold)
    if dead.all():
        dead[0] = False  # runtimes take no layer without units
    if dead.any():
        _remove(index, way, way.end, dead)
    return int(dead.sum())


def _follow(index: Index, start: Layer) -> _Way | None:
    """The way from the layer to the next; None when it leads elsewhere."""
    rows = start.rows()
    fixed = np.where(rows.reshape(len(rows), -1).any(axis=1), np.float32(np.nan), np.float32(0))
    if start.bias is not None:
        fixed = fixed + start.bias.value
    way, name = _Way(start, fixed, last=start.node.op_type != "Conv"), start.node.output[0]
    while (node := index.reader(name)) is not None and len(node.output) == 1 and not node.domain:
        end = layer(index, node)
        if end is not None and node.input[0] == name:
            count = end.weight.value.shape[end.inputs]
            fits = count % len(fixed) == 0 if way.flattened else count == len(fixed)
            if not fits or way.last == (node.op_type == "Conv"):
                return None
            way.end = end
            return way
        if not _through(index, node, name, way):
            return None
        name = node.output[0]
    return None


def _through(index: Index, node: onnx.NodeProto, name: str, way: _Way) -> bool:
    """Take the way on through a node that keeps units apart; False for any other."""
    if node.op_type == "Add":
        return _added(index, node, name, way)
    if node.input[0] != name:
        return False
    if node.op_type == "Conv":
        return not way.last and _depthwise(index, node, way)
    if node.op_type == "Flatten":
        if attribute(node, "axis", 1) != 1 or way.start.node.op_type == "MatMul":
            return False
        way.flattened = way.flattened or not way.last
        way.last = True
        return True
    if node.op_type in POOLS and way.last:
        return False
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and _scaled_apart(index, node):
        return False
    if node.op_type == "Relu":
        way.fixed = np.maximum(way.fixed, np.float32(0))  # NaN stays
    elif node.op_type in ZERO_STAYS:
        way.fixed = np.where(way.fixed == 0, np.float32(0), np.float32(np.nan))
    elif node.op_type in OTHERS:
        way.fixed = np.full_like(way.fixed, np.nan)
    elif node.op_type not in VALUE_STAYS:
        return False
    return True


def _added(index: Index, node: onnx.NodeProto, name: str, way: _Way) -> bool:
    other = parameter(index, next((each for each in node.input if each != name), name))
    axis = _unit_axis(other, len(way.fixed), way.last)
    if other is None or axis is None:
        return False
    way.along.append((other, axis))
    way.fixed = way.fixed + other.value.reshape(-1)
    return True


def _unit_axis(other: Parameter | None, units: int, last: bool) -> int | None:
    """The axis of an added parameter that has one element for each unit and no other axis; None when there is none."""
    if other is None or not other.plain or other.value.size != units:
        return None
    from_end = 1 if last else 3  # [units] after a matrix product, [units, 1, 1] after a convolution
    axis = other.value.ndim - from_end
    return axis if axis >= 0 and other.value.shape[axis] == units else None


def _scaled_apart(index: Index, node: onnx.NodeProto) -> bool:
    return any((value := index.constant(name)) is None or value.size != 1 for name in node.input[1:])


def _depthwise(index: Index, node: onnx.NodeProto, way: _Way) -> bool:
    weight = parameter(index, node.input[1])
    bias = parameter(index, node.input[2]) if len(node.input) > 2 else None
    if weight is None or attribute(node, "group", 1) != len(way.fixed) or len(weight.value) != len(way.fixed):
        return False
    if len(node.input) > 2 and bias is None:
        return False
    silent = ~weight.value.reshape(len(weight.value), -1).any(axis=1) | (way.fixed == 0)
    way.fixed = np.where(silent, np.float32(0), np.float32(np.nan))
    way.along.append((weight, 0))
    if bias is not None:
        way.fixed = way.fixed + bias.value
        way.along.append((bias, 0))
    way.grouped.append(node)
    return True


def _dead(way: _Way, end: Layer, fold: bool) -> np.ndarray:
    """bool [units]: which can go."""
    by_unit = np.moveaxis(end.rows(), 1, 0).reshape(len(way.fixed), -1)
    plain = end.weight.plain and (end.bias is None or end.bias.plain)
    foldable = fold and plain and not end.padded and end.node.op_type != "MatMul"
    dead: np.ndarray = ~by_unit.any(axis=1) | (way.fixed == 0) | (foldable & np.isfinite(way.fixed))
    return dead


def _remove(index: Index, way: _Way, end: Layer, dead: np.ndarray) -> None:
    kept, rows = np.flatnonzero(~dead), end.rows()
    block = rows.shape[1] // len(dead)
    fixed = np.where(dead & np.isfinite(way.fixed), way.fixed, np.float32(0)).astype(np.float64)
    amount = rows.reshape(len(rows), len(dead), -1).sum(axis=2, dtype=np.float64) @ fixed
    if amount.any():
        _add_bias(index, end, amount)
    way.start.weight.keep(index, way.start.outputs, kept)
    if way.start.bias is not None:
        way.start.bias.keep(index, 0, kept)
    for other, axis in way.along:
        other.keep(index, axis, kept)
    for node in way.grouped:
        next(each for each in node.attribute if each.name == "group").i = len(kept)
    end.weight.keep(index, end.inputs, (kept[:, None] * block + np.arange(block)).reshape(-1))


def _add_bias(index: Index, end: Layer, amount: np.ndarray) -> None:
    if end.bias is not None:
        index.replace(end.bias.tensor, end.bias.value + amount)
        return
    name = index.add(f"{end.node.input[1]}_bias", amount.astype(np.float32))
    del end.node.input[2:]
    end.node.input.append(name)
