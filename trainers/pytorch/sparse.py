"""Unstructured pruning to few weights: by a score that knows the loss, tightened often; whole units may die first."""

from __future__ import annotations

import torch
from torch import nn

from trainers.base import TrainingError
from trainers.pytorch import density, scores
from trainers.pytorch.masks import HeldMasks, MaskedPruning, Masks
from trainers.pytorch.ramp import due
from trainers.recipe import Pruning

MASK_UPDATES = 150  # along the ramp: at 1 % a step of 60 would drop what was about to matter


class ScoredPruning(MaskedPruning):
    """A constraint that drops the weights with the least score over all layers, along the cubic ramp or at once.

    `total`: how many weights the sparsity is of, the dense model's; those that are gone already count as dropped.
    """

    def __init__(self, model: nn.Module, pruning: Pruning, total: int) -> None:
        super().__init__(model, pruning)
        left = sum(weight.numel() for weight in self.weights.values())
        self.total = total
        self.final = min(1.0, (1.0 - pruning.sparsity) * total / left)
        self.optimizer: torch.optim.Optimizer | None = None

    def optimized_by(self, optimizer: torch.optim.Optimizer) -> None:
        """Told by the training loop: whose second moments say what a weight is worth; raises TrainingError."""
        if self.pruning.score == "fisher" and not all("betas" in group for group in optimizer.param_groups):
            raise TrainingError(f"pruning.score: fisher needs Adam's moments; the task has {type(optimizer).__name__}")
        self.optimizer = optimizer

    def before_step(self, step: int, steps: int) -> bool:
        """New masks when it is time for them; never replaces a parameter."""
        progress = due(self.pruning, step, steps, MASK_UPDATES)
        if progress is not None:
            self._mask(progress)
        return False

    def finish(self) -> Masks:
        """The final masks, by parameter name; raises TrainingError when the density is not what was asked for."""
        self._mask(1.0)
        kept = sum(int(mask.sum()) for mask in self.held.masks)
        total = sum(weight.numel() for weight in self.weights.values())
        if not density.within(kept / total, self.final) and abs(kept - self.final * total) > 1:
            raise TrainingError(f"pruning: {self.final * total:,.0f} weights were to be kept and {kept:,} were")
        return dict(zip(self.weights, self.held.masks, strict=True))

    def _mask(self, progress: float) -> None:
        masks = density.masks_of(self._scores(), density.density(progress, self.final))
        self.held = HeldMasks(self.model, masks)
        self.held.after_step()

    def _scores(self) -> dict[str, torch.Tensor]:
        found = {name: weight.detach().abs().float() for name, weight in self.weights.items()}
        if self.pruning.score == "fisher" and self.optimizer is not None:
            moments = scores.second_moments(self.optimizer, self.weights)
            found = {name: scores.fisher_score(weight, moments[name]) for name, weight in self.weights.items()}
        return {name: scores.grouped(each, self.weights[name], self.pruning.group) for name, each in found.items()}
