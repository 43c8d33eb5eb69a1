"""Weights on few integer levels with one learned step per tensor; activations stay float.

LSQ, arXiv:1902.08153: the step is trained with the weights, gradients pass straight through the rounding. A pruned
weight stays exactly zero. In the exported file a weight is `step * integer`, the step exact in float16, so that the
product is exact in float32 and a packed file holds small integers and one step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

LEVELS = {"weights_int2": 1, "weights_int3": 3, "weights_int4": 7}  # the largest integer; symmetric
BIAS_LEVELS = 15


class _OnGrid(torch.autograd.Function):
    """values -> step * clamp(round(values / step)); the step's gradient scaled as LSQ proposes."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, step: torch.Tensor, levels: int, count: int) -> torch.Tensor:
        scaled = values / step
        rounded = scaled.round().clamp_(-levels, levels)
        ctx.save_for_backward(scaled, rounded)
        ctx.levels, ctx.count = levels, count
        return rounded * step

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        scaled, rounded = ctx.saved_tensors
        inside = scaled.abs() <= ctx.levels
        by_step = torch.where(inside, rounded - scaled, rounded) * gradient
        # Zeros that are masked add nothing and are not counted: LSQ's N is the number of weights that the step serves.
        by_step = by_step.sum() / (max(1, ctx.count) * ctx.levels) ** 0.5
        return gradient * inside, by_step, None, None


def initial_step(values: torch.Tensor, levels: int) -> float:
    """The step that rounds the nonzero `values` with the least square error, of 60 candidates; exact in float16."""
    nonzero = values.detach()[values != 0].float()
    if not len(nonzero):
        return 1.0
    largest = float(nonzero.abs().max())
    candidates = [largest / levels * (0.2 + 0.8 * i / 59) for i in range(60)]
    errors = [float(((nonzero / s).round().clamp(-levels, levels) * s - nonzero).square().sum()) for s in candidates]
    return float(exact(torch.tensor(candidates[errors.index(min(errors))])))


def exact(step: torch.Tensor) -> torch.Tensor:
    """`step` rounded to what float16 holds (normal numbers only, so that 11 bits stay), as float32."""
    return step.detach().float().abs().clamp(2.0**-14, 65504.0).half().float()


class Grid(nn.Module):
    """A parametrization (torch.nn.utils.parametrize) that puts a tensor on the grid; `step` is trained with it."""

    def __init__(self, values: torch.Tensor, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.count = int((values != 0).sum())
        # Its logarithm is what is trained: Adam moves every parameter by the learning rate, which would be a tenth of a
        # small step at once.
        self.log_step = nn.Parameter(torch.tensor(initial_step(values, levels), device=values.device).log())

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """float [...] -> the same shape on the grid."""
        # The float16 step is used while training too, so that nothing changes at export; its gradient passes through.
        smooth = self.log_step.exp()
        step = smooth + (self.step - smooth).detach()
        on_grid: torch.Tensor = _OnGrid.apply(values, step, self.levels, self.count)
        return on_grid

    @property
    def step(self) -> torch.Tensor:
        """The step, a float32 scalar that float16 holds exactly."""
        return exact(self.log_step.exp())

    def integers(self, values: torch.Tensor) -> torch.Tensor:
        """int8 of the shape of `values`: what the exported file holds besides the step."""
        rounded = (values.detach() / self.step).round().clamp(-self.levels, self.levels)
        return rounded.to(torch.int8)


def attach(model: nn.Module, levels: int, names: list[str], bias_levels: int = BIAS_LEVELS) -> dict[str, Grid]:
    """Put the parameters `names` (dotted, as `named_parameters` gives them) of `model` on grids; returns them by name.

    Vectors (biases) get `bias_levels`, everything else `levels`. The model then trains as before: its optimizer must
    be made after this, because each grid adds a step.
    """
    grids = {}
    for name in names:
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        values = getattr(module, attribute)
        grids[name] = Grid(values.detach(), bias_levels if values.dim() == 1 else levels)
        nn.utils.parametrize.register_parametrization(module, attribute, grids[name])
    return grids


def detach(model: nn.Module, names: list[str]) -> None:
    """Leave the values on the grid as plain parameters: what is exported. The inverse of `attach`."""
    for name in names:
        owner, _, attribute = name.rpartition(".")
        nn.utils.parametrize.remove_parametrizations(model.get_submodule(owner), attribute, leave_parametrized=True)
