"""What a weight costs in a packed file, and assignments that trade it against the loss.

An adaptive coder (packing/decode.py) pays for a nonzero by how rare nonzeros are in its row and column, for its size
by how often that size occurs. Weights that cost more must earn more: rate-distortion optimised quantization as in
video coders and DeepCABAC (arXiv:1907.11900), with the Fisher information as the curvature of the loss.
"""

from __future__ import annotations

import torch

FLOOR = 0.5  # weights added to every count, as an adaptive coder starts


def matrix(values: torch.Tensor) -> torch.Tensor:
    """[outputs, ...] -> [outputs, inputs * kernel]; a vector is one row."""
    return values.reshape(1, -1) if values.dim() < 2 else values.flatten(1)


def density_of(present: torch.Tensor) -> torch.Tensor:
    """Probability that each weight is nonzero by how many are in its row and its column, float32 of the matrix's shape.

    `present`: bool or 0/1 [rows, columns]. Rows and columns act independently: p = row * column / all, in odds.
    """
    kept = present.float()
    rows, columns = kept.shape
    row = (kept.sum(1, keepdim=True) + FLOOR) / (columns + 2 * FLOOR)
    column = (kept.sum(0, keepdim=True) + FLOOR) / (rows + 2 * FLOOR)
    overall = (kept.sum() + FLOOR) / (kept.numel() + 2 * FLOOR)
    return torch.sigmoid(_logit(row) + _logit(column) - _logit(overall))


def _logit(chance: torch.Tensor) -> torch.Tensor:
    return torch.log(chance) - torch.log1p(-chance.clamp(max=1 - 1e-6))


def presence_bits(present: torch.Tensor) -> torch.Tensor:
    """Bits that each weight's being nonzero costs more than its being zero, float32 of the shape of `present`.

    Negative where nonzeros are the rule.
    """
    chance = density_of(matrix(present)).clamp(1e-6, 1 - 1e-6)
    return (torch.log2(1 - chance) - torch.log2(chance)).reshape(present.shape)


def size_bits(integers: torch.Tensor, levels: int) -> torch.Tensor:
    """Bits of sign and size for each absolute value 0 to `levels`, float32 [levels + 1]; of 0 none."""
    sizes = integers.abs().flatten().long().clamp(max=levels)
    counts = torch.bincount(sizes[sizes > 0], minlength=levels + 1).float() + FLOOR
    counts[0] = 0
    bits = 1 - torch.log2((counts / counts.sum()).clamp_min(1e-9))
    bits[0] = 0
    return bits


def costly(score: torch.Tensor, present: torch.Tensor, exponent: float = 0.5, size: float = 2.5) -> torch.Tensor:
    """`score` / (bits of the nonzero)^exponent: what is dear goes first. `size`: bits of sign and size, about.

    A score that grows with |w| is like the root of the loss added, so one half compares loss per bit.
    """
    bits = (presence_bits(present) + size).clamp_min(0.5)
    return score / bits.reshape(score.shape) ** exponent


def assigned(
    values: torch.Tensor, step: torch.Tensor, levels: int, curvature: torch.Tensor, trade: float, rounds: int = 3
) -> torch.Tensor:
    """int8 of the shape of `values`: on the grid `step` * integer, the least of loss + `trade` * bits.

    `curvature`: E g^2 of the loss by each weight, of the same shape; the loss added is curvature / 2 * (change)^2.
    Each weight may become the nearest integer, the next one towards zero, or zero; the bits are those of the
    assignment so far, `rounds` times anew. `trade`: loss per bit; 0 rounds to the nearest.
    """
    scaled = values.detach().float() / step
    nearest = scaled.round().clamp(-levels, levels)
    chosen = nearest
    candidates = torch.stack([nearest, nearest - nearest.sign(), torch.zeros_like(nearest)])
    loss = 0.5 * curvature * (step * (candidates - scaled)) ** 2
    for _ in range(rounds if trade > 0 else 0):
        presence, sizes = presence_bits(chosen != 0), size_bits(chosen, levels)
        bits = sizes[candidates.abs().long()] + torch.where(candidates != 0, presence, 0.0)
        best = (loss + trade * bits).argmin(0, keepdim=True)
        chosen = candidates.gather(0, best)[0]
    return chosen.to(torch.int8)
