"""Weights of each layer in as many bits as it needs: what the loss says of every layer in every number of bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from trainers.bits import CHOICES, FLOAT
from trainers.pytorch import grid


def levels_of(bits: int) -> int:
    """The largest integer of a symmetric grid in so many bits."""
    return 2 ** (bits - 1) - 1


def losses_by_bits(
    model: nn.Module, names: Sequence[str], loss: Callable[[nn.Module], float]
) -> dict[str, dict[int, float]]:
    """Parameter -> bits -> the network's loss with that one alone on its best grid; the network is left as it was."""
    whole = loss(model)
    found: dict[str, dict[int, float]] = {}
    for name in names:
        parameter = model.get_parameter(name)
        kept = parameter.detach().clone()
        found[name] = {FLOAT: whole}
        for bits in CHOICES[1:]:
            with torch.no_grad():
                parameter.copy_(grid.Grid(kept, levels_of(bits))(kept))
            found[name][bits] = loss(model)
            with torch.no_grad():
                parameter.copy_(kept)
    return found
