"""An ONNX graph cut into parts that follow one another, where little data crosses, balanced by time or by memory.

Nodes stay in the file's order, so a part is a run of them. What lives across a cut (a skip connection too) is handed
on: a part takes all living tensors, computes its own and passes the others through. Weights, and what is computed of
weights alone, go with the nodes that use them.

A graph of quantize/dequantize pairs is cut only at quantized tensors: a runtime fuses dequantize, operator and quantize
into one integer operator, and a cut within would make it compute in floating point, with other answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx

NEAR = 1.15  # of the best balance: within it, the cut that least data crosses is taken
SMALL = 1024  # bytes of a weight below which it counts for nothing
_QUANTIZED = ("QuantizeLinear",)
_DEQUANTIZED = ("DequantizeLinear",)


class PartitionError(RuntimeError):
    """A graph that cannot be cut as asked; the message says why."""


@dataclass(frozen=True)
class Piece:
    """One part. `takes`: living tensors at its begin; `gives`: at its end, those it passes through included."""

    content: bytes
    takes: tuple[str, ...]
    gives: tuple[str, ...]


class Graph:
    """The graph's nodes and tensors as cutting sees them: `nodes` that compute, in order; the rest is constant."""

    def __init__(self, content: bytes) -> None:
        model = onnx.load_from_string(content)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        self.model, graph = model, model.graph
        if graph.sparse_initializer:
            raise PartitionError("the graph holds sparse initializers, which are not cut")
        self.weights = {each.name: each for each in graph.initializer}
        constant = {*self.weights, ""}
        self.constants: dict[str, onnx.NodeProto] = {}  # output -> the node that makes it of constants alone
        self.nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            if all(name in constant for name in used(node)) and not _random(node):
                constant |= set(node.output)
                self.constants |= dict.fromkeys(node.output, node)
            else:
                self.nodes.append(node)
        self.constant = constant
        self.inputs = [each.name for each in graph.input if each.name not in self.weights]
        self.outputs = [each.name for each in graph.output]
        if lone := [name for name in self.outputs if name in constant]:
            raise PartitionError(f"output {lone[0]} does not depend on the inputs")

    @cached_property
    def made(self) -> dict[str, int]:
        """Tensor -> place of the node that makes it; -1 for an input."""
        places = dict.fromkeys(self.inputs, -1)
        return places | {name: i for i, node in enumerate(self.nodes) for name in node.output if name}

    @cached_property
    def last(self) -> dict[str, int]:
        """Tensor -> place of the last node that uses it; beyond the end for an output."""
        found = {name: i for i, node in enumerate(self.nodes) for name in used(node) if name in self.made}
        return found | dict.fromkeys(self.outputs, len(self.nodes))

    def living(self, at: int) -> list[str]:
        """Tensors made before the node `at` and used there or later."""
        if at == len(self.nodes):
            return list(self.outputs)
        return [name for name, place in self.made.items() if place < at <= self.last.get(name, -1)]

    def allowed(self, at: int) -> bool:
        """Whether a cut before the node `at` leaves every fused integer operator whole."""
        return not any(self._fused.get(name) for name in self.living(at) if self.made[name] >= 0)

    @cached_property
    def _fused(self) -> dict[str, bool]:
        """Tensor -> whether it lies within what a runtime fuses into one integer operator."""
        users: dict[str, set[str]] = {}
        for node in self.nodes:
            for name in used(node):
                users.setdefault(name, set()).add(node.op_type)
        found = {}
        widened = {name for node in self.nodes if node.op_type in _DEQUANTIZED for name in node.output}
        for node in self.nodes:
            inside = node.op_type not in _QUANTIZED and (
                node.op_type in _DEQUANTIZED or bool(set(used(node)) & widened)
            )
            for name in node.output:
                found[name] = inside or bool(users.get(name, set()) & set(_QUANTIZED))
        return found

    def needed(self, nodes: Sequence[onnx.NodeProto]) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """(constant nodes in order, weights) that these nodes use."""
        wanted = [name for node in nodes for name in used(node) if name in self.constant and name]
        seen, producers = set[str](), dict[int, onnx.NodeProto]()
        while wanted:
            name = wanted.pop()
            if name in seen:
                continue
            seen.add(name)
            if (node := self.constants.get(name)) is not None:
                producers[id(node)] = node
                wanted += used(node)
        order = [node for node in self.model.graph.node if id(node) in {id(each) for each in producers.values()}]
        return order, [weight for name, weight in self.weights.items() if name in seen]

    def memory(self) -> np.ndarray:
        """Bytes of weights of each node, a shared one counted where it is first used; float64 [nodes]."""
        found = np.zeros(len(self.nodes))
        counted = set[str]()
        for i, node in enumerate(self.nodes):
            for weight in self.needed([node])[1]:
                if weight.name not in counted:
                    counted.add(weight.name)
                    size = weight_bytes(weight)
                    found[i] += size if size > SMALL else 0
        return found


