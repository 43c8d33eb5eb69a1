"""The stage in which a pruned network's weights settle on few integers, one step for each tensor; activations stay float."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from trainers.pytorch import grid
from trainers.pytorch.models import prunable
from trainers.pytorch.prune import HeldMasks, Masks


def parameters_of(model: nn.Module) -> list[str]:
    """Names of the weights and biases of every layer whose weight may be pruned."""
    layers = {name: layer for name, layer in prunable(model).items()}
    return [f"{name}.{part}" for name, layer in layers.items() for part, _ in layer.named_parameters(recurse=False)]


def settle(model: nn.Module, scheme: str, masks: Masks, fit: Callable[[HeldMasks], None]) -> None:
    """Put weights and biases on grids, train with `fit` under the masks, and leave the values on the grids in `model`.

    `masks`: by parameter name. A weight that rounds to zero stays so in the file.
    """
    names = parameters_of(model)
    grid.attach(model, grid.LEVELS[scheme], names)
    try:
        fit(HeldMasks(model, {inner(name): mask for name, mask in masks.items()}))
    finally:
        grid.detach(model, names)


def inner(name: str) -> str:
    """Where the parameter `name` lies while it is on a grid."""
    owner, _, attribute = name.rpartition(".")
    return f"{owner}.parametrizations.{attribute}.original"
