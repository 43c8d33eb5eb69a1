"""Images turned, scaled, sheared and shifted a little: copies of a training split, made once and learned from often."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

CHUNK = 2000  # images at once


@dataclass(frozen=True)
class Affine:
    """How far an image may move, each drawn evenly: `turn` in degrees either way, `scale` of each axis as a factor
    between e^-scale and e^scale, `shear` as x moved per y, `shift` in pixels either way.
    """

    turn: float = 12.0
    scale: float = 0.1
    shear: float = 0.12
    shift: float = 2.0


def affine_copy(images: torch.Tensor, seed: int, how: Affine | None = None) -> torch.Tensor:
    """A copy of `images`, [N, C, H, W] of any number type, each moved by its own draw; the same for the same seed.

    Bilinear; what comes in from outside has the value of the nearest edge. Integer images are rounded.
    """
    how, generator = how or Affine(), torch.Generator().manual_seed(seed)
    made = []
    for chunk in images.split(CHUNK):
        matrices = _matrices(len(chunk), tuple(images.shape[2:]), how, generator).to(chunk.device)
        grid = nn.functional.affine_grid(matrices, list(chunk.shape), align_corners=False)
        moved = nn.functional.grid_sample(chunk.float(), grid, padding_mode="border", align_corners=False)
        if not chunk.dtype.is_floating_point:
            bounds = torch.iinfo(chunk.dtype)
            moved = moved.round().clamp(bounds.min, bounds.max)
        made.append(moved.to(chunk.dtype))
    return torch.cat(made)


def _matrices(count: int, size: tuple[int, ...], how: Affine, generator: torch.Generator) -> torch.Tensor:
    """float32 [count, 2, 3]: from where in the old image each point of the new one comes, both in -1 to 1."""
    draw = torch.rand((6, count), generator=generator) * 2 - 1
    turn = draw[0] * math.radians(how.turn)
    across, down = torch.exp(draw[1] * how.scale), torch.exp(draw[2] * how.scale)
    shear, (height, width) = draw[3] * how.shear, size
    x = torch.stack([turn.cos() * across, (shear - turn.sin()) * down, draw[4] * how.shift * 2 / width], 1)
    y = torch.stack([turn.sin() * across, turn.cos() * down, draw[5] * how.shift * 2 / height], 1)
    return torch.stack([x, y], 1)
