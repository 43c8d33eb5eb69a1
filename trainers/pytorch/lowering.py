"""Rewrites of captured graphs: what quantization needs before it, and what integer kernels need after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from trainers.pytorch.operators import (
    ATEN,
    CLIPPING,
    CONVERSIONS,
    CONVOLUTIONS,
    DEQUANTIZE,
    IDENTITIES,
    JOINS,
    LINEAR,
    PASSING,
    QUANTIZE,
    SPELLINGS,
    TRANSPOSED,
    moved_from,
)

BATCH_NORM = ATEN.batch_norm.default


def plain(graph: fx.Graph) -> None:
    """Drop what torch asserts of types while it runs, and spell what has several spellings in one way.

    ONNX has no such assertions, and torch's exporter translates only these spellings without further decomposition.
    """
    for node in list(graph.nodes):
        if node.target is ATEN._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target in SPELLINGS:
            node.target = SPELLINGS[node.target]
        elif node.target in CONVERSIONS:
            dtype = node.meta["val"].dtype
            if dtype is node.args[0].meta["val"].dtype:
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
            else:
                node.target, node.args, node.kwargs = ATEN._to_copy.default, node.args[:1], {"dtype": dtype}


def without_mutation(graph: fx.Graph) -> bool:
    """Make operators that change their input in place (`relu_`) such as give a new value (`relu`).

    False where that is not safe, because a changed value is seen through a view of it too: the graph is as it was.
    """
    changing = {node: pure for node in graph.nodes if (pure := _pure(node)) is not None}
    if any(_is_view(each) for node in changing for each in (node.args[0], *node.args[0].users)):
        return False
    for node, pure in changing.items():
        changed, node.target = node.args[0], pure
        later = list(graph.nodes)
        for other in later[later.index(node) + 1 :]:
            other.replace_input_with(changed, node)
    return True


def simplify(model: fx.GraphModule) -> fx.GraphModule:
    """The captured network, changed in place, as quantization wants it: no dropout, no batch norm folded wrongly."""
    for node in list(model.graph.nodes):
        if node.target in IDENTITIES:
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)
    _keep_norms(model.graph)
    model.graph.eliminate_dead_code()
    model.recompile()
    return model


def _is_view(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.is_view


def _pure(node: fx.Node) -> Any:
    """The operator that computes what an in-place one does and leaves its input alone; None for all others."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    name = target._schema.name.split("::")[-1]
    packet = getattr(ATEN, name[:-1], None) if name.endswith("_") and not name.endswith("__") else None
    return getattr(packet, target._overloadname, None) if packet is not None else None


def batch_norm(
    maps: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    *options: Any,
) -> torch.Tensor:
    """Batch norm as evaluation computes it; in a captured graph one that torchao does not take for a batch norm."""
    return nn.functional.batch_norm(maps, mean, variance, weight, bias, training=False, eps=options[2])


def _keep_norms(graph: fx.Graph) -> None:
    """Hide from torchao the batch norms that cannot be folded into a layer before them.

    It folds without a look at who else uses the layer or its weights, and for each that is left converting takes it
    seconds (DenseNet-121: 14).
    """
    for node in graph.nodes:
        layer = node.args[0] if node.target is BATCH_NORM else None
        if layer is not None and not _takes_norm(layer):
            node.target = batch_norm


def _takes_norm(layer: fx.Node) -> bool:
    rows = layer.target in LINEAR and layer.args[0].meta["val"].dim() == 2
    if not rows and layer.target not in CONVOLUTIONS and layer.target not in TRANSPOSED:
        return False
    return len(layer.users) == 1 and len(layer.args[1].users) == 1 and layer.args[1].op == "get_attr"


def spread(model: fx.GraphModule) -> None:
    """Repeat each grid along what only moves, selects or joins values: before it and after it.

    Runtimes make an integer kernel of an operator only between a dequantize and a quantize of its own.
    """
    for node in reversed(list(model.graph.nodes)):
        if node.target is QUANTIZE:
            _spread_up(model.graph, node.args[0], node.args[1:])
    for node in list(model.graph.nodes):
        source = moved_from(node)
        integer = [user for user in node.users if user.target is not QUANTIZE]
        if source is not None and source.target is DEQUANTIZE and integer:
            _spread_down(model.graph, node, source.args[1:], integer)
    model.recompile()


def _spread_up(graph: fx.Graph, operator: fx.Node, grid: tuple[Any, ...]) -> None:
    if not isinstance(operator, fx.Node) or len(operator.users) > 1:
        return
    clips = operator.target in CLIPPING and operator.args[0].target in PASSING | JOINS
    if not clips and operator.target not in PASSING and operator.target not in JOINS:
        return
    for before in operator.args[0] if operator.target in JOINS else operator.args[:1]:
        if before.target is not DEQUANTIZE:
            with graph.inserting_before(operator):
                integer = graph.call_function(QUANTIZE, (before, *grid))
                value = graph.call_function(DEQUANTIZE, (integer, *grid))
            operator.replace_input_with(before, value)
            _spread_up(graph, before, grid)


def _spread_down(graph: fx.Graph, operator: fx.Node, grid: tuple[Any, ...], users: list[fx.Node]) -> None:
    with graph.inserting_after(operator):
        integer = graph.call_function(QUANTIZE, (operator, *grid))
    for user in users:
        with graph.inserting_before(user):
            user.replace_input_with(operator, graph.call_function(DEQUANTIZE, (integer, *grid)))
