"""What each layer costs as an integer one: the prepared network with that layer alone on its grids."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import fx
from torchao.quantization.pt2e import FakeQuantize

from trainers.pytorch.operators import CONVOLUTIONS, LINEAR


def quantized_layers(prepared: fx.GraphModule) -> dict[str, list[FakeQuantize]]:
    """Layer -> the fake quantizations of its weight, its inputs and its output, for every layer with integer weights.

    The names are those of the modules in the network that was captured: what `keep_float` takes.
    """
    found: dict[str, list[FakeQuantize]] = {}
    for node in prepared.graph.nodes:
        if node.op != "call_function" or (node.target not in CONVOLUTIONS and node.target not in LINEAR):
            continue
        grids = list(_grids_around(prepared, node))
        stack = list(node.meta.get("nn_module_stack", {}).values())
        if grids and stack:
            found.setdefault(stack[-1][0].removeprefix("L['self']."), []).extend(grids)
    return found


def _grids_around(prepared: fx.GraphModule, node: fx.Node) -> Iterator[FakeQuantize]:
    modules = dict(prepared.named_modules())
    for other in (*node.all_input_nodes, *node.users):
        if other.op == "call_module" and isinstance(modules[str(other.target)], FakeQuantize):
            yield modules[str(other.target)]


def drops(prepared: fx.GraphModule, score: Callable[[fx.GraphModule], float]) -> dict[str, float]:
    """Layer -> what `score` (more is better) loses when that layer alone computes with integers.

    The network is left with all of its fake quantizations on.
    """
    layers = quantized_layers(prepared)
    grids = [module for module in prepared.modules() if isinstance(module, FakeQuantize)]
    found = {}
    try:
        _enable(grids, False)
        dense = score(prepared)
        for name, own in layers.items():
            _enable(own, True)
            found[name] = dense - score(prepared)
            _enable(own, False)
    finally:
        _enable(grids, True)
    return found


def _enable(grids: list[FakeQuantize], enabled: bool) -> None:
    for grid in grids:
        grid.enable_fake_quant(enabled)
