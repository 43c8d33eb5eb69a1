"""An ONNX graph as it is stored: named axes, no traces of its making, and nothing that a runtime would make worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from tasks.base import Port

SHARED_BYTES = 1024  # equal tensors below this are kept: a few bytes, and some runtimes want scales to be separate
LAYERS = {"Conv", "ConvTranspose", "Gemm"}


def described(
    model: onnx.ModelProto, about: Mapping[str, str], inputs: Sequence[Port] = (), outputs: Sequence[Port] = ()
) -> onnx.ModelProto:
    """`model` with `about` as its metadata, without traces of how it was made, each large tensor stored once."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    for values, ports in ((graph.input, inputs), (graph.output, outputs)):
        for value, port in zip(values, ports, strict=False):
            _name_axes(value, port)
    _share_tensors(graph)
    _guard_float_layers(graph)
    _separate_zero_points(graph)
    onnx.helper.set_model_props(model, dict(about))
    return model


def _name_axes(value: onnx.ValueInfoProto, port: Port) -> None:
    for axis, size in zip(value.type.tensor_type.shape.dim, port.shape, strict=False):
        if isinstance(size, str):
            axis.dim_param = size


def _share_tensors(graph: onnx.GraphProto) -> None:
    """Store a tensor that several initializers hold (tied weights) once; one that is another's transpose as that."""
    kept: dict[tuple[object, ...], str] = {}
    replaced: dict[str, str] = {}
    transposes, initializers = [], []
    for tensor in graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        key, turned = _content(array), _content(array.T) if array.ndim == 2 else None
        if array.nbytes < SHARED_BYTES:
            initializers.append(tensor)
        elif key in kept:
            replaced[tensor.name] = kept[key]
        elif turned in kept:
            transposes.append(onnx.helper.make_node("Transpose", [kept[turned]], [tensor.name], perm=[1, 0]))
        else:
            kept[key] = tensor.name
            initializers.append(tensor)
    if len(initializers) == len(graph.initializer):
        return
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    nodes = [*transposes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for node in graph.node:
        node.input[:] = [replaced.get(name, name) for name in node.input]


def _guard_float_layers(graph: onnx.GraphProto) -> None:
    """Put a copy between a dequantized input and a layer with float weights, so that the weights stay float.

    ONNX Runtime otherwise makes them int8 with one scale per tensor (its WeightBiasQuantization): less accurate than
    was asked for, and slower where there is no integer kernel, as for ConvTranspose. No optimization removes a Concat
    of one.
    """
    constants = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    nodes = []
    for node in graph.node:
        if node.op_type in LAYERS and node.input[0] in dequantized and node.input[1] in constants:
            copied = f"{node.output[0]}/input"
            nodes.append(onnx.helper.make_node("Concat", [node.input[0]], [copied], axis=0))
            node.input[0] = copied
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _separate_zero_points(graph: onnx.GraphProto) -> None:
    """Give every dequantized weight a zero point of its own.

    ONNX Runtime's `session.x64quantprecision`, which CPUs without VNNI need, refuses a file in which two share one.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    taken: set[str] = set()
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in stored or len(node.input) < 3:
            continue
        if node.input[2] in taken:
            copied = onnx.TensorProto()
            copied.CopyFrom(stored[node.input[2]])
            copied.name = f"{node.output[0]}/zero"
            graph.initializer.append(copied)
            node.input[2] = copied.name
        taken.add(node.input[2])


def _content(array: np.ndarray) -> tuple[object, ...]:
    return (array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes())
