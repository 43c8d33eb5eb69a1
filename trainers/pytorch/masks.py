"""Masks that hold weights at zero while a network trains: the smallest ones, or 2 of every 4 neighbours."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from trainers.base import TrainingError
from trainers.pytorch.layers import CONVOLUTIONS, TRANSPOSED, plain_layers
from trainers.pytorch.ramp import due, ramp
from trainers.recipe import Pruning

MASK_UPDATES = 40  # along the ramp
TOLERANCE = 0.02  # of what is kept
KEPT, NEIGHBOURS = 2, 4  # of the 2:4 pattern that tensor cores take
MASKED = (*CONVOLUTIONS, nn.Linear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)

Masks = dict[str, torch.Tensor]
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class MaskCoverage:
    """What masks can reach of a network: numbers of parameters, and of those out of reach by the kind of their
    module."""

    parameters: int
    maskable: int
    others: Mapping[str, int]

    @property
    def share(self) -> float:
        """Of all parameters, those that masks reach."""
        return self.maskable / self.parameters if self.parameters else 0.0

    def describe(self) -> str:
        """In words: `masks reach 95 % of the parameters (not Embedding 12,800)`."""
        largest = sorted(self.others.items(), key=lambda each: -each[1])[:3]
        rest = ", ".join(f"{kind} {count:,}" for kind, count in largest if count > 0.01 * self.parameters)
        return f"masks reach {100 * self.share:.0f} % of the parameters{f' (not {rest})' if rest else ''}"


def maskable(model: nn.Module, embeddings: bool = False) -> Weights:
    """Parameter name -> weight of every matrix and kernel: of all convolutions, linear, recurrent and attention layers.

    `embeddings`: their tables too. A weight that a layer shares with an embedding counts as the embedding's.
    """
    kinds = (*MASKED, nn.Embedding, nn.EmbeddingBag) if embeddings else MASKED
    tables = set() if embeddings else {id(each.weight) for each in model.modules() if isinstance(each, _TABLES)}
    found: Weights = {}
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            for part, weight in module.named_parameters(prefix=name, recurse=False):
                shared = id(weight) in tables or any(weight is other for other in found.values())
                if weight.dim() >= 2 and not shared and not part.rpartition(".")[2].startswith("bias"):
                    found[part] = weight
    return found


_TABLES = (nn.Embedding, nn.EmbeddingBag)


def coverage(model: nn.Module, embeddings: bool = False) -> MaskCoverage:
    """How much of the network masks reach."""
    reached = {id(weight): weight.numel() for weight in maskable(model, embeddings).values()}
    others: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) not in reached:
            kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
            kind = f"{kind} bias" if name.rpartition(".")[2].startswith("bias") else kind
            others[kind] = others.get(kind, 0) + parameter.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    return MaskCoverage(total, sum(reached.values()), others)


def magnitude_masks(weights: Weights, sparsity: float) -> Masks:
    """Masks (1 = kept) that drop the `sparsity` smallest magnitudes over all weights together, to the very weight."""
    total = sum(w.numel() for w in weights.values())
    return _without_smallest({name: w.detach().abs() for name, w in weights.items()}, round(sparsity * total))


def _without_smallest(scores: Weights, dropped: int) -> Masks:
    every = torch.cat([score.flatten() for score in scores.values()])
    kept = torch.ones_like(every)
    # topk, not a threshold: of equal scores (weights that are zero already) it takes no more than asked.
    kept[every.topk(dropped, largest=False, sorted=False).indices] = 0.0
    parts = kept.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for part, (name, score) in zip(parts, scores.items(), strict=True)}


def pattern_masks(weights: Weights, share: float = 1.0, transposed: Collection[str] = ()) -> Masks:
    """Masks (1 = kept) with 2 of every 4 neighbouring inputs kept, by magnitude; of a shorter last group, half.

    Neighbours lie along the input channels (for one input channel along the kernel), the order in which matrix units
    read them. `share`: of the weights that the pattern drops, how many are dropped, smallest first. `transposed`: names
    of the weights whose first axis is that of the inputs, those of transposed convolutions.
    """
    masks = {name: _pattern_mask(w.detach().abs(), 0 if name in transposed else 1) for name, w in weights.items()}
    if share >= 1.0:
        return masks
    candidates = {name: weights[name].detach().abs().masked_fill(mask > 0, math.inf) for name, mask in masks.items()}
    every = sum(int((mask == 0).sum()) for mask in masks.values())
    return _without_smallest(candidates, round(share * every))


def _pattern_mask(magnitude: torch.Tensor, inputs: int) -> torch.Tensor:
    inputs_last = magnitude.movedim(inputs, -1)
    rows = inputs_last.flatten(1)
    missing = -rows.shape[1] % NEIGHBOURS
    groups = nn.functional.pad(rows, (0, missing), value=math.inf).unflatten(1, (-1, NEIGHBOURS))
    rank = groups.argsort(dim=2, stable=True).argsort(dim=2, stable=True)
    dropped = torch.full((groups.shape[1], 1), NEIGHBOURS - KEPT, device=rank.device)
    if missing:
        dropped[-1] = (NEIGHBOURS - missing) // 2
    kept = (rank >= dropped).to(magnitude.dtype).flatten(1)[:, : rows.shape[1]].view(inputs_last.shape)
    return kept.movedim(-1, inputs)


class HeldMasks:
    """A constraint that keeps `masks` (by parameter name) on the parameters of any network, captured ones too."""

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.weights = [parameters[name] for name in masks]
        self.masks = list(masks.values())

    def before_step(self, step: int, steps: int) -> bool:
        """Nothing tightens."""
        return False

    def after_step(self) -> None:
        """Pruned weights are zero again."""
        with torch.no_grad():
            for weight, mask in zip(self.weights, self.masks, strict=True):
                weight.mul_(mask)

    def resume(self) -> None:
        """The masks stay as they are."""


class MaskedPruning:
    """A constraint that sets weights to zero, `unstructured` or `n_m`, at once or along the ramp."""

    def __init__(self, model: nn.Module, pruning: Pruning, embeddings: bool = False) -> None:
        plain_layers(model)
        self.model, self.pruning = model, pruning
        self.weights = maskable(model, embeddings)
        self.transposed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, TRANSPOSED)}
        self.held = HeldMasks(model, {})

    def before_step(self, step: int, steps: int) -> bool:
        """New masks when it is time for them; never replaces a parameter."""
        tightened = due(self.pruning, step, steps, MASK_UPDATES)
        if tightened is not None:
            self._mask(tightened)
        return False

    def after_step(self) -> None:
        """Pruned weights are zero again."""
        self.held.after_step()

    def resume(self) -> None:
        """What is zero stays zero."""
        masks = {name: (weight != 0).to(weight.dtype) for name, weight in self.weights.items()}
        self.held = HeldMasks(self.model, masks)

    def finish(self) -> Masks:
        """The final masks, by parameter name; raises TrainingError when the sparsity is not what was asked for."""
        self._mask(1.0)
        if self.pruning.granularity == "unstructured":
            _assert_reached(self.weights, self.pruning.sparsity)
        return dict(zip(self.weights, self.held.masks, strict=True))

    def _mask(self, progress: float) -> None:
        if not self.weights:
            return
        if self.pruning.granularity == "n_m":
            masks = pattern_masks(self.weights, ramp(progress, 1.0), self.transposed)
        else:
            masks = magnitude_masks(self.weights, ramp(progress, self.pruning.sparsity))
        self.held = HeldMasks(self.model, masks)
        self.held.after_step()


def sparsity(weights: Weights, dense: int | None = None) -> float:
    """Share of zeros among `weights`; with `dense`, the number of weights once, removed ones count as zeros."""
    total = dense if dense is not None else sum(w.numel() for w in weights.values())
    return 1.0 - sum(int(torch.count_nonzero(w)) for w in weights.values()) / total if total else 0.0


def _assert_reached(weights: Weights, wanted: float) -> None:
    total, reached = sum(weight.numel() for weight in weights.values()), sparsity(weights)
    # Relative to what is kept: at 99.5 % an absolute bound of half a point would let anything pass.
    if total and abs(reached - wanted) > TOLERANCE * (1.0 - wanted) + 1.0 / total:
        raise TrainingError(f"pruning.sparsity: {wanted:.4f} was asked for and {reached:.4f} was reached")
