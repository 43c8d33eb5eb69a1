"""Channels and heads that are really removed, at once or along the ramp; what was narrowed, and what was not and
why."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from trainers.base import TrainingError
from trainers.pytorch.allocation import Size, across, by_sensitivity, uniform
from trainers.pytorch.capture import Example
from trainers.pytorch.evaluate import evaluating
from trainers.pytorch.groups import ChannelGroup
from trainers.pytorch.heads import attention_heads
from trainers.pytorch.importance import Importance, Magnitude
from trainers.pytorch.layers import channels_of, layers_of, plain_layers
from trainers.pytorch.parts import UnitError
from trainers.pytorch.ramp import due, ramp
from trainers.pytorch.units import Network, Unit, least
from trainers.recipe import Pruning

CHANNEL_UPDATES = 3  # along the ramp: each loses the optimizer's memory


@dataclass(frozen=True)
class Narrowed:
    """One layer: its output channels before and now; `whole`: why it kept them all, "" where it did not have to.

    `inner`: whether the network itself listens to them; what others do (outputs, heads) is not there to be removed.
    """

    layer: str
    before: int
    now: int
    whole: str = ""
    inner: bool = True


@dataclass(frozen=True)
class Coverage:
    """What channel pruning reaches in a network: every convolution and linear layer, in order."""

    layers: tuple[Narrowed, ...]

    def removed(self) -> float:
        """Share of all inner layers' output channels that is removed."""
        inner = [each for each in self.layers if each.inner]
        before = sum(each.before for each in inner)
        return 1.0 - sum(each.now for each in inner) / before if before else 0.0

    def describe(self) -> str:
        """In words: how many layers became narrower, and why others did not, the most frequent reasons first."""
        narrower = sum(each.now < each.before for each in self.layers)
        reasons = Counter(each.whole for each in self.layers if each.whole and each.inner)
        whole = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common(3))
        found = (
            f"channels: {narrower} of {len(self.layers)} layers narrower, {100 * self.removed():.0f} % of channels gone"
        )
        return f"{found}; left whole: {whole}" if whole else found

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return asdict(self)