def used(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node reads, those its branches and loop bodies take from outside included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
        for graph in graphs:
            own = {each.name for each in (*graph.input, *graph.initializer)}
            for inner in graph.node:
                names += [name for name in used(inner) if name not in own]
                own |= set(inner.output)
            names += [each.name for each in graph.output if each.name not in own]
    return names


def weight_bytes(weight: onnx.TensorProto) -> int:
    """Bytes of a stored tensor."""
    items = int(np.prod(weight.dims, dtype=np.int64)) if weight.dims else 1
    return items * int(onnx.helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize)


def places(graph: Graph, parts: int, costs: np.ndarray, sizes: Mapping[str, int]) -> list[int]:
    """Where to cut: places of the first nodes of parts 2 to K. Raises PartitionError.

    `costs`: of each node, in milliseconds or bytes; `sizes`: bytes of each tensor. The largest part is made as small as
    it can be; of all cuts that come near to that, the one that least data crosses is taken.
    """
    count = len(graph.nodes)
    if parts > count:
        raise PartitionError(f"parts={parts}: the graph has only {count} nodes that compute")
    able = [at for at in range(1, count) if graph.allowed(at)]
    if len(able) < parts - 1:
        raise PartitionError(
            f"parts={parts}: only {len(able)} places can be cut; elsewhere the cut would fall into integer operators "
            "that a runtime fuses, and change their answers"
        )
    crossing = np.array([sum(sizes.get(name, 0) for name in graph.living(at)) for at in able], np.float64)
    ends = np.array([0, *able, count])
    below = np.concatenate([[0.0], np.cumsum(costs)])
    weight = below[ends]
    worst = _least(weight, np.zeros(len(ends)), parts, np.inf)[1]
    chosen, _ = _least(weight, np.concatenate([[0.0], crossing, [0.0]]), parts, worst * NEAR + 1e-12)
    return [int(ends[i]) for i in chosen]


def _least(below: np.ndarray, crossing: np.ndarray, parts: int, limit: float) -> tuple[list[int], float]:
    """(cuts, largest part): of the ways to cut into `parts`, no part above `limit`, that of the least data crossing.

    With no limit and nothing crossing: that of the smallest largest part. Dynamic programming over the places.
    """
    count = len(below)
    balance = not np.isfinite(limit)
    value = np.where(below <= limit, below if balance else 0.0, np.inf)  # one part up to each place
    value[0] = np.inf
    came: list[np.ndarray] = []
    for _ in range(parts - 1):
        cost = below[None, :] - below[:, None]  # [from, to]
        step = np.maximum(value[:, None], cost) if balance else value[:, None] + crossing[:, None]
        step = np.where((np.arange(count)[:, None] < np.arange(count)[None, :]) & (cost <= limit), step, np.inf)
        came.append(step.argmin(0))
        value = step.min(0)
    at, chosen = count - 1, list[int]()
    for back in reversed(came):
        at = int(back[at])
        chosen.append(at)
    return chosen[::-1], float(value[-1])


def pieces(graph: Graph, cuts: Sequence[int]) -> Iterator[Piece]:
    """The parts, as files of their own."""
    known = _known(graph.model)
    ends = [0, *cuts, len(graph.nodes)]
    for begin, end in itertools.pairwise(ends):
        takes = graph.living(begin) if begin else list(graph.inputs)
        gives = graph.living(end)
        nodes = graph.nodes[begin:end]
        own = {name for node in nodes for name in node.output}
        reads = {name for node in nodes for name in used(node)}
        constants, weights = graph.needed(nodes)
        made = onnx.helper.make_graph(
            [*constants, *nodes],
            f"part_{begin}_{end}",
            [known[name] for name in takes if name in reads],
            [known[name] for name in gives if name in own],
            weights,
        )
        model = onnx.helper.make_model(
            made, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version, producer_name="pare"
        )
        yield Piece(model.SerializeToString(), tuple(takes), tuple(gives))


def _known(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Tensor -> its type and shape, as far as they can be inferred; where nothing is known its name alone."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # an operator of no standard; the runtime infers what it needs
        graph = model.graph
    found: dict[str, Any] = {each.name: each for each in (*graph.value_info, *graph.input, *graph.output)}
    for node in model.graph.node:
        for name in node.output:
            found.setdefault(name, onnx.ValueInfoProto(name=name))
    return found


def _random(node: onnx.NodeProto) -> bool:
    return node.op_type.startswith("Random") or node.op_type in ("Multinomial", "Bernoulli")
