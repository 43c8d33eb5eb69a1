"""Images turned, scaled, sheared and shifted a little, each by a draw of its own."""

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
    """A copy of `images`, [N, C, H, W] of any number type, each moved by its own draw; the same for the same seed."""
    drawn = matrices(len(images), tuple(images.shape[2:]), how or Affine(), seed)
    parts = zip(images.split(CHUNK), drawn.split(CHUNK), strict=True)
    return torch.cat([moved(chunk, each) for chunk, each in parts])


def moved(images: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """`images`, [B, C, H, W], each moved by its matrix of `by`, float32 [B, 2, 3], in the type and layout they have.

    Bilinear; what comes in from outside has the value of the nearest edge. Integer images are rounded.
    """
    grid = nn.functional.affine_grid(by.to(images.device), list(images.shape), align_corners=False)
    found = nn.functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    if not images.dtype.is_floating_point:
        bounds = torch.iinfo(images.dtype)
        found = found.round().clamp(bounds.min, bounds.max)
    return found.to(images.dtype)


def matrices(count: int, size: tuple[int, ...], how: Affine, seed: int) -> torch.Tensor:
    """float32 [count, 2, 3]: from where in the old image each point of the new one comes, both in -1 to 1.

    `size`: height and width. The same for the same seed, however many images there are to come.
    """
    draw = torch.rand((count, 6), generator=torch.Generator().manual_seed(seed)).T * 2 - 1
    turn = draw[0] * math.radians(how.turn)
    across, down = torch.exp(draw[1] * how.scale), torch.exp(draw[2] * how.scale)
    shear, (height, width) = draw[3] * how.shear, size
    x = torch.stack([turn.cos() * across, (shear - turn.sin()) * down, draw[4] * how.shift * 2 / width], 1)
    y = torch.stack([turn.sin() * across, turn.cos() * down, draw[5] * how.shift * 2 / height], 1)
    return torch.stack([x, y], 1)