class ChannelPruning:
    """A constraint that removes channels and attention heads, at once or along the ramp.

    `keep`: names of modules that keep their width. What cannot be narrowed is left as it is; see `coverage`.
    `importance`: judges a network, anew each time that it is narrowed. `losses`: for the allocation by sensitivity,
    what `sensitivity` gave.
    """

    def __init__(
        self,
        model: nn.Module,
        pruning: Pruning,
        example: Example,
        keep: Collection[str] = (),
        allocation: str = "uniform",
        importance: Callable[[nn.Module], Importance] | None = None,
        losses: Mapping[str, Mapping[int, float]] | None = None,
    ) -> None:
        plain_layers(model)
        self.model, self.pruning, self.allocation = model, pruning, allocation
        self._judge = importance
        self.importance: Importance = Magnitude()
        self.losses = losses or {}
        self.dense = {name: channels_of(layer) for name, layer in layers_of(model).items()}
        self.whole: dict[str, tuple[str, bool]] = {}  # layer -> why it keeps its channels, and whether it is an end
        self.network = Network(model, example)
        with self.network.read():
            self.units = self._find(keep)
        self.sizes = {unit.name: Size(unit.width(), unit.step) for unit in self.units}

    def before_step(self, step: int, steps: int) -> bool:
        """Narrow the layers when it is time for it; True when that replaced parameters."""
        tightened = due(self.pruning, step, steps, CHANNEL_UPDATES)
        return tightened is not None and self.narrow(ramp(tightened, self.pruning.sparsity))

    def after_step(self) -> None:
        """Removed channels cannot come back."""

    def resume(self) -> None:
        """Nothing is kept but the network itself, which may be narrower than it was."""

    def finish(self) -> float:
        """Share of the inner layers' channels that is removed; TrainingError when a width is not as asked for."""
        self.narrow(self.pruning.sparsity)
        if self.allocation == "uniform":
            wanted = uniform(self._sizes_left(), self.pruning.sparsity)
            for unit in self.units:
                if unit.name in wanted and unit.width() != wanted[unit.name]:
                    raise TrainingError(
                        f"pruning: layer {unit.name} has {unit.width()} {unit.kind} after pruning "
                        f"instead of {wanted[unit.name]}"
                    )
        return self.coverage().removed()

    def coverage(self) -> Coverage:
        """Every layer's channels before and now, and why it kept them."""
        found, layers = [], layers_of(self.model)
        for name, before in self.dense.items():
            reason, outer = self.whole.get(name, ("", False))
            found.append(Narrowed(name, before, channels_of(layers[name]), reason, not outer))
        return Coverage(tuple(found))

    def narrow(self, sparsity: float) -> bool:
        """Narrow every unit to what the allocation gives it at `sparsity`; True when anything was removed."""
        if self.allocation != "global" and not self._surplus(self._targets(sparsity)):
            return False
        self.judge()
        with self.network.read():
            surplus = self._surplus(self._targets(sparsity))
            removed = [self._remove(unit, surplus[unit.name]) for unit in self.units if unit.name in surplus]
        return any(removed)

    def judge(self) -> None:
        """Look at the network as it is now: what gradients and activations said of a wider one holds no more."""
        if self._judge is not None:
            self.importance = self._judge(self.model)

    def _surplus(self, targets: Mapping[str, int]) -> dict[str, int]:
        widths = {unit.name: unit.width() for unit in self.units if unit.name in targets}
        return {name: width - targets[name] for name, width in widths.items() if width > targets[name]}

    def _sizes_left(self) -> dict[str, Size]:
        return {name: size for name, size in self.sizes.items() if name not in self.whole}

    def _targets(self, sparsity: float) -> dict[str, int]:
        sizes = self._sizes_left()
        if self.allocation == "global":
            scores = {unit.name: unit.scores(self.importance).tolist() for unit in self.units if unit.name in sizes}
            return across(sizes, scores, sparsity)
        if self.allocation == "sensitivity":
            return by_sensitivity(sizes, self.losses, sparsity)
        return uniform(sizes, sparsity)

    def _remove(self, unit: Unit, surplus: int) -> bool:
        try:
            self.network.remove(unit, least(unit, self.importance, surplus))
        except UnitError as problem:
            self._leave(unit, problem)
            return False
        return True

    def _leave(self, unit: Unit, problem: UnitError) -> None:
        # The reason alone: a kept exception keeps the frames that raised it, and with them autograd's graph.
        self.whole |= dict.fromkeys((unit.name, *unit.layers()), (str(problem), problem.outer))

    def _find(self, keep: Collection[str]) -> list[Unit]:
        found: list[Unit] = []
        taken: set[str] = set()
        for heads in attention_heads(self.network):
            taken |= set(heads.layers())
            if any(heads.name == name or heads.name.startswith(f"{name}.") for name in keep):
                self._leave(heads, UnitError(f"{heads.name} keeps its heads: it was named to be kept", outer=True))
            else:
                found.append(heads)
        for name in self.dense:
            if name in taken:
                continue
            try:
                group = ChannelGroup(self.network, name, keep)
            except UnitError as problem:
                self.whole[name] = str(problem), problem.outer
                continue
            taken |= set(group.layers())
            found.append(group)
        order = {name: index for index, name in enumerate(self.dense)}
        return sorted(found, key=lambda unit: min(order[name] for name in unit.layers()))


def sensitivity(
    narrowing: ChannelPruning, loss: Callable[[nn.Module], float], shares: Sequence[float] = (0.25, 0.5, 0.75)
) -> dict[str, dict[int, float]]:
    """Unit -> width -> the network's loss when that unit alone has so many channels, the dense width included.

    Nothing is removed: what the channels say is not listened to. `loss`: of a network in evaluation mode.
    """
    found: dict[str, dict[int, float]] = {}
    narrowing.judge()
    with evaluating(narrowing.model), narrowing.network.read():
        dense = loss(narrowing.model)
        for unit in narrowing.units:
            size, losses = narrowing.sizes[unit.name], {unit.width(): dense}
            for share in shares:
                width = size.rounded(size.dense * (1.0 - share))
                if width < unit.width():
                    with unit.removed(least(unit, narrowing.importance, unit.width() - width)):
                        losses[width] = loss(narrowing.model)
            found[unit.name] = losses
    return found


def shape(
    model: nn.Module, example: Example, pruning: Pruning, keep: Collection[str] = (), **options: Any
) -> dict[str, int]:
    """Layer -> output channels that a recipe would leave, without training; the model stays as it is.

    `options`: as ChannelPruning takes them. By the uniform allocation these depend on nothing but the architecture.
    """
    narrowing = ChannelPruning(copy.deepcopy(model), pruning, example, keep, **options)
    narrowing.finish()
    return {each.layer: each.now for each in narrowing.coverage().layers}
