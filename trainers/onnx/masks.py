"""Single weights of an ONNX graph set to zero at once, the smallest of each layer first."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import numpy_helper

from trainers.onnx.weights import weights_of

MASKED = ("Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU")


def matrices(model: onnx.ModelProto, keep: Collection[str] = ()) -> dict[str, onnx.TensorProto]:
    """Name -> stored float weight of every layer, each once; `keep`: names of nodes whose weights are left out."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    kept = {name for node in model.graph.node if node.name in keep for name in node.input}
    found = {}
    for node in model.graph.node:
        for place, _ in weights_of(node) if node.op_type in MASKED else ():
            tensor = stored.get(node.input[place])
            if tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT and tensor.name not in kept:
                found[tensor.name] = tensor
    return found


def mask(model: onnx.ModelProto, sparsity: float, keep: Collection[str] = ()) -> float:
    """Make that share of each matrix and kernel zero, in place; returns the share reached of all of them."""
    zeros = total = 0
    for tensor in matrices(model, keep).values():
        array = numpy_helper.to_array(tensor).copy()
        count = round(sparsity * array.size)
        array.flat[np.argsort(np.abs(array), axis=None, kind="stable")[:count]] = 0.0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        zeros, total = zeros + int(np.sum(array == 0)), total + array.size
    return zeros / total if total else 0.0


def remaining(model: onnx.ModelProto) -> int:
    """How many weights of matrices and kernels are not zero."""
    return sum(int(np.count_nonzero(numpy_helper.to_array(each))) for each in matrices(model).values())
