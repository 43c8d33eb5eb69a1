"""Which values of a captured network become integers: a torchao quantizer for the kernels that runtimes have.

A *grid* is a scale and a zero point. A value and what is merely moved, selected or clipped from it share one grid, put
where that chain ends or branches; `lowering` repeats it along the chain, for kernels between integers on both sides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import fx
from torchao.quantization.pt2e.quantizer import DerivedQuantizationSpec, QuantizationAnnotation, Quantizer

from trainers.pytorch.fake_quantize import activation_grid, weight_grid
from trainers.pytorch.operators import (
    AVERAGING,
    CLIPPING,
    CONVOLUTIONS,
    ELEMENTWISE,
    JOINS,
    LINEAR,
    PASSING,
    PRODUCTS,
    is_constant,
    is_float,
    moved_from,
)


class IntegerQuantizer(Quantizer):
    """Annotates a captured network. `keep_float`: names of modules whose operators stay float.

    The network's outputs stay float: on a grid of 256 values two classes would tie too often. Biases stay float too,
    but for those of matrices: in ONNX Runtime a float one keeps a last Gemm, whose output is float, from being an
    integer kernel.
    """

    def __init__(self, bits: int = 8, keep_float: Collection[str] = ()) -> None:
        self.keep_float = frozenset(keep_float)
        self.activation, self.weight = activation_grid(), weight_grid(bits)

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Mark inputs, weights and outputs of every operator that has an integer kernel."""
        integer = integer_operators(model.graph, self.keep_float)
        placed = {end_of(node) for node in integer if _needs_grid(node, integer)}
        for node in model.graph.nodes:
            inputs: dict[Any, Any] = {}
            if node in integer and node.target not in JOINS:
                inputs = {each: self.activation for each in activations(node) if not _on_grid(each, integer, placed)}
            if node in integer and (node.target in CONVOLUTIONS or node.target in LINEAR):
                inputs[node.args[1]] = self.weight
            if node in integer and _is_gemm(node) and end_of(node) not in placed:
                grid = (node.args[0], node) if node.args[0] in inputs else end_of(source_of(node.args[0]))
                inputs[node.args[2]] = _bias_spec(grid, (node.args[1], node))
            output = self.activation if node in placed else None
            if inputs or output is not None:
                node.meta["quantization_annotation"] = QuantizationAnnotation(inputs, output, _annotated=True)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to check: an operator without annotation stays float."""


def integer_operators(graph: fx.Graph, keep_float: Collection[str] = ()) -> set[fx.Node]:
    """The operators that compute with integers.

    Those with weights, and products of two activations, always; sums, joins and averages where what they give reaches
    another integer operator: for a float one they would only add a rounding.
    """
    able = [node for node in graph.nodes if _has_kernel(node) and not _named(node, keep_float)]
    found = {node for node in able if node.target in CONVOLUTIONS or node.target in LINEAR or node.target in PRODUCTS}
    for node in reversed(able):
        if any(user in found for user in consumers(node)):
            found.add(node)
    return found


def _has_kernel(node: fx.Node) -> bool:
    if node.op != "call_function" or not is_float(node):
        return False
    if node.target in CONVOLUTIONS or node.target in LINEAR:
        return node.args[1].op == "get_attr"
    if node.target in ELEMENTWISE or node.target in PRODUCTS:
        return len(activations(node)) == 2
    return node.target in JOINS or node.target in AVERAGING


def _named(node: fx.Node, names: Collection[str]) -> bool:
    """Whether the operator belongs to one of the named modules, or to one inside."""
    paths = [path.removeprefix("L['self'].") for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return any(path == name or path.startswith(f"{name}.") for path in paths for name in names)


def activations(node: fx.Node) -> list[fx.Node]:
    """The float inputs of an operator that are no constants, each once."""
    given = node.args[:1] if node.target in CONVOLUTIONS or node.target in LINEAR else node.all_input_nodes
    return [each for each in dict.fromkeys(given) if is_float(each) and not is_constant(each)]


def consumers(node: fx.Node) -> Iterator[fx.Node]:
    """What takes the operator's values, looked at through everything that only moves, selects or clips them."""
    for user in node.users:
        if moved_from(user) is node or user.target in CLIPPING:
            yield from consumers(user)
        else:
            yield user


def end_of(node: fx.Node) -> fx.Node:
    """The last value in the chain of moving, selecting, clipping and joining that begins with `node`."""
    while len(node.users) == 1:
        (user,) = node.users
        if user.target in JOINS and _clip_of(node) is not None and not _clipped_alike(user):
            break  # a kernel clips on its way out only to the ends of its own grid
        if user.target not in CLIPPING and user.target not in JOINS and user.target not in PASSING:
            break
        node = user
    return node


def _clipped_alike(join: fx.Node) -> bool:
    return len({_clip_of(each) for each in join.all_input_nodes}) == 1


def _clip_of(value: fx.Node) -> tuple[Any, ...] | None:
    """The clipping that the value has gone through since it was computed, None without."""
    while (before := moved_from(value)) is not None:
        value = before
    return (value.target, *value.args[1:]) if value.target in CLIPPING else None


def source_of(value: fx.Node) -> fx.Node:
    """Where a chain of moving, selecting and clipping that ends with `value` begins."""
    while True:
        before = moved_from(value)
        if before is None and value.target in CLIPPING and len(value.args[0].users) == 1:
            before = value.args[0]
        if before is None:
            return value
        value = before


def _needs_grid(node: fx.Node, integer: Collection[fx.Node]) -> bool:
    """Whether the operator's output is quantized. Convolutions have no kernel that puts out floats; others have."""
    users = list(consumers(node))
    if any(user.op == "output" for user in users):
        return False
    return node.target in CONVOLUTIONS or any(user in integer for user in users)


def _on_grid(value: fx.Node, integer: Collection[fx.Node], placed: Collection[fx.Node]) -> bool:
    source = source_of(value)
    return source in integer and end_of(source) in placed


def _is_gemm(node: fx.Node) -> bool:
    """Whether a linear layer becomes one operator with its bias: rows of features come in, the bias is its alone."""
    bias = node.args[2] if node.target in LINEAR and len(node.args) > 2 else None
    return isinstance(bias, fx.Node) and len(bias.users) == 1 and node.args[0].meta["val"].dim() == 2


def _bias_spec(
    activation: fx.Node | tuple[fx.Node, fx.Node], weight: tuple[fx.Node, fx.Node]
) -> DerivedQuantizationSpec:
    """int32 with the product of the input's and the weight's scales: what integer kernels add to their sums."""

    def derive(observed: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        step, steps = (one.calculate_qparams()[0] for one in observed)
        return step * steps, torch.zeros_like(steps, dtype=torch.int32)

    return DerivedQuantizationSpec(
        derived_from=[activation, weight],
        derive_qparams_fn=derive,
        dtype=torch.int32,
        quant_min=-(2**31),
        quant_max=2**31 - 1,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )
