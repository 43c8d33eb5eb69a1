"""Weights whose every output channel lies on a grid of its own: the integers in one tensor, the steps beside them.

So it is where a normalization was folded into a convolution whose weights lie on one grid. Stored as floats such
weights are of hundreds of values; taken apart again they are integers, and the runtime folds the rest back when it
loads the file.
"""

from __future__ import annotations

import numpy as np
import onnx

from packing.decode import STEP16, STEP32
from packing.graph.index import Index, prune_unused
from packing.payloads import codings

OPSET = 9  # from here on BatchNormalization has one output by default
LEVELS = 15  # the largest integer looked for: of more levels the integers take as many bits as the floats' own
TOLERANCE = 1e-5  # by which a weight may differ from step * integer, relative: rounding of the product that it is


def split_channel_steps(model: onnx.ModelProto) -> int:
    """Convolution -> the same with integers as weights, and a BatchNormalization with steps and bias; in place.

    Returns how many there were. Steps and biases are rounded to 11 significant bits. Runtimes fold the two operators
    into one again when they load the file, as ONNX Runtime does at its default level.
    """
    if max((opset.version for opset in model.opset_import if not opset.domain), default=0) < OPSET:
        return 0
    index, nodes, count = Index(model), list[onnx.NodeProto](), 0
    for node in list(model.graph.node):
        found = _steps(index, node)
        nodes.append(node)
        if found is None:
            continue
        integers, steps = found
        bias = index.constant(node.input[2]) if len(node.input) > 2 else np.zeros(len(steps), np.float32)
        assert bias is not None
        name, made, ready = node.input[1], node.output[0], index.free(f"{node.output[0]}_integers")
        parts = {"step": _short(steps), "bias": _short(bias), "zero": np.zeros_like(steps), "one": np.ones_like(steps)}
        index.replace(name, integers)
        inputs = [index.add(f"{name}_{part}", value) for part, value in parts.items()]
        del node.input[2:]
        node.output[0] = ready
        nodes.append(onnx.helper.make_node("BatchNormalization", [ready, *inputs], [made], epsilon=0.0))
        count += 1
    if count:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        prune_unused(model)
    return count


def _steps(index: Index, node: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray] | None:
    """(float32 integers of the weights' shape, float32 [channels]); None where the weights are not of that kind."""
    if node.op_type != "Conv" or len(index.readers[node.input[1]]) > 1 or node.input[1] in index.outputs:
        return None
    weights = index.constant(node.input[1])
    if weights is None or weights.dtype != np.float32 or not weights.any() or not np.isfinite(weights).all():
        return None
    if len(node.input) > 2 and index.constant(node.input[2]) is None:
        return None
    if next(codings(weights.tobytes(), "float32", weights.size, weights.ndim)).what in (STEP16, STEP32):
        return None  # one grid for all of them already
    integers, steps = np.zeros_like(weights), np.ones(len(weights), np.float32)
    for channel, values in enumerate(weights):
        found = _grid(values)
        if found is None:
            return None
        integers[channel], steps[channel] = found
    return integers, steps


def _grid(values: np.ndarray) -> tuple[np.ndarray, np.float32] | None:
    """(float32 integers, step) with the largest step, whose product is `values` up to TOLERANCE; None without one."""
    sizes = np.unique(np.abs(values[values != 0]))
    if not len(sizes):
        return np.zeros_like(values), np.float32(1)
    for divisor in range(1, LEVELS + 1):
        step = sizes[0] / np.float32(divisor)
        ratios = sizes / step
        if ratios[-1] > LEVELS + 0.5:
            return None
        if (np.abs(ratios - np.rint(ratios)) <= TOLERANCE * ratios).all():
            return np.rint(values / step) + np.float32(0), step  # + 0: no -0.0
    return None


def _short(values: np.ndarray) -> np.ndarray:
    """float32 rounded to 11 significant bits, as float16 has them."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x0FFF) + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)
