"""What can be narrowed in a network, as units: groups of channels that go together, whole attention heads.

No unit is trusted: each removal is compared with the same network whose removed channels are not listened to, and
undone where the two differ.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import nn

from trainers.pytorch.capture import Example, outputs_of
from trainers.pytorch.evaluate import evaluating
from trainers.pytorch.export import FLOAT_ERROR, relative_error
from trainers.pytorch.importance import Importance
from trainers.pytorch.layers import channels_of, layers_of
from trainers.pytorch.parts import UnitError, first_line, inputs_of, readable_parts


class Unit(Protocol):
    """Channels or heads that are removed one by one. `name`: of the layer or module that they belong to.

    `step`: widths are multiples of it. `blocks`: parts of equal size that lose the same places. `exact`: whether
    removing is the same as not listening.
    """

    name: str
    kind: str
    step: int
    blocks: int
    exact: bool

    def layers(self) -> dict[str, int]:
        """Layer -> its number of output channels now, of every layer with weights that becomes narrower."""
        ...

    def width(self) -> int:
        """How many there are now."""
        ...

    def scores(self, importance: Importance) -> torch.Tensor:
        """float [width]: what each is worth."""
        ...

    def removed(self, positions: list[int]) -> contextlib.AbstractContextManager[None]:
        """The network that does not listen to those at `positions`, for a while."""
        ...

    def remove(self, positions: list[int]) -> dict[str, list[int]]:
        """Remove those at `positions`, sorted or not. Layer -> which of its output channels that were."""
        ...


def least(unit: Unit, importance: Importance, count: int) -> list[int]:
    """The places of the `count` least important channels or heads of the unit."""
    scores = unit.scores(importance)
    size = len(scores) // unit.blocks
    chosen = scores[:size].argsort()[: count // unit.blocks].tolist()
    return [block * size + place for block in range(unit.blocks) for place in chosen]


class Network:
    """A network, what it says to an example, and the parts of it that can be read.

    `kept`: layer -> which of its output channels, as they were numbered at first, are left.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        self.model, self.example = model, example
        self.kept = {name: list(range(channels_of(layer))) for name, layer in layers_of(model).items()}
        gc.freeze()
        self.parts = readable_parts(model, example)
        self.names = {module: name for name, module in model.named_modules()}

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """The network as it is now, read for a while.

        A graph holds on to autograd's nodes of the parameters; kept while the network trains, these would expect
        gradients of the widths that a checkpoint may have replaced since. The garbage collector looks for it among what
        was made since `gc.freeze()` alone: among all that the frameworks have made it takes a fifth of a second.
        """
        if any(part.graph is None for part in self.parts):
            gc.freeze()
            self.rebuild()
        try:
            yield
        finally:
            for part in self.parts:
                part.graph = None
            gc.collect()
            gc.unfreeze()

    def rebuild(self) -> None:
        """Read the network anew."""
        given = inputs_of(self.model, self.example) if any(part.name for part in self.parts) else {}
        for part in self.parts:
            part.example = given.get(part.name, self.example)
            part.rebuild()

    def answers(self) -> Example:
        """The network's outputs for the example."""
        with torch.no_grad(), evaluating(self.model):
            return outputs_of(self.model(*self.example))

    def remove(self, unit: Unit, positions: list[int]) -> None:
        """Remove the unit's positions; raises UnitError, with the network as it was, where that is not right.

        Right is what gives the same answers as not listening to what was removed.
        """
        with unit.removed(positions):
            wanted = self.answers()
        before = _Snapshot(self.model)
        try:
            gone = unit.remove(positions)
            found = self.answers()
        except Exception as problem:  # whatever a network says to a width that it does not expect
            before.restore()
            self.rebuild()
            raise UnitError(f"the network does not run with fewer: {first_line(problem)}") from problem
        reason = _difference(found, wanted, unit.exact)
        if reason:
            before.restore()
            self.rebuild()
            raise UnitError(reason)
        before.keep_frozen()
        for name, channels in gone.items():
            removed = set(channels)
            self.kept[name] = [each for place, each in enumerate(self.kept[name]) if place not in removed]


def _difference(found: Example, wanted: Example, exact: bool) -> str:
    for one, other in zip(found, wanted, strict=True):
        if one.shape != other.shape:
            return f"it would change an output's shape from {tuple(other.shape)} to {tuple(one.shape)}"
        if exact and relative_error(one.cpu().numpy(), other.cpu().numpy()) > FLOAT_ERROR:
            return "the network computes with its channels in a way that is not known here (split, shuffled or mixed)"
    return ""


class _Snapshot:
    """All that modules hold of themselves: removing replaces parameters and sizes, never their contents."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        self.held = [
            (module, dict(vars(module)), dict(module._parameters), dict(module._buffers)) for module in model.modules()
        ]

    def restore(self) -> None:
        """Make the network what it was."""
        for module, attributes, parameters, buffers in self.held:
            vars(module).clear()
            vars(module).update(attributes)
            for kept, held in ((module._parameters, parameters), (module._buffers, buffers)):
                kept.clear()
                kept.update(held)

    def keep_frozen(self) -> None:
        """Narrower parameters train, or do not, as the wide ones did."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in self.frozen)
