"""Which short trainings deserve the full one: asynchronous promotion by noise-aware Pareto rank. Pure NumPy.

Each rung is a complete schedule of its own (a quarter epoch with its own ramp and cosine), not a pause within a longer
one: in mid-run accuracy says little about the end. Whenever a result arrives at a rung, the best `share` of all its
results so far is promoted, as ASHA does (Li et al., "A system for massively parallel hyperparameter tuning", MLSys
2020), without waiting for others. Several objectives are ranked by layers of fronts, as in MO-ASHA (Schmucker et al.,
arXiv:2106.12639); here a point counts as beaten only beyond what noise explains (`search.front.pareto.displaces`), and
within a layer those come first that add most hypervolume.

`low`, `high`: float [n, m], the ends of each result's interval; equal ends where a value is known. A result with a NaN
comes last and is never promoted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from search.front import pareto
from search.sampling import gain


def ranks(low: np.ndarray, high: np.ndarray, directions: Sequence[str]) -> np.ndarray:
    """int [n]: the layer each result lies on: 0 if no other displaces it, 1 if only those of layer 0 do, and so on.

    n for a result that was not measured.
    """
    above = np.asarray(pareto.displaces(low, high, directions))
    measured = np.isfinite(np.hstack([low, high])).all(axis=1)
    layers = np.full(len(measured), len(measured))
    left, layer = measured.copy(), 0
    while left.any():  # a strict partial order: some result is always displaced by none that is left
        free = left & ~above[left].any(axis=0)
        layers[free] = layer
        left &= ~free
        layer += 1
    return layers


def best_first(
    low: np.ndarray,
    high: np.ndarray,
    directions: Sequence[str],
    feasible: np.ndarray | None = None,
    most: int | None = None,
) -> np.ndarray:
    """Row numbers, int [n]: by layer, within a layer each time the one that adds most hypervolume to those before it.

    `feasible`, bool [n]: results that keep the constraints; the others come after them. `most`: only so many.
    """
    most = len(low) if most is None else most
    middle = pareto.costs((np.asarray(low) + np.asarray(high)) / 2, directions)
    layers = _layers(low, high, directions, feasible)
    found: list[int] = []
    for layer in np.unique(layers):
        if len(found) < most:
            found += _by_volume(np.flatnonzero(layers == layer), middle, found, most - len(found))
    return np.array(found, dtype=int)


def _layers(low: np.ndarray, high: np.ndarray, directions: Sequence[str], feasible: np.ndarray | None) -> np.ndarray:
    """As `ranks`; those that are not feasible lie behind all others."""
    layers = ranks(low, high, directions)
    return layers if feasible is None else layers + (len(layers) + 1) * ~np.asarray(feasible, dtype=bool)


def _by_volume(members: np.ndarray, costs: np.ndarray, before: Sequence[int], most: int) -> list[int]:
    known = costs[np.isfinite(costs).all(axis=1)]
    if len(members) < 2 or not len(known):
        return [int(i) for i in members][:most]
    least, extent = known.min(axis=0), np.ptp(known, axis=0)
    scaled = (costs - least) / np.where(extent > 0, extent, 1.0)
    limit = [1.1] * costs.shape[1]  # a tenth beyond the worst, so that the ends of a front count
    downward = ["minimize"] * costs.shape[1]
    chosen, left = list[int](), [int(i) for i in members]
    while left and len(chosen) < most:
        front = scaled[[*before, *chosen]] if before or chosen else np.empty((0, costs.shape[1]))
        added = gain.expected_gain(front, downward, limit, scaled[left], np.zeros((len(left), costs.shape[1])))
        chosen.append(left.pop(int(np.argmax(np.nan_to_num(added, nan=-1.0)))))
    return chosen


def promotable(
    low: np.ndarray,
    high: np.ndarray,
    directions: Sequence[str],
    *,
    promoted: np.ndarray | None = None,
    share: float = 0.5,
    feasible: np.ndarray | None = None,
) -> list[int]:
    """Rows to promote now, the best first: of the rung's best `share`, rounded up, those not `promoted` yet, bool [n].

    A result that was passed over once becomes promotable when worse ones arrive. Raises ValueError for a share outside
    (0, 1].
    """
    most = _most(share, len(low))
    done = np.zeros(len(low), dtype=bool) if promoted is None else np.asarray(promoted, dtype=bool)
    measured = np.isfinite(np.hstack([low, high])).all(axis=1)
    top = best_first(low, high, directions, feasible, most)
    return [int(i) for i in top if measured[i] and not done[i]]


def promotes(
    low: np.ndarray,
    high: np.ndarray,
    directions: Sequence[str],
    row: int,
    *,
    share: float = 0.5,
    feasible: np.ndarray | None = None,
) -> bool:
    """Whether the rung's result in that row is among its best `share`, so that it deserves the next rung now."""
    most, layers = _most(share, len(low)), _layers(low, high, directions, feasible)
    if (layers < layers[row]).sum() >= most:  # most results need no order within their layer
        return False
    if (layers <= layers[row]).sum() <= most and np.isfinite([low[row], high[row]]).all():
        return True
    return row in promotable(low, high, directions, share=share, feasible=feasible)


def _most(share: float, results: int) -> int:
    if not 0 < share <= 1:
        raise ValueError(f"share: {share:g} must be above 0 and at most 1; such as 0.5 for the better half")
    return math.ceil(share * results - 1e-9)
