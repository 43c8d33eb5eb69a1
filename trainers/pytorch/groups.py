"""Channels that go together: a layer's outputs and all that depends on them, over the dependency graph.

DepGraph, arXiv:2301.12900, by torch-pruning: what depends on a removed channel (batch norm, the next layers' inputs,
branches that are added) shrinks with it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from trainers.base import step_of
from trainers.pytorch.importance import Importance
from trainers.pytorch.layers import CONVOLUTIONS, LAYERS, channels_of
from trainers.pytorch.parts import Part, UnitError, first_line
from trainers.pytorch.units import Network


class ChannelGroup:
    """The output channels of the layer `name`, and all that goes with them. Raises UnitError where they must stay.

    `keep`: names of modules whose width stays.
    """

    kind = "channels"

    def __init__(self, network: Network, name: str, keep: Collection[str] = ()) -> None:
        self.network, self.name, self._part = network, name, _part_of(network, name)
        group = self._group([0])  # one channel says who is concerned; to follow all of them may take long
        members = [dep.target.module for dep, _ in group]
        self.exact = not any(isinstance(each, nn.GroupNorm) for each in members)  # it would average over fewer
        self.blocks = math.lcm(*map(_blocks, members))
        self.step = self.blocks * max(1, round(step_of(self.width()) / self.blocks))
        self._layers = [
            network.names[each]
            for each in dict.fromkeys(dep.target.module for dep, _ in group if self._gives(dep))
            if isinstance(each, LAYERS)
        ]
        self._check(group, keep)

    def layers(self) -> dict[str, int]:
        """Layer -> its number of output channels now, of every layer with weights in the group."""
        return {name: channels_of(self.network.model.get_submodule(name)) for name in self._layers}

    def width(self) -> int:
        """Output channels of the layer now."""
        return channels_of(self._layer())

    def scores(self, importance: Importance) -> torch.Tensor:
        """float [width]; channels at the same place of grouped convolutions' groups share their mean."""
        scores = importance.channels(self._group()).float()
        if self.blocks == 1:
            return scores
        return scores.view(self.blocks, -1).mean(0).repeat(self.blocks)

    @contextlib.contextmanager
    def removed(self, positions: list[int]) -> Iterator[None]:
        """The weights by which others listen to the channels are zero, for a while."""
        silenced: list[tuple[torch.Tensor, torch.Tensor]] = []
        for dep, channels in self._group(positions):
            if self._takes(dep):
                silenced += _silence(dep.target.module, list(channels))
        try:
            yield
        finally:
            for weight, original in reversed(silenced):
                weight.copy_(original)

    def remove(self, positions: list[int]) -> dict[str, list[int]]:
        """Remove the channels at `positions` from everything that has them."""
        group = self._group(positions)
        gone = {
            self.network.names[dep.target.module]: list(idxs)
            for dep, idxs in group
            if self._gives(dep) and isinstance(dep.target.module, LAYERS)
        }
        group.prune()
        return gone

    def _layer(self) -> nn.Module:
        return self.network.model.get_submodule(self.name)

    def _group(self, positions: list[int] | None = None) -> tp.dependency.Group:
        layer = self._layer()
        prune_outputs = self._part.graph.get_pruner_of_module(layer).prune_out_channels
        wanted = list(range(channels_of(layer))) if positions is None else positions
        try:
            return self._part.graph.get_pruning_group(layer, prune_outputs, wanted)
        except Exception as problem:  # an index arithmetic that torch-pruning does not know
            raise UnitError(f"torch-pruning cannot follow its channels: {first_line(problem)}") from problem

    def _gives(self, dep: tp.dependency.Dependency) -> bool:
        return bool(self._part.graph.is_out_channel_pruning_fn(dep.handler))

    def _takes(self, dep: tp.dependency.Dependency) -> bool:
        """Whether a layer listens to the channels and gives others."""
        if not self._part.graph.is_in_channel_pruning_fn(dep.handler):
            return False
        return isinstance(dep.target.module, nn.Module) and not _goes_along(dep.target.module)

    def _check(self, group: tp.dependency.Group, keep: Collection[str]) -> None:
        """Raise UnitError where the channels must stay."""
        for name in self._layers:
            if any(name == kept or name.startswith(f"{kept}.") for kept in keep):
                raise UnitError(f"{name} keeps its width: it is a head, or was named to be kept", outer=True)
        for each in dict.fromkeys(dep.target.module for dep, _ in group):
            if isinstance(each, nn.LayerNorm):
                raise UnitError(
                    f"its channels are those of {self.network.names[each]}: a stream that many layers add to"
                )
            if isinstance(each, (nn.RNNBase, nn.MultiheadAttention)) and self._gives_from(group, each):
                raise UnitError(f"its channels are those of {self.network.names[each]}, whose width is fixed")
            if isinstance(each, nn.Parameter):
                raise UnitError("a parameter outside of any known layer has its channels")
        if not any(self._takes(dep) for dep, _ in group):
            where = self._part.name
            end = f"they are an output of {where}" if where else "they are an output of the network"
            raise UnitError(f"nothing takes its channels further: {end}", outer=not where)

    def _gives_from(self, group: tp.dependency.Group, module: nn.Module) -> bool:
        return any(dep.target.module is module and self._gives(dep) for dep, _ in group)


def _part_of(network: Network, name: str) -> Part:
    for part in network.parts:
        if not part.name or name == part.name or name.startswith(f"{part.name}."):
            return part
    raise UnitError("torch-pruning cannot read the module that it is part of")


def _blocks(module: Any) -> int:
    """Into how many parts of equal size the module divides its channels."""
    if isinstance(module, CONVOLUTIONS):
        return 1 if _goes_along(module) else int(module.groups)
    return int(module.num_groups) if isinstance(module, nn.GroupNorm) else 1


def _goes_along(module: nn.Module) -> bool:
    """Whether a channel that comes in is the one that goes out: norms, depthwise convolutions."""
    if isinstance(module, CONVOLUTIONS):
        return bool(1 < module.groups == module.in_channels == module.out_channels)
    return not isinstance(module, (nn.Linear, nn.RNNBase, nn.MultiheadAttention))


def _silence(module: nn.Module, channels: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Make the weights zero that listen to the input `channels`; returns each weight and what it was.

    Raises UnitError for a kind of module whose weights are not known.
    """
    if isinstance(module, nn.RNNBase):
        weights = [weight.data for name, weight in module.named_parameters() if name.startswith("weight_ih_l0")]
    elif isinstance(module, LAYERS):
        weights = [module.weight.data]
    else:
        raise UnitError(f"it is not known how {type(module).__name__} listens to its channels")
    originals = [weight.clone() for weight in weights]
    for weight in weights:
        if isinstance(module, CONVOLUTIONS) and module.transposed:
            weight[channels] = 0.0
        elif isinstance(module, CONVOLUTIONS) and module.groups > 1:
            size, outputs = module.in_channels // module.groups, module.out_channels // module.groups
            for channel in channels:
                group = channel // size
                weight[group * outputs : (group + 1) * outputs, channel % size] = 0.0
        else:
            weight[:, channels] = 0.0
    return list(zip(weights, originals, strict=True))
