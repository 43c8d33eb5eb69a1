"""What every network has, whoever built it: layers with prunable weights, parameters, weights on disk."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import safetensors.torch
from torch import nn


def prunable(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Name -> layer of every layer whose weight may be pruned: all convolutions and fully connected layers."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}


def trainable(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def save(model: nn.Module, file: Path) -> None:
    """Write parameters and buffers as safetensors; a tensor that has several names is written once."""
    safetensors.torch.save_model(model.cpu(), str(file))


def load(model: nn.Module, file: Path) -> nn.Module:
    """Give the model what `save` wrote; returns it. Raises RuntimeError when the file is of another model."""
    safetensors.torch.load_model(model, str(file))
    return model


def weights_to_freeze(model: nn.Module, head: Collection[str]) -> set[str]:
    """Names of all parameters but those of norms, biases, and the modules named in `head`."""
    trained = {
        name
        for name, module in model.named_modules()
        if name in head or ("Norm" in type(module).__name__ and not list(module.children()))
    }
    return {
        name
        for name, _ in model.named_parameters()
        if not name.endswith("bias") and not any(name.startswith(f"{module}.") for module in trained)
    }


def freeze(model: nn.Module, names: Collection[str]) -> None:
    """Train the named parameters no more."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
