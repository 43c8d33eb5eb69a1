"""What every network has, whoever built it: layers with prunable weights, and parameters."""

from __future__ import annotations

from torch import nn


def prunable(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Name -> layer of every layer whose weight may be pruned: all convolutions and fully connected layers."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}


def trainable(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
