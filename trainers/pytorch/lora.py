"""Low-rank changes of weights that stay as they are, trained in their place: Hu et al., LoRA, arXiv:2106.09685.

A weight W, as a matrix with one row per output, becomes W + B A with B [rows, rank] and A [rank, columns]; B starts at
zero. Afterwards the sum is W again: what is quantized and exported has no more operators than before.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize

from trainers.pytorch.masks import maskable


class LowRank(nn.Module):
    """A parametrization (torch.nn.utils.parametrize) that adds B A; a weight that is zero stays zero."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        rank = min(rank, rows, columns)
        self.a = nn.Parameter(torch.empty(rank, columns, device=weight.device))
        self.b = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.register_buffer("kept", (weight != 0).to(weight.dtype), persistent=False)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """float [...] -> the same shape, changed."""
        kept: torch.Tensor = self.get_buffer("kept")
        return weight + (self.b @ self.a).view_as(weight).to(weight.dtype) * kept


@contextmanager
def low_rank(model: nn.Module, names: Collection[str], rank: int) -> Iterator[list[str]]:
    """Inside, the changes of the weights `names` are trained, `rank` each; at the end they are part of the weights.

    Recurrent layers, which keep their weights in lists of their own, and what is frozen already are left out. Gives the
    names of the weights that change.
    """
    weights = maskable(model)
    recurrent = (nn.RNNBase, nn.RNNCellBase)
    changed = [
        name
        for name in weights
        if name in names
        and weights[name].requires_grad
        and not isinstance(model.get_submodule(name.rpartition(".")[0]), recurrent)
    ]
    for name in changed:
        owner, _, attribute = name.rpartition(".")
        module, weight = model.get_submodule(owner), weights[name]
        parametrize.register_parametrization(module, attribute, LowRank(weight.detach(), rank))
        weight.requires_grad_(False)
    try:
        yield changed
    finally:
        for name in changed:
            owner, _, attribute = name.rpartition(".")
            parametrize.remove_parametrizations(model.get_submodule(owner), attribute, leave_parametrized=True)
            weights[name].requires_grad_(True)
