"""The 95 % interval of a mean over few trainings. Pure NumPy: SciPy takes most of a second to import."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float, float]  # mean, low, high


def mean_interval(values: Sequence[float], resolution: float = 0.0) -> Interval:
    """(mean, low, high): Student's 95 % interval of the mean, at least `resolution` to either side.

    Few seeds can agree by chance to the last digit; `resolution` is the step the figure is counted in.
    """
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, mean - resolution, mean + resolution
    half = max(student(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n), resolution)
    return mean, mean - half, mean + half


@functools.cache
def student(freedom: int, inside: float = 0.95) -> float:
    """t such that |T| < t with probability `inside`, T of Student's distribution with `freedom` >= 1 degrees."""
    low, high = 0.0, 1.0
    while _within(high, freedom) < inside:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < inside else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """P(|T| < t): Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
