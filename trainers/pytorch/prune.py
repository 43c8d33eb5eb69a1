"""Pruning while training: masks that hold weights at zero, and channels that are really removed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch_pruning as tp
from torch import nn

from trainers.base import TrainingError, narrowed
from trainers.pytorch.evaluate import evaluating
from trainers.pytorch.models import prunable
from trainers.recipe import Pruning

RAMP = 0.6  # share of the steps during which `gradual` tightens; the rest only recovers
MASK_UPDATES = 40  # along the ramp
CHANNEL_UPDATES = 3  # along the ramp: each loses the optimizer's memory
TOLERANCE = 0.005
KEPT, NEIGHBOURS = 2, 4  # of the 2:4 pattern that tensor cores take

Masks = dict[str, torch.Tensor]


def ramp(progress: float, final: float) -> float:
    """Sparsity at `progress` in [0, 1] of the ramp: the cubic of Zhu & Gupta, arXiv:1710.01878, from 0 to `final`."""
    return final * (1.0 - (1.0 - min(1.0, progress)) ** 3)


def magnitude_masks(weights: dict[str, torch.Tensor], sparsity: float) -> Masks:
    """Masks (1 = kept) that drop the `sparsity` smallest magnitudes over all weights together, to the very weight."""
    total = sum(w.numel() for w in weights.values())
    return _without_smallest({name: w.detach().abs() for name, w in weights.items()}, round(sparsity * total))


def _without_smallest(scores: dict[str, torch.Tensor], dropped: int) -> Masks:
    every = torch.cat([score.flatten() for score in scores.values()])
    kept = torch.ones_like(every)
    # topk, not a threshold: of equal scores (weights that are zero already) it takes no more than asked.
    kept[every.topk(dropped, largest=False, sorted=False).indices] = 0.0
    parts = kept.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for part, (name, score) in zip(parts, scores.items(), strict=True)}


def pattern_masks(weights: dict[str, torch.Tensor], share: float = 1.0) -> Masks:
    """Masks (1 = kept) with 2 of every 4 neighbouring inputs kept, by magnitude; of a shorter last group, half.

    Neighbours lie along the input channels (for one input channel along the kernel), the order in which matrix
    units read them. `share`: of the weights that the pattern drops, how many are dropped, smallest first.
    """
    masks = {name: _pattern_mask(weight.detach().abs()) for name, weight in weights.items()}
    if share >= 1.0:
        return masks
    candidates = {name: weights[name].detach().abs().masked_fill(mask > 0, math.inf) for name, mask in masks.items()}
    every = sum(int((mask == 0).sum()) for mask in masks.values())
    return _without_smallest(candidates, round(share * every))


def _pattern_mask(magnitude: torch.Tensor) -> torch.Tensor:
    inputs_last = magnitude.permute(0, 2, 3, 1) if magnitude.dim() == 4 else magnitude
    rows = inputs_last.flatten(1)
    missing = -rows.shape[1] % NEIGHBOURS
    groups = nn.functional.pad(rows, (0, missing), value=math.inf).unflatten(1, (-1, NEIGHBOURS))
    rank = groups.argsort(dim=2, stable=True).argsort(dim=2, stable=True)
    dropped = torch.full((groups.shape[1], 1), NEIGHBOURS - KEPT, device=rank.device)
    if missing:
        dropped[-1] = (NEIGHBOURS - missing) // 2
    kept = (rank >= dropped).to(magnitude.dtype).flatten(1)[:, : rows.shape[1]].view(inputs_last.shape)
    return kept.permute(0, 3, 1, 2) if magnitude.dim() == 4 else kept


class HeldMasks:
    """A constraint that keeps `masks` (by parameter name) on the parameters of any network, captured ones too."""

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        parameters = dict(model.named_parameters())
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

    def __init__(self, model: nn.Module, pruning: Pruning) -> None:
        self.model, self.pruning = model, pruning
        self.weights = {f"{name}.weight": layer.weight for name, layer in prunable(model).items()}
        self.held = HeldMasks(model, {})

    def before_step(self, step: int, steps: int) -> bool:
        """New masks when it is time for them; never replaces a parameter."""
        tightened = _due(self.pruning, step, steps, MASK_UPDATES)
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
        wanted = 0.5 if self.pruning.granularity == "n_m" else self.pruning.sparsity
        _assert_reached(sparsity(self.weights), wanted)
        return dict(zip(self.weights, self.held.masks, strict=True))

    def _mask(self, progress: float) -> None:
        if self.pruning.granularity == "n_m":
            masks = pattern_masks(self.weights, ramp(progress, 1.0))
        else:
            masks = magnitude_masks(self.weights, ramp(progress, self.pruning.sparsity))
        self.held = HeldMasks(self.model, masks)
        self.held.after_step()


class ChannelPruning:
    """A constraint that removes output channels of every layer but the classifier, at once or along the ramp.

    What depends on a removed channel (batch norm, the next layer's inputs, branches that are added) shrinks with
    it: DepGraph, arXiv:2301.12900. The channels of the smallest L2 norm over their whole group go.
    """

    def __init__(self, model: nn.Module, pruning: Pruning, example: tuple[torch.Tensor, ...]) -> None:
        self.model, self.pruning, self.example = model, pruning, example
        self.dense = {name: layer.weight.shape[0] for name, layer in list(prunable(model).items())[:-1]}
        self.importance = tp.importance.GroupMagnitudeImportance(p=2)

    def before_step(self, step: int, steps: int) -> bool:
        """Narrow the layers when it is time for it; True when that replaced parameters."""
        tightened = _due(self.pruning, step, steps, CHANNEL_UPDATES)
        return tightened is not None and self._narrow(ramp(tightened, self.pruning.sparsity))

    def after_step(self) -> None:
        """Removed channels cannot come back."""

    def resume(self) -> None:
        """Nothing is kept but the network itself."""

    def finish(self) -> float:
        """Share of the prunable layers' channels that is removed; TrainingError when a width is not as asked for."""
        self._narrow(self.pruning.sparsity)
        for name, width in self._widths().items():
            wanted = narrowed(self.dense[name], self.pruning.sparsity)
            if width != wanted:
                raise TrainingError(f"pruning: layer {name} has {width} channels after pruning instead of {wanted}")
        return 1.0 - sum(self._widths().values()) / sum(self.dense.values())

    def _widths(self) -> dict[str, int]:
        layers = prunable(self.model)
        return {name: layers[name].weight.shape[0] for name in self.dense}

    def _narrow(self, final: float) -> bool:
        targets = {name: narrowed(channels, final) for name, channels in self.dense.items()}
        if self._widths() == targets:
            return False
        with evaluating(self.model):
            graph = tp.DependencyGraph().build_dependency(self.model, self.example)
        for name, target in targets.items():
            layer = prunable(self.model)[name]
            surplus = layer.weight.shape[0] - target
            if surplus > 0:
                prune_outputs = tp.prune_conv_out_channels if layer.weight.dim() == 4 else tp.prune_linear_out_channels
                scores = self.importance(
                    graph.get_pruning_group(layer, prune_outputs, list(range(layer.weight.shape[0])))
                )
                graph.get_pruning_group(layer, prune_outputs, scores.argsort()[:surplus].tolist()).prune()
        return True


def _due(pruning: Pruning, step: int, steps: int, updates: int) -> float | None:
    """Progress in [0, 1] along the ramp when `step` of `steps` is one at which pruning tightens, else None."""
    if pruning.schedule == "one_shot":
        return 1.0 if step == 0 else None
    length = max(1, round(RAMP * steps))
    every = max(1, length // updates)
    if step == length:
        return 1.0
    return step / length if 0 < step < length and step % every == 0 else None


def sparsity(weights: dict[str, torch.Tensor], dense: int | None = None) -> float:
    """Share of zeros among `weights`; with `dense`, the number of weights once, removed ones count as zeros."""
    total = dense if dense is not None else sum(w.numel() for w in weights.values())
    return 1.0 - sum(int(torch.count_nonzero(w)) for w in weights.values()) / total


def _assert_reached(reached: float, wanted: float) -> None:
    if abs(reached - wanted) > TOLERANCE:
        raise TrainingError(f"pruning.sparsity: {wanted:.3f} was asked for and {reached:.3f} was reached")


def reestimate(model: nn.Module, batches: Sequence[tuple[torch.Tensor, ...]]) -> None:
    """Batch norm's running mean and variance anew from inputs by position, as plain averages over the batches."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's way to say: a plain average
    model.train()
    with torch.no_grad():
        for inputs in batches:
            model(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
