"""The state of a long training on disk, so that a killed one goes on from its last epoch."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

EVERY_S = 60.0  # a training shorter than this is as quickly done again

State = dict[str, Any]


class Checkpoints:
    """One file per stage in `folder`. `key`: what the training depends on; the state of another one is not used."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self._key, self._last = folder, key, time.monotonic()

    def due(self) -> bool:
        """Whether more than EVERY_S seconds have passed since the last state was written, or since the start."""
        return time.monotonic() - self._last > EVERY_S

    def save(self, stage: str, state: State) -> str:
        """Write the state; what was there stays until the new one is complete. Returns why it failed, "" if it did not.

        A training does not end because of a full disk, or of another one that cleared the folder.
        """
        self._last = time.monotonic()
        partial = self.folder / f".{stage}.{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save({"key": self._key, **state}, partial)
            partial.rename(self._file(stage))
        except (OSError, RuntimeError) as error:  # torch's writer knows RuntimeError alone
            with contextlib.suppress(OSError):
                partial.unlink()
            return f"{self.folder}: {str(error).splitlines()[0]}"
        return ""

    def load(self, stage: str) -> State | None:
        """What was saved of this stage; None without, or when it is of another training or cannot be read."""
        try:
            state: State = torch.load(self._file(stage), map_location="cpu", weights_only=True)
        except Exception:  # missing, or damaged: torch raises whatever its reader meets
            return None
        return state if state["key"] == self._key else None

    def clear(self) -> None:
        """The training has ended: nothing is left."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, stage: str) -> Path:
        return self.folder / f"{stage}.pt"


def network_state(model: nn.Module) -> State:
    """The weights, and the sizes that modules keep of themselves, which pruning changes."""
    weights = {name: tensor.detach().cpu() for name, tensor in _tensors(model).items()}
    return {"weights": weights, "sizes": _sizes(model)}


def restore_network(model: nn.Module, state: State) -> None:
    """Give the network, of the same kind but perhaps wider, the weights and sizes of `network_state`, in place."""
    for name, tensor in _tensors(model).items():
        tensor.data = state["weights"][name].to(tensor.device, tensor.dtype)
    modules = dict(model.named_modules())
    for name, sizes in state["sizes"].items():
        for attribute, value in sizes.items():
            setattr(modules[name], attribute, value)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _sizes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Module -> its attributes that are whole numbers or tuples of them: widths, groups, heads."""
    found = {}
    for name, module in model.named_modules():
        sizes = {
            key: value
            for key, value in vars(module).items()
            if type(value) is int or (type(value) is tuple and value and all(type(each) is int for each in value))
        }
        if sizes:
            found[name] = sizes
    return found
