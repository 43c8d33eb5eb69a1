"""What a channel or a head is worth: by its weights, by what the loss would lose, by what it says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
import torch_pruning as tp
from torch import nn

from trainers.pytorch.capture import Example
from trainers.pytorch.evaluate import evaluating

IMPORTANCES = ("magnitude", "taylor", "activation")


class Importance(Protocol):
    """Scores, of which only the order within one unit and, normalized, the order between units mean something."""

    def channels(self, group: tp.dependency.Group) -> torch.Tensor:
        """float [channels] of a dependency group with all of its channels."""
        ...

    def rows(self, layer: nn.Module, axis: int, positions: Sequence[int]) -> float:
        """Of the `positions` along `axis` of the layer's weight together; axis 1 is that of its inputs."""
        ...


class Magnitude:
    """L2 norm over all weights of the group."""

    def __init__(self) -> None:
        self._group = tp.importance.GroupMagnitudeImportance(p=2)

    def channels(self, group: tp.dependency.Group) -> torch.Tensor:
        """float [channels] of a dependency group with all of its channels."""
        scores: torch.Tensor = self._group(group)
        return scores

    def rows(self, layer: nn.Module, axis: int, positions: Sequence[int]) -> float:
        """Of the `positions` along `axis` of the layer's weight together; axis 1 is that of its inputs."""
        return float(_slice(layer.weight, axis, positions).detach().square().sum())


class Taylor:
    """First-order estimate of what the loss loses, |weight * gradient| summed: Molchanov et al., arXiv:1906.10771.

    The gradients are those that the parameters hold: see `accumulate_gradients`.
    """

    def __init__(self) -> None:
        self._group = tp.importance.GroupTaylorImportance()

    def channels(self, group: tp.dependency.Group) -> torch.Tensor:
        """float [channels] of a dependency group with all of its channels."""
        scores: torch.Tensor = self._group(group)
        return scores

    def rows(self, layer: nn.Module, axis: int, positions: Sequence[int]) -> float:
        """Of the `positions` along `axis` of the layer's weight together; axis 1 is that of its inputs."""
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        assert weight.grad is not None
        return float((_slice(weight, axis, positions) * _slice(weight.grad, axis, positions)).abs().sum())


class Activation:
    """Mean magnitude of what a channel says, over a few batches, as a share of its layer's."""

    def __init__(self, model: nn.Module, batches: Iterable[Example]) -> None:
        self.given: dict[nn.Module, torch.Tensor] = {}
        self.made: dict[nn.Module, torch.Tensor] = {}
        with _watched(model, self._watch), torch.no_grad(), evaluating(model):
            for batch in batches:
                model(*batch)

    def channels(self, group: tp.dependency.Group) -> torch.Tensor:
        """float [channels] of a dependency group with all of its channels."""
        found = [
            self.made[dep.target.module][list(idxs)] / self.made[dep.target.module].mean().clamp(min=1e-12)
            for dep, idxs in group
            if dep.target.module in self.made
            and len(self.made[dep.target.module]) > max(idxs)
            and dep.handler.__name__ == "prune_out_channels"
        ]
        return torch.stack(found).sum(0)

    def rows(self, layer: nn.Module, axis: int, positions: Sequence[int]) -> float:
        """See Importance: by what comes into the layer, its own rows count nothing."""
        return float(self.given[layer][list(positions)].sum()) if axis == 1 else 0.0

    def _watch(self, layer: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        for store, values, axis in ((self.given, given[0], _axis(layer)), (self.made, made, _axis(layer))):
            others = [each for each in range(values.dim()) if each != axis % values.dim()]
            store[layer] = store.get(layer, 0.0) + values.abs().float().mean(others)


def _axis(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1


@contextlib.contextmanager
def _watched(model: nn.Module, watch: Callable[..., None]) -> Iterator[None]:
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    hooks = [layer.register_forward_hook(watch) for layer in model.modules() if isinstance(layer, kinds)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def accumulate_gradients(
    model: nn.Module, batches: Iterable[object], loss_of: Callable[[nn.Module, object], torch.Tensor]
) -> None:
    """Leave the gradients of the summed loss over `batches` on the parameters, in evaluation mode."""
    model.zero_grad()
    with evaluating(model):
        for batch in batches:
            loss_of(model, batch).backward()


def _slice(weight: torch.Tensor, axis: int, positions: Sequence[int]) -> torch.Tensor:
    return weight.index_select(axis, torch.as_tensor(list(positions), device=weight.device))
