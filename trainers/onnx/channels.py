"""Channels removed from an ONNX graph, and what they said given to those that stay, by least squares over samples.

Between two layers with stored weights, where nothing but element by element operators, pooling and depthwise
convolutions lies: the channels of the first that matter least go. Each of them is then written as a sum of the ones
that stay, x_gone = x_kept @ A + b, fitted to what the second layer is given; A and b move into its weights and bias (He
et al., arXiv:1707.06168, with the reconstruction per channel). What else joins or branches stays whole, and is said.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from tasks.base import Arrays
from trainers.base import narrowed
from trainers.onnx import run

LAYERS = ("Conv", "Gemm", "MatMul")
# These act on each channel by itself; `Flatten` and the like only if they keep its values together.
ALONG = {
    *("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Selu", "Gelu", "Erf"),
    *("Identity", "Dropout", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization"),
    *("PRelu", "Softplus"),
}
RIDGE = 1e-3  # relative to the mean variance of the channels
ROWS = 4096  # positions that the sums are fitted to


@dataclass
class Chain:
    """One layer, what lies between, and the layer that listens to it. `value`: what the second layer is given."""

    first: onnx.NodeProto
    last: onnx.NodeProto
    between: list[onnx.NodeProto] = field(default_factory=list)

    @property
    def value(self) -> str:
        """Name of what the second layer is given."""
        return str(self.last.input[0])


class Graph:
    """A model with its stored tensors and consumers by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.ends = {value.name for value in model.graph.output}

    def array(self, name: str) -> np.ndarray:
        """The stored tensor."""
        return np.asarray(numpy_helper.to_array(self.stored[name]))

    def store(self, name: str, array: np.ndarray) -> None:
        """Replace the stored tensor."""
        self.stored[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))

    def alone(self, name: str) -> bool:
        """Whether the tensor is stored as floats and one operator alone uses it."""
        tensor = self.stored.get(name)
        return tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT and len(self.users[name]) == 1


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    return next((int(each.i) for each in node.attribute if each.name == name), default)


