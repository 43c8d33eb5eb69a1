"""The moving average of a network's weights while it trains (Polyak & Juditsky 1992): often better than the last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

STATISTICS = ("running_mean", "running_var")  # of batch norm: averaged like weights


class MovingAverage:
    """An exponential moving average with `decay` a step, begun anew when a network changes its shape."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.restart(model)

    def restart(self, model: nn.Module) -> None:
        """Begin with the weights as they are now."""
        self._model = model
        self._kept = [tensor.detach().clone() for tensor in _averaged(model)]
        self._steps = 0

    def update(self) -> None:
        """After a step. The first steps count more: a short training would else keep where it began."""
        self._steps += 1
        decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
        with torch.no_grad():
            torch._foreach_lerp_(self._kept, [tensor.detach() for tensor in _averaged(self._model)], 1.0 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The network with the averaged weights, for a while."""
        held = [tensor.detach().clone() for tensor in _averaged(self._model)]
        self.keep()
        yield
        _copy(held, self._model)

    def keep(self) -> None:
        """Give the network the averaged weights."""
        _copy(self._kept, self._model)

    def state(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"kept": self._kept, "steps": self._steps}

    def restore(self, state: dict[str, object]) -> None:
        """What `state` gave."""
        self._kept, self._steps = list(state["kept"]), int(state["steps"])  # type: ignore[call-overload]


def _averaged(model: nn.Module) -> list[torch.Tensor]:
    statistics = [each for name, each in model.named_buffers() if name.rpartition(".")[2] in STATISTICS]
    return [*model.parameters(), *statistics]


def _copy(values: list[torch.Tensor], model: nn.Module) -> None:
    with torch.no_grad():
        for tensor, value in zip(_averaged(model), values, strict=True):
            tensor.copy_(value)
