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


def pooled_interval(
    values: Sequence[float], groups: Sequence[Sequence[float]], resolution: float = 0.0, relative: bool = False
) -> Interval:
    """As `mean_interval`, with the spread of all `groups`, of which `values` is one, taken to be the same.

    Of two values alone the spread is hardly known (t = 12.7); of six groups of two it is (t = 2.4). A group that
    scatters more than the others' spread allows (99.9 %) keeps an interval of its own and says nothing of theirs.
    `relative`: the spread is the same as a share of the mean; all values must be above 0.
    """
    if relative:
        logs = [[math.log(value) for value in group] for group in groups]
        mean, low, high = pooled_interval([math.log(value) for value in values], logs)
        centre = float(np.mean(values))
        half = max(centre * (math.exp((high - low) / 2) - 1), resolution)
        return centre, centre - half, centre + half
    alike = [group for group in groups if not _apart(group, groups)]
    freedom = sum(len(group) - 1 for group in alike)
    if freedom < 1 or _apart(values, groups):
        return mean_interval(values, resolution)
    mean, squares = float(np.mean(values)), sum(map(_squares, alike))
    half = max(student(freedom) * math.sqrt(squares / freedom / len(values)), resolution)
    return mean, mean - half, mean + half


def _apart(group: Sequence[float], groups: Sequence[Sequence[float]]) -> bool:
    """Whether the group scatters more than the spread of all others allows."""
    freedom = len(group) - 1
    others = sum(len(each) - 1 for each in groups) - freedom
    if not freedom or not others:
        return False
    spread = (sum(map(_squares, groups)) - _squares(group)) / others
    return _squares(group) / freedom > student(others, 0.999) ** 2 * spread


def _squares(values: Sequence[float]) -> float:
    """Sum of the squared distances from the mean."""
    return float(np.var(values) * len(values))


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
