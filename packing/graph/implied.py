"""What a graph need not say: attributes with the value they have anyway, shapes that follow from the input's."""

from __future__ import annotations

import math

import numpy as np
import onnx

from packing.graph.index import Index, attribute, prune_unused
from packing.graph.names import graphs

# Their defaults depend on the rank and are in the operators' documentation, not in the schema.
LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_WINDOWS = {"Conv", "MaxPool", "AveragePool", "LpPool", "ConvTranspose"}


def drop_defaults(model: onnx.ModelProto) -> None:
    """Remove attributes that have their operator's default value; in place."""
    versions = {opset.domain: opset.version for opset in model.opset_import}
    for graph in graphs(model.graph):
        stored = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            kept = [one for one in node.attribute if not _is_default(node, one, versions, stored)]
            if len(kept) < len(node.attribute):
                del node.attribute[:]
                node.attribute.extend(kept)


def _is_default(
    node: onnx.NodeProto, one: onnx.AttributeProto, versions: dict[str, int], stored: dict[str, onnx.TensorProto]
) -> bool:
    if node.domain or one.ref_attr_name or not onnx.defs.has(node.op_type, versions.get("", 1), ""):
        return False
    value = onnx.helper.get_attribute_value(one)
    if node.op_type in _WINDOWS and one.name in ("strides", "dilations"):
        return all(n == 1 for n in value)
    if node.op_type in _WINDOWS and one.name == "pads":
        return not any(value)
    if node.op_type == "Conv" and one.name == "kernel_shape" and node.input[1] in stored:
        return list(value) == list(stored[node.input[1]].dims[2:])
    schema = onnx.defs.get_schema(node.op_type, versions.get("", 1), "").attributes.get(one.name)
    if schema is None or not schema.default_value.type or schema.default_value.type != one.type:
        return False
    return bool(value == onnx.helper.get_attribute_value(schema.default_value))


def flatten_reshapes(model: onnx.ModelProto) -> None:
    """Reshape to [batch, everything else] becomes Flatten, which says no width and needs no stored shape; in place."""
    try:
        shapes = _shapes(model)
    except onnx.shape_inference.InferenceError:
        return
    index = Index(model)
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.domain or attribute(node, "allowzero", 0):
            continue
        wanted, shape = index.constant(node.input[1]), shapes.get(node.input[0])
        if wanted is None or shape is None or len(shape) < 2 or not _is_flat(wanted, shape):
            continue
        node.op_type = "Flatten"
        del node.input[1:]
        del node.attribute[:]
    prune_unused(model)


def _is_flat(wanted: np.ndarray, shape: list[int | None]) -> bool:
    """Whether a tensor of `shape` (None: not known), reshaped as `wanted`, keeps its first axis and joins the rest."""
    if wanted.shape != (2,):
        return False
    first, rest = int(wanted[0]), int(wanted[1])
    known = all(n is not None for n in shape[1:])
    size = math.prod(n for n in shape[1:] if n is not None) if known else None
    same_first = first == 0 or (first > 0 and first == shape[0]) or (first == -1 and size is not None and rest == size)
    same_rest = (rest == -1 and first != -1) or (size is not None and rest == size)
    return bool(same_first and same_rest)


def _shapes(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """Name -> its axes' lengths, None for one that is not known, of every tensor whose rank is known."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def positive_zeros(model: onnx.ModelProto) -> None:
    """Zeros of layers' weights that have a sign (a mask times a negative weight gives them) lose it; in place.

    Sums of products are the same; a file with one kind of zero is much shorter when it is compressed.
    """
    index = Index(model)
    for tensor in model.graph.initializer:
        readers = {node.op_type for node in index.readers.get(tensor.name, [])}
        value = index.constant(tensor.name) if readers and readers <= LAYERS else None
        if value is not None and value.dtype.kind == "f" and (np.signbit(value) & (value == 0)).any():
            index.replace(tensor.name, value + np.zeros((), value.dtype))
