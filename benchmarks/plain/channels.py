"""Channels cut by hand, as one does for one's own networks: whole rows out of a layer, and out of what reads them."""

from __future__ import annotations

import itertools

import torch
from torch import nn

STEP = 4  # widths are multiples of it: vector kernels work in such groups


def cut(network: nn.Module, share: float) -> None:
    """Remove that share of the channels of every inner layer, those with the smallest weights, in place."""
    blocks = getattr(network, "blocks", None)
    if blocks is not None:  # ResNet: within each block; what is added to the shortcut keeps its width
        for block in blocks:
            kept = strongest(block.conv1.weight, share)
            rows(block.conv1, kept)
            norm(block.bn1, kept)
            columns(block.conv2, kept)
        return
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    for layer, reader in itertools.pairwise(layers):
        kept = strongest(layer.weight, share)
        if isinstance(layer, nn.Conv2d) and isinstance(reader, nn.Linear):  # flattened: so many pixels per channel
            pixels = reader.in_features // layer.out_channels
            rows(layer, kept)
            columns(reader, (kept[:, None] * pixels + torch.arange(pixels)).flatten())
        else:
            rows(layer, kept)
            columns(reader, kept)


def strongest(weight: torch.Tensor, share: float) -> torch.Tensor:
    """int64: the rows to keep, in order."""
    count = len(weight)
    keep = min(count, max(STEP, STEP * round(count * (1 - share) / STEP)))
    return weight.detach().flatten(1).norm(dim=1).topk(keep).indices.sort().values


def rows(layer: nn.Module, kept: torch.Tensor) -> None:
    """Only these outputs."""
    layer.weight = nn.Parameter(layer.weight.detach()[kept].clone())
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[kept].clone())
    setattr(layer, "out_channels" if isinstance(layer, nn.Conv2d) else "out_features", len(kept))


def columns(layer: nn.Module, kept: torch.Tensor) -> None:
    """Only these inputs."""
    layer.weight = nn.Parameter(layer.weight.detach()[:, kept].clone())
    setattr(layer, "in_channels" if isinstance(layer, nn.Conv2d) else "in_features", len(kept))


def norm(layer: nn.BatchNorm2d, kept: torch.Tensor) -> None:
    """Only these channels of a batch norm."""
    for name in ("weight", "bias"):
        setattr(layer, name, nn.Parameter(getattr(layer, name).detach()[kept].clone()))
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean, layer.running_var = layer.running_mean[kept].clone(), layer.running_var[kept].clone()
    layer.num_features = len(kept)
