"""How much of a sweep's front is the search's own luck: two searches of the same thing do not find the same points.

Intervals of confirmed points know training and measuring, not which recipes a search happened to try. The measure here
compares the front with those that halves of its trials give: how much they scatter, and how much is missing in them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from search.front import pareto

FEWEST = 5  # trials that a sampler proposed, below which nothing is known of its luck
# Of 90 pairs of unchanged sweeps of 12, 18 and 40 planted trials some 4 % differed by more than this many times the
# measure (experiments/LOG.md, 2026-11-25): volumes of small fronts have heavy tails.
TIMES = 3.0
_HALVES = 100


def luck(
    values: np.ndarray, fixed: np.ndarray, directions: Sequence[str], reference: Sequence[float], seed: int = 0
) -> float | None:
    """The scale of the search's luck in the hypervolume of its trials; None when too few were proposed.

    `values`: float [trials, objectives] as the search found them, NaN for what counts for nothing. `fixed`: bool
    [trials], those that every such search tries, as references. The scale is the larger of two: the delete-half
    jackknife's standard deviation of the volume (Shao & Wu, "A general theory for jackknife variance estimation",
    Annals of Statistics 17, 1989), and by how much a half's volume is smaller in the mean, which is large as long as
    more trials would still find more.
    """
    drawn, always = np.flatnonzero(~fixed), np.flatnonzero(fixed)
    if len(drawn) < FEWEST:
        return None
    rng, half = np.random.default_rng(seed), len(drawn) // 2
    volumes = []
    for _ in range(_HALVES):
        rows = np.concatenate([always, rng.choice(drawn, half, replace=False)])
        volumes.append(pareto.hypervolume(values[rows], directions, reference))
    scatter = float(np.std(volumes, ddof=1)) * math.sqrt((len(drawn) - half) / half)
    missing = pareto.hypervolume(values, directions, reference) - float(np.mean(volumes))
    return max(scatter, missing)


def noise(means: np.ndarray, halves: np.ndarray, directions: Sequence[str], reference: Sequence[float]) -> float:
    """Standard deviation of the hypervolume of confirmed points; `means`, `halves`: float [points, objectives]."""
    rng = np.random.default_rng(0)
    drawn = (means + halves / 1.96 * rng.standard_normal(means.shape) for _ in range(_HALVES))
    return float(np.std([pareto.hypervolume(values, directions, reference) for values in drawn], ddof=1))
