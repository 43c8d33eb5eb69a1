"""What a candidate is expected to add to a front, before it is trained: pure NumPy, no study, no tracking.

A candidate's objectives are independent normals: `mean` and `std`, float [n, m]. A cost that is known has std 0; one
that is known within a 95 % interval has the std that `spread` gives. `front` holds the values found so far, float
[k, m], in the same order; `directions` and `reference` are as in `search.front.pareto`. Everything is exact: the region
that the front leaves open is cut into boxes, and in a box the expectation is a product over the objectives (Yang et
al., "Efficient computation of expected hypervolume improvement using box decomposition algorithms", J. Global
Optimization 75, 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from search.front import pareto

_Z = 1.959963984540054  # half the width of a normal's 95 % interval, in standard deviations


def spread(low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """The standard deviation of values whose 95 % intervals end at `low` and `high`, in the values' unit."""
    return (np.asarray(high, dtype=np.float64) - np.asarray(low, dtype=np.float64)) / (2 * _Z)


def expected_gain(
    front: np.ndarray, directions: Sequence[str], reference: Sequence[float], mean: np.ndarray, std: np.ndarray
) -> np.ndarray:
    """float [n]: the expected growth of the front's hypervolume up to `reference` by each candidate, >= 0.

    In the unit of the hypervolume: the product of the objectives' units. With every std 0 it is the growth itself.
    """
    low, high, middle, wide = _prepared(front, directions, reference, mean, std)
    return _over_boxes(low, high, middle, wide, _below)


def gain_share(
    front: np.ndarray, directions: Sequence[str], reference: Sequence[float], mean: np.ndarray, std: np.ndarray
) -> np.ndarray:
    """float [n]: `expected_gain` as a share of the front's hypervolume; infinite where the front has none yet."""
    gain = expected_gain(front, directions, reference, mean, std)
    volume = pareto.hypervolume(front, directions, reference)
    return gain / volume if volume > 0 else np.where(gain > 0, np.inf, 0.0)


def front_probability(
    front: np.ndarray,
    directions: Sequence[str],
    reference: Sequence[float],
    mean: np.ndarray,
    std: np.ndarray,
    noise: Sequence[float] | None = None,
) -> np.ndarray:
    """float [n]: the probability that no member of the front dominates the candidate, and `reference` neither.

    `noise`, float [m]: by so much a member must be better in that objective to count as better, in its unit: what a
    repetition could turn round. 0 is right for an objective in which equal work gives equal values.
    """
    table = pareto.costs(front, directions)
    if noise is not None and len(table):
        table = table + np.abs(np.asarray(noise, dtype=np.float64))
    low, high, middle, wide = _prepared(table, ["minimize"] * len(directions), reference, mean, std, directions)
    return np.clip(_over_boxes(low, high, middle, wide, _probability), 0.0, 1.0)


def _prepared(
    front: np.ndarray,
    directions: Sequence[str],
    reference: Sequence[float],
    mean: np.ndarray,
    std: np.ndarray,
    of_candidates: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (low, high) and candidates (mean, std), all as costs."""
    named = of_candidates or directions
    middle, wide = pareto.costs(np.atleast_2d(mean), named), np.atleast_2d(np.asarray(std, dtype=np.float64))
    if wide.shape != middle.shape:
        raise ValueError(f"std: shape {wide.shape} does not fit the mean's {middle.shape}; give one per value")
    if (wide < 0).any():
        raise ValueError("std: below 0; a value that is known has std 0")
    limit = pareto.costs(np.array([reference]), named)[0]
    if not np.isfinite(limit).all():
        raise ValueError(f"reference: {list(reference)} must be finite; give one number per objective")
    table = pareto.costs(front, directions)
    table = table[pareto.front(table, ["minimize"] * len(limit))] if len(table) else table
    return *boxes(table[(table < limit).all(axis=1)], limit), middle, wide


def boxes(table: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corners, float [b, m] each, of disjoint boxes: all costs below `limit` that no member dominates.

    `table`: float [k, m], costs of members of one front, all below `limit` [m]. Lower corners may be -inf. By slabs
    along the last objective: about k boxes for m = 2, k²/2 for m = 3.
    """
    m = len(limit)
    if m == 1:
        return np.full((1, 1), -np.inf), np.array([[min([*table[:, 0], limit[0]])]])
    order = table[np.argsort(table[:, -1], kind="stable")]
    levels = np.concatenate([[-np.inf], order[:, -1], [limit[-1]]])
    lows, highs = [], []
    for i in range(len(levels) - 1):
        if levels[i] < levels[i + 1]:
            low, high = _plane(order[:i, 0], limit[0]) if m == 2 else boxes(_least(order[:i, :-1]), limit[:-1])
            lows.append(np.column_stack([low, np.full(len(low), levels[i])]))
            highs.append(np.column_stack([high, np.full(len(high), levels[i + 1])]))
    return np.vstack(lows), np.vstack(highs)


def _plane(first: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    return np.array([[-np.inf]]), np.array([[first.min() if len(first) else limit]])


def _least(table: np.ndarray) -> np.ndarray:
    return table[pareto.front(table, ["minimize"] * table.shape[1])]


Cumulative = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _over_boxes(
    low: np.ndarray, high: np.ndarray, mean: np.ndarray, std: np.ndarray, cumulative: Cumulative
) -> np.ndarray:
    """float [n]: sum over the boxes of the product over the objectives of what `cumulative` gains in the box."""
    product = np.ones((len(mean), len(low)))
    for j in range(mean.shape[1]):
        ends, places = np.unique(np.concatenate([low[:, j], high[:, j]]), return_inverse=True)
        at_ends = cumulative(ends, mean[:, j, None], std[:, j, None])
        product *= at_ends[:, places[len(low) :]] - at_ends[:, places[: len(low)]]
    return np.maximum(product, 0.0).sum(axis=1)


def _below(ends: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """E max(end - X, 0) of X normal: float [n, ends]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = ends - mean
        z = gap / std
        value = gap * _normal(z) + std * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    known = np.where(std > 0, value, np.maximum(gap, 0.0))
    return np.where(np.isneginf(ends), 0.0, known)


def _probability(ends: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """P(X < end) of X normal; of a known one whether it lies below, so that a box holds its lower end."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(std > 0, _normal((ends - mean) / std), (mean < ends).astype(float))


def _normal(z: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr

    return np.asarray(ndtr(z))
