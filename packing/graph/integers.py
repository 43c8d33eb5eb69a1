"""Weights on a grid as int8 with one scale for each tensor: a quarter of the file, the same values to the bit."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from packing.decode import STEP16, STEP32
from packing.graph.index import Index
from packing.payloads import codings

OPSET = 10  # the first with DequantizeLinear
SMALLEST = 64  # elements: a tensor with fewer saves less than its DequantizeLinear costs


def store_integers(model: onnx.ModelProto, smallest: int = SMALLEST) -> int:
    """Store every float32 initializer that is step * integer as int8 behind a DequantizeLinear; in place.

    Returns how many there were. Only tensors of `smallest` elements and more, that nodes of the main graph read, and
    not those that a MatMul reads: ONNX Runtime 1.32 makes a MatMulNBits of those, which rounds activations. Runtimes
    compute the same as before, and as fast where they fold the dequantization when they load the file (ONNX Runtime
    with `session.disable_quant_qdq=1`).
    """
    if max((opset.version for opset in model.opset_import if not opset.domain), default=0) < OPSET:
        return 0
    index, nodes, stored = Index(model), list[onnx.NodeProto](), list[onnx.TensorProto]()
    scales = list[onnx.TensorProto]()
    for tensor in model.graph.initializer:
        found = _on_grid(index, tensor, smallest)
        if found is None:
            stored.append(tensor)
            continue
        integers, step = found
        names = [index.free(f"{tensor.name}_{suffix}") for suffix in ("int8", "step")]
        stored.append(numpy_helper.from_array(integers, names[0]))
        scales.append(numpy_helper.from_array(step, names[1]))
        nodes.append(onnx.helper.make_node("DequantizeLinear", names, [tensor.name]))
    others = list(model.graph.node)
    del model.graph.initializer[:]
    del model.graph.node[:]
    model.graph.initializer.extend([*stored, *scales])
    model.graph.node.extend([*nodes, *others])
    return len(nodes)


def _on_grid(index: Index, tensor: onnx.TensorProto, smallest: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(int8 of the tensor's shape, float32 scalar) whose product is the tensor; None when there are none."""
    value = index.constant(tensor.name)
    if value is None or value.dtype != np.float32 or value.size < smallest:
        return None
    if {node.op_type for node in index.readers.get(tensor.name, [])} & {"MatMul"} or tensor.name not in index.readers:
        return None
    coding = next(codings(value.tobytes(), "float32", value.size, value.ndim))
    if coding.what not in (STEP16, STEP32) or coding.symbols is None:
        return None
    step = np.frombuffer(coding.head, "<f2" if coding.what == STEP16 else "<f4")[0].astype(np.float32)
    return coding.symbols.reshape(value.shape), step