def is_layer(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether its weight is its own and has one axis of inputs and one of outputs."""
    if node.op_type not in LAYERS or not graph.alone(node.input[1]):
        return False
    if node.op_type == "Conv":
        return attribute(node, "group", 1) == 1
    if node.op_type == "Gemm" and attribute(node, "transA", 0):
        return False
    return len(graph.stored[node.input[1]].dims) == 2


def depthwise(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a convolution takes each channel by itself."""
    if node.op_type != "Conv" or not graph.alone(node.input[1]):
        return False
    outputs, inputs = graph.stored[node.input[1]].dims[:2]
    return bool(inputs == 1 and attribute(node, "group", 1) == outputs > 1)


def chains(graph: Graph, keep: Collection[str] = ()) -> tuple[list[Chain], dict[str, str]]:
    """(what can be narrowed, layer -> why not of the others)."""
    found, whole = [], {}
    for node in graph.model.graph.node:
        if node.op_type not in LAYERS or len(node.input) < 2 or node.input[1] not in graph.stored:
            continue
        if node.name in keep:
            whole[node.name] = "it was named to be kept"
        elif not is_layer(graph, node):
            whole[node.name] = "its weight is shared, grouped or not a plain matrix"
        else:
            chain = _followed(graph, node)
            if isinstance(chain, str):
                whole[node.name] = chain
            else:
                found.append(chain)
    return found, whole


def _followed(graph: Graph, first: onnx.NodeProto) -> Chain | str:
    """The chain that begins with the layer, or why there is none."""
    between: list[onnx.NodeProto] = []
    value, axes = first.output[0], first.op_type
    while True:
        if value in graph.ends:
            return "its channels are an output of the network"
        users = graph.users.get(value, [])
        if len(users) != 1:
            return "its channels branch"
        (node,) = users
        if is_layer(graph, node) and node.input[0] == value:
            flattened = any(each.op_type in ("Flatten", "Reshape") for each in between)
            if (node.op_type == "Conv") != (axes == "Conv" and not flattened):
                return f"its channels reach {node.op_type} along another axis"
            return Chain(first, node, between)
        if not _goes_along(graph, node, value, axes):
            return f"its channels reach {node.op_type}"
        between.append(node)
        value = node.output[0]


def _goes_along(graph: Graph, node: onnx.NodeProto, value: str, axes: str) -> bool:
    if depthwise(graph, node):
        return True
    if node.op_type in ("Add", "Mul", "Sub", "Div"):
        others = [name for name in node.input if name != value]
        return len(others) == 1 and _per_channel(graph, others[0], axes) is not None
    if node.op_type == "Flatten":
        return axes == "Conv" and attribute(node, "axis", 1) == 1
    if node.op_type == "Reshape":
        return axes == "Conv" and _flattens(graph, node)
    if node.op_type not in ALONG or len(node.output) != 1:
        return False
    if node.op_type in ("BatchNormalization", "PRelu"):
        return all(graph.alone(name) for name in node.input[1:])
    return True


def _flattens(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a Reshape leaves the batch and puts all else into one axis."""
    stored = node.input[1] in graph.stored and len(graph.users[node.input[1]]) == 1
    if not stored or attribute(node, "allowzero", 0):
        return False
    shape = graph.array(node.input[1])
    return len(shape) == 2 and shape[0] in (0, -1) and (shape[0] == 0 or shape[1] > 0)


def _per_channel(graph: Graph, name: str, axes: str) -> int | None:
    """Along which axis a stored operand has one value per channel; -1: it has one for all; None: something else."""
    if not graph.alone(name) and name in graph.stored and np.prod(graph.stored[name].dims) == 1:
        return -1
    if not graph.alone(name):
        return None
    dims = list(graph.stored[name].dims)
    if np.prod(dims) == 1:
        return -1
    axis = len(dims) - 3 if axes == "Conv" else len(dims) - 1
    return axis if 0 <= axis < len(dims) and np.prod(dims) == dims[axis] else None


def output_axis(node: onnx.NodeProto) -> int:
    """Of a layer's weight."""
    return 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1


def width(graph: Graph, chain: Chain) -> int:
    """Channels of the first layer."""
    return int(graph.stored[chain.first.input[1]].dims[output_axis(chain.first)])


def narrow(
    model: onnx.ModelProto, sparsity: float, samples: Sequence[Arrays], keep: Collection[str] = ()
) -> tuple[float | None, dict[str, str]]:
    """Remove that share of the channels of every layer that allows it, in place.

    Returns the share removed of all layers' channels (0 where rounded widths are as before, None where no layer allows
    it), and layer -> why it kept them.
    """
    graph = Graph(model)
    found, whole = chains(graph, keep)
    dense = sum(width(graph, chain) for chain in found)
    removed = 0
    for chain in found:
        channels = width(graph, chain)
        wanted = narrowed(channels, sparsity)
        if wanted >= channels:
            continue
        values = _values(model, chain, channels, samples)
        kept = _kept(graph, chain, values, wanted)
        mixing, offset = _reconstruction(values, kept)
        _take_over(graph, chain, kept, mixing, offset, channels)
        _remove(graph, chain, kept, channels)
        removed += channels - wanted
    del model.graph.value_info[:]
    return removed / dense if dense else None, whole


def _values(model: onnx.ModelProto, chain: Chain, channels: int, samples: Sequence[Arrays]) -> np.ndarray:
    """What the second layer is given, float64 [rows, channels]."""
    found = run.inside(model, [chain.value], samples)[chain.value]
    if chain.last.op_type != "Conv" and found.shape[-1] != channels:  # flattened: the channels come first
        found = found.reshape(len(found), channels, -1)
        found = np.moveaxis(found, 1, -1)
    elif chain.last.op_type == "Conv":
        found = np.moveaxis(found, 1, -1)
    rows = found.reshape(-1, channels).astype(np.float64)
    if len(rows) > ROWS:
        rows = rows[np.sort(np.random.RandomState(0).permutation(len(rows))[:ROWS])]
    return rows


def _kept(graph: Graph, chain: Chain, values: np.ndarray, count: int) -> np.ndarray:
    """Channels that stay, ascending: those that vary most in what the second layer makes of them."""
    weight = _by_channel(graph, chain, values.shape[1])
    scores = values.std(0) * np.sqrt((weight**2).sum((0, 2)))
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def _by_channel(graph: Graph, chain: Chain, channels: int) -> np.ndarray:
    """The second layer's weight as float64 [outputs, channels, positions]."""
    weight = graph.array(chain.last.input[1]).astype(np.float64)
    if chain.last.op_type != "Conv" and output_axis(chain.last) == 1:
        weight = weight.T
    return weight.reshape(len(weight), channels, -1)


def _reconstruction(values: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(A, b): the removed channels as sums of the kept ones, [kept, removed], and what is added."""
    gone = np.setdiff1d(np.arange(values.shape[1]), kept)
    mean = values.mean(0)
    inputs, wanted = values[:, kept] - mean[kept], values[:, gone] - mean[gone]
    gram = inputs.T @ inputs
    gram[np.diag_indices_from(gram)] += RIDGE * gram.diagonal().mean() + 1e-9
    mixing = np.linalg.solve(gram, inputs.T @ wanted)
    return mixing, mean[gone] - mean[kept] @ mixing


def _take_over(
    graph: Graph, chain: Chain, kept: np.ndarray, mixing: np.ndarray, offset: np.ndarray, channels: int
) -> None:
    """Give the second layer's weights for the kept channels what the removed ones said."""
    weight = _by_channel(graph, chain, channels)
    gone = np.setdiff1d(np.arange(channels), kept)
    lost = weight[:, gone]
    made = weight[:, kept] + np.einsum("sg,ogp->osp", mixing, lost)
    shape = list(graph.array(chain.last.input[1]).shape)
    if chain.last.op_type == "Conv":
        made = made.reshape(len(made), len(kept), *shape[2:])
    else:
        made = made.reshape(len(made), -1)
        made = made.T if output_axis(chain.last) == 1 else made
    graph.store(chain.last.input[1], made)
    _add_to_bias(graph, chain.last, np.einsum("g,ogp->o", offset, lost))


def _add_to_bias(graph: Graph, node: onnx.NodeProto, change: np.ndarray) -> None:
    """At the edges of padded maps it is a little too much; a MatMul, which has no bias, gets none."""
    if node.op_type == "MatMul" or attribute_float(node, "beta") != 1.0:
        return
    if len(node.input) > 2 and node.input[2]:
        if graph.alone(node.input[2]) and graph.array(node.input[2]).size == len(change):
            old = graph.array(node.input[2])
            graph.store(node.input[2], (old.astype(np.float64) + change.reshape(old.shape)))
        return
    name = f"{node.output[0]}/bias"
    graph.model.graph.initializer.append(numpy_helper.from_array(change.astype(np.float32), name))
    graph.stored[name] = graph.model.graph.initializer[-1]
    graph.users[name] = [node]
    del node.input[2:]
    node.input.append(name)


def attribute_float(node: onnx.NodeProto, name: str) -> float:
    """A float attribute, 1 where it is not given."""
    return next((float(each.f) for each in node.attribute if each.name == name), 1.0)


def _remove(graph: Graph, chain: Chain, kept: np.ndarray, channels: int) -> None:
    """Take the other channels away from the first layer and from what lies between."""
    first = chain.first
    graph.store(first.input[1], np.take(graph.array(first.input[1]), kept, output_axis(first)))
    if len(first.input) > 2 and graph.array(first.input[2]).size == channels:
        graph.store(first.input[2], graph.array(first.input[2]).reshape(-1)[kept])
    for node in chain.between:
        if depthwise(graph, node):
            for name in node.input[1:]:
                graph.store(name, graph.array(name)[kept])
            next(each for each in node.attribute if each.name == "group").i = len(kept)
            continue
        if node.op_type == "Reshape":
            shape = graph.array(node.input[1]).copy()
            shape[1] = shape[1] // channels * len(kept) if shape[1] > 0 else -1
            graph.stored[node.input[1]].CopyFrom(numpy_helper.from_array(shape, node.input[1]))
            continue
        for name in node.input:
            if name not in graph.stored or node.op_type == "Clip":
                continue
            axes = [axis for axis, size in enumerate(graph.stored[name].dims) if size == channels]
            if len(axes) == 1 and np.prod(graph.stored[name].dims) == channels:
                graph.store(name, np.take(graph.array(name), kept, axes[0]))
