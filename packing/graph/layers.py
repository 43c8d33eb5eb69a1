"""Layers with weights in an ONNX graph: Conv, Gemm and MatMul, whose weights are plain or dequantized in front."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from packing.graph.index import Index, attribute

_STORED = ("float32", "int8", "uint8", "int32")


@dataclass
class Parameter:
    """A weight or a bias. `value`: float32, as the layer reads it; `tensor`: the initializer with its elements.

    `scales`: the initializers of scale and zero point that have one element for each index along `axis`.
    """

    value: np.ndarray
    tensor: str
    plain: bool = True
    axis: int = 0
    scales: tuple[str, ...] = ()

    def keep(self, index: Index, axis: int, kept: np.ndarray) -> None:
        """Leave only the elements `kept`, int [M], along `axis`."""
        stored = index.constant(self.tensor)
        assert stored is not None
        index.replace(self.tensor, stored.take(kept, axis))
        for name in self.scales if axis == self.axis else ():
            scale = index.constant(name)
            assert scale is not None
            index.replace(name, scale.take(kept, 0))


def parameter(index: Index, name: str) -> Parameter | None:
    """The parameter that `name` is; None when it is computed, a graph's input, or read by several nodes."""
    if index.reader(name) is None:
        return None
    value = index.constant(name)
    if value is not None:
        return Parameter(value, name) if value.dtype == np.float32 else None
    node = index.maker.get(name)
    if node is None or node.op_type != "DequantizeLinear" or attribute(node, "block_size", 0):
        return None
    parts = [index.constant(part) for part in node.input]
    alone = all(index.reader(part) is not None for part in node.input)
    if not alone or any(part is None or part.dtype.name not in _STORED for part in parts):
        return None
    integers, scale, *zero = (np.asarray(part, np.float32) for part in parts)
    axis = int(str(attribute(node, "axis", 1))) % max(1, integers.ndim)
    if scale.ndim > 1 or (scale.ndim == 1 and scale.shape[0] != integers.shape[axis]):
        return None
    along = [-1 if place == axis and scale.ndim else 1 for place in range(integers.ndim)]
    point = zero[0].reshape(along) if zero else np.float32(0)
    value = (integers - point) * scale.reshape(along)
    return Parameter(value, node.input[0], False, axis, tuple(node.input[1:]) if scale.ndim else ())


@dataclass
class Layer:
    """A layer with units at both ends. `weight.value` has its outputs along `outputs`, its inputs along `inputs`.

    `blocks`: how many neighbouring inputs belong to one unit of the layer before (where its map was flattened).
    """

    node: onnx.NodeProto
    weight: Parameter
    bias: Parameter | None
    outputs: int
    inputs: int

    @property
    def padded(self) -> bool:
        """Whether it reads zeros around a map."""
        padding = attribute(self.node, "auto_pad", b"NOTSET")
        return any(attribute(self.node, "pads", ())) or padding not in (b"NOTSET", b"VALID")  # type: ignore[arg-type]

    def rows(self) -> np.ndarray:
        """float32 [outputs, inputs, ...]."""
        return np.moveaxis(self.weight.value, (self.outputs, self.inputs), (0, 1))


def layer(index: Index, node: onnx.NodeProto) -> Layer | None:
    """The layer that the node is; None for other nodes, grouped convolutions, weights that are shared or computed."""
    axes = {"Conv": (0, 1), "Gemm": (0, 1) if attribute(node, "transB", 0) else (1, 0), "MatMul": (1, 0)}
    if node.op_type not in axes or node.domain or attribute(node, "group", 1) != 1:
        return None
    if any(attribute(node, name, plain) != plain for name, plain in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))):
        return None
    weight = parameter(index, node.input[1])
    if weight is None or (node.op_type == "MatMul" and weight.value.ndim != 2):
        return None
    bias = parameter(index, node.input[2]) if len(node.input) > 2 and node.input[2] else None
    has_bias = len(node.input) > 2 and bool(node.input[2])
    if has_bias and (bias is None or bias.value.shape != (weight.value.shape[axes[node.op_type][0]],)):
        return None
    return Layer(node, weight, bias, *axes[node.op_type])
