"""The stage in which each weight tensor settles on few distinct values, any values: for what has no grid.

As in Deep Compression (Han et al., arXiv:1510.00149): the values are trained, and each weight takes the nearest one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from trainers.pytorch.codebook import codebook
from trainers.pytorch.masks import HeldMasks, Masks
from trainers.pytorch.weights_only import inner, parameters_of

EPOCHS = 1  # as the TensorFlow trainer: clusters settle quickly


class Shared(nn.Module):
    """A parametrization (torch.nn.utils.parametrize): every nonzero value becomes the nearest of the trained ones.

    Gradients reach the shared value, and pass straight through to the weight, which may move to another. Zeros stay.
    """

    def __init__(self, values: torch.Tensor, clusters: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(codebook(values, clusters).to(values.device))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """float [...] -> the same shape, with as many distinct values as there are centres, and 0."""
        order = self.centres.detach().argsort()
        ascending = self.centres.detach()[order]
        places = order[torch.bucketize(values.detach(), (ascending[1:] + ascending[:-1]) / 2)]
        present = values.detach() != 0
        # The difference is exactly 0: it carries the gradient alone.
        return torch.where(present, self.centres[places] + (values - values.detach()), values)


def share(model: nn.Module, clusters: int, masks: Masks, fit: Callable[[HeldMasks], None]) -> None:
    """Give each weight tensor `clusters` distinct values, train them with `fit` under the masks, leave them in `model`.

    Biases, and recurrent layers' weights, are left as they are.
    """
    weights = [name for name in parameters_of(model) if model.get_parameter(name).dim() > 1]
    for name in weights:
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        shared = Shared(model.get_parameter(name).detach(), clusters)
        nn.utils.parametrize.register_parametrization(module, attribute, shared)
    try:
        fit(HeldMasks(model, {inner(name) if name in weights else name: mask for name, mask in masks.items()}))
    finally:
        for name in weights:
            owner, _, attribute = name.rpartition(".")
            nn.utils.parametrize.remove_parametrizations(model.get_submodule(owner), attribute, leave_parametrized=True)
