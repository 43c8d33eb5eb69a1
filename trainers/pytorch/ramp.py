"""When pruning tightens while a network trains, and how far."""

from __future__ import annotations

from trainers.recipe import Pruning

RAMP = 0.6  # share of the steps during which `gradual` tightens; the rest only recovers


def ramp(progress: float, final: float) -> float:
    """Sparsity at `progress` in [0, 1] of the ramp: the cubic of Zhu & Gupta, arXiv:1710.01878, from 0 to `final`."""
    return final * (1.0 - (1.0 - min(1.0, progress)) ** 3)


def due(pruning: Pruning, step: int, steps: int, updates: int) -> float | None:
    """Progress in [0, 1] along the ramp when `step` of `steps` is one at which pruning tightens, else None."""
    if pruning.schedule == "one_shot":
        return 1.0 if step == 0 else None
    length = max(1, round(RAMP * steps))
    every = max(1, length // updates)
    if step == length:
        return 1.0
    return step / length if 0 < step < length and step % every == 0 else None
