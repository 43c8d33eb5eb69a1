"""Dominance, front, knee, hypervolume and the noise-aware rule: pure NumPy, no study, no tracking.

Every function takes `values`, float [n, m]: n points, m objectives, and `directions`, m times "minimize" or
"maximize". A point with a NaN or an infinite value was not measured: it is on no front, displaces nothing and
adds no hypervolume.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DIRECTIONS = ("minimize", "maximize")


def costs(values: np.ndarray, directions: Sequence[str]) -> np.ndarray:
    """`values` with the maximized columns negated: float64 [n, m], every column to be minimized."""
    for j, direction in enumerate(directions):
        if direction not in DIRECTIONS:
            raise ValueError(f"directions[{j}]: {direction!r} is not valid; choose from {', '.join(DIRECTIONS)}")
    table = np.asarray(values, dtype=np.float64)
    if table.size == 0:
        return np.empty((0, len(directions)))
    if table.ndim != 2 or table.shape[1] != len(directions):
        raise ValueError(f"values: shape {table.shape} does not fit {len(directions)} directions; pass [n, m]")
    return table * np.where(np.array(directions) == "maximize", -1.0, 1.0)


def front(values: np.ndarray, directions: Sequence[str]) -> np.ndarray:
    """bool [n]: the points that no other point dominates; of equal points only the first is kept.

    A search meets the same result twice when two recipes do equal work; the second adds nothing to choose from.
    """
    table = costs(values, directions)
    kept = np.zeros(len(table), dtype=bool)
    finite = np.flatnonzero(np.isfinite(table).all(axis=1))
    if not len(finite):
        return kept
    # In lexicographic order a point can only be dominated by, or equal to, an earlier one; the sort is stable.
    order = finite[np.lexsort(table[finite].T[::-1])]
    members = np.empty((0, table.shape[1]))
    for i in order:
        if not (members <= table[i]).all(axis=1).any():
            kept[i] = True
            members = np.vstack([members, table[i]])
    return kept


def knee(values: np.ndarray, directions: Sequence[str]) -> int | None:
    """Row index of the front's knee: the smallest sum of costs, each scaled to [0, 1] over the front; None if empty.

    For two objectives this is the point farthest, on the good side, from the line through the front's two ends:
    the knee of Das, "On characterizing the knee of the Pareto curve", Structural Optimization 18 (1999). For more
    it is the point farthest from the plane of equal sums. The first index wins a tie.
    """
    members = np.flatnonzero(front(values, directions))
    if not len(members):
        return None
    table = costs(values, directions)[members]
    low, span = table.min(axis=0), np.ptp(table, axis=0)
    scaled = (table - low) / np.where(span > 0, span, 1.0)
    return int(members[np.argmin(np.round(scaled.sum(axis=1), 12))])


def hypervolume(values: np.ndarray, directions: Sequence[str], reference: Sequence[float]) -> float:
    """The volume that the points dominate up to `reference` [m], exact for any m; points not better add nothing.

    By slices along the last objective, each slice one dimension lower (While et al., "A faster algorithm for
    calculating hypervolume", IEEE TEC 10, 2006): meant for fronts of some hundred points and up to 4 objectives.
    """
    limit = costs(np.array([reference]), directions)[0]
    if not np.isfinite(limit).all():
        raise ValueError(f"reference: {list(reference)} must be finite; give one number per objective")
    table = costs(values, directions)[front(values, directions)]
    return _volume(table[(table < limit).all(axis=1)], limit)


def _volume(table: np.ndarray, limit: np.ndarray) -> float:
    if not len(table):
        return 0.0
    if table.shape[1] == 1:
        return float(limit[0] - table.min())
    order = table[np.argsort(table[:, -1], kind="stable")]
    if table.shape[1] == 2:
        # The best first cost seen so far rules from this point's second cost to the next one's.
        heights = np.diff(np.append(order[:, 1], limit[1]))
        return float(((limit[0] - np.minimum.accumulate(order[:, 0])) * heights).sum())
    depths = np.diff(np.append(order[:, -1], limit[-1]))
    return sum(_volume(order[: i + 1, :-1], limit[:-1]) * depth for i, depth in enumerate(depths) if depth > 0)


def hypervolume_curve(values: np.ndarray, directions: Sequence[str], reference: Sequence[float]) -> np.ndarray:
    """float64 [n]: the hypervolume of the first 1, 2, ... n points; never falls."""
    table = costs(values, directions)
    limit = costs(np.array([reference]), directions)[0]
    members, volume, curve = np.empty((0, len(limit))), 0.0, []
    for point in table:
        counts = np.isfinite(point).all() and (point < limit).all()
        if counts and not (members <= point).all(axis=1).any():
            members = np.vstack([members[~(point <= members).all(axis=1)], point])
            volume = max(volume, _volume(members, limit))
        curve.append(volume)
    return np.array(curve)


def displaces(low: np.ndarray, high: np.ndarray, directions: Sequence[str]) -> np.ndarray:
    """bool [n, n]: entry [a, b] says that point a drives point b off the front, beyond what noise explains.

    `low`, `high`: float [n, m], the ends of each value's interval. Of two intervals on one axis, a is *surely
    better* than b when all of a's interval lies on the good side of b's, and *not worse* when both of its ends
    are at least as good as b's. a displaces b when a is not worse in every objective and surely better in one.

    This is a strict partial order. Irreflexive: no interval lies beside itself. Transitive: "not worse" is, and
    if a is surely better than b in one objective and b not worse than c there, then a's bad end is better than
    b's good end, which is at least as good as c's: a is surely better than c (and likewise the other way round).
    The tempting rule "the intervals overlap" for "not worse" is not transitive: a ~ b and b ~ c allow c to be
    surely better than a. No point that is surely better somewhere is ever displaced: both ends of its interval
    are better there. With intervals of width zero this is plain dominance. The interval order is Fishburn's,
    "Intransitive indifference with unequal indifference intervals", J. Math. Psychology 7 (1970).
    """
    one, other = costs(low, directions), costs(high, directions)
    good, bad = np.minimum(one, other), np.maximum(one, other)
    if (np.asarray(low) > np.asarray(high)).any():
        raise ValueError("low: an interval's low end lies above its high end; swap them")
    finite = np.isfinite(good).all(axis=1) & np.isfinite(bad).all(axis=1)
    not_worse = (good[:, None] <= good).all(axis=2) & (bad[:, None] <= bad).all(axis=2)
    surely_better = (bad[:, None] < good).any(axis=2)
    return not_worse & surely_better & finite[:, None] & finite


def beats(low: np.ndarray, high: np.ndarray, directions: Sequence[str]) -> np.ndarray:
    """bool [n, n]: entry [a, b] says that a is surely better than b in one objective and surely worse in none.

    For pairs only: sharper than `displaces` where intervals overlap, and for that not transitive, so that no front
    can be drawn by it.
    """
    one, other = costs(low, directions), costs(high, directions)
    good, bad = np.minimum(one, other), np.maximum(one, other)
    surely_better = bad[:, None] < good
    found: np.ndarray = surely_better.any(axis=2) & ~surely_better.any(axis=2).T
    return found


def noise_front(low: np.ndarray, high: np.ndarray, directions: Sequence[str]) -> np.ndarray:
    """bool [n]: the measured points that no other displaces; holds the front of the intervals' midpoints.

    Of points whose intervals are equal in every objective only the first is kept, as in `front`.
    """
    finite = np.isfinite(np.hstack([low, high])).all(axis=1) if len(low) else np.zeros(0, dtype=bool)
    first = np.zeros(len(finite), dtype=bool)
    if len(finite):
        first[np.unique(np.hstack([low, high]), axis=0, return_index=True)[1]] = True
    displaced = np.asarray(displaces(low, high, directions)).any(axis=0)
    return np.asarray(finite & first & ~displaced)


def nearest_feasible(violations: np.ndarray) -> int | None:
    """Row index of the point that misses its constraints least; None without a measured point.

    `violations`: float [n, c], feasible where <= 0. Constraints differ in unit, so each column is scaled by the
    largest miss in it before the misses are added; the first index wins a tie.
    """
    missed = np.maximum(np.asarray(violations, dtype=np.float64), 0.0)
    if missed.size == 0:
        return 0 if len(missed) else None
    known = np.isfinite(missed).all(axis=1)
    if not known.any():
        return None
    worst = missed[known].max(axis=0)
    total = (missed / np.where(worst > 0, worst, 1.0)).sum(axis=1)
    return int(np.argmin(np.where(known, total, np.inf)))
