"""How many weights are left while a network is trained: schedules of the density, and masks that reach it exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

SCHEDULES = ("cubic", "exponential")


def density(progress: float, final: float, schedule: str = "cubic", start: float = 1.0) -> float:
    """Share of the weights kept at `progress` in [0, 1]: `start` at 0, `final` at 1, never below it.

    `cubic`: Zhu & Gupta, arXiv:1710.01878. `exponential`: the same share of what is left goes at every step, which
    spends more steps at low densities: a ramp to 0.5 % is at 7 % half-way, the cubic one at 13 %.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: {schedule!r} is not valid; choose from {', '.join(SCHEDULES)}")
    done = min(1.0, max(0.0, progress))
    if schedule == "exponential":
        return start * (final / start) ** done
    return final + (start - final) * (1.0 - done) ** 3


def kept_count(total: int, share: float) -> int:
    """How many of `total` weights a density keeps: rounded, at least one."""
    return min(total, max(1, round(share * total)))


def within(reached: float, wanted: float, tolerance: float = 0.02) -> bool:
    """Whether a density is the one asked for, relative to what is kept: at 0.5 % an absolute bound would pass anything.

    `reached` may be lower by more where weights were rounded to zero; that is the caller's to judge.
    """
    return math.isclose(reached, wanted, rel_tol=tolerance)


def masks_of(scores: Mapping[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """Masks (1 = kept, the score's shape) of the `share` highest scores over all tensors together, to the very weight.

    A weight whose score is 0 is dead and never counted as kept while others live.
    """
    every = torch.cat([score.detach().flatten().float() for score in scores.values()])
    kept = torch.zeros_like(every)
    # topk, not a threshold: of equal scores it takes no more than asked.
    kept[every.topk(kept_count(len(every), share), sorted=False).indices] = 1.0
    parts = kept.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for part, (name, score) in zip(parts, scores.items(), strict=True)}
