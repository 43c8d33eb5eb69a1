"""Front against front: which part of the newer has moved beyond noise, and which way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from search.command import UsageError
from search.front import pareto
from search.front.summary import Summary, interval, summarize
from search.tracking.tracking import Tracking


@dataclass(frozen=True)
class Comparison:
    """Two fronts of one study, latencies as ratios to each sweep's own baseline.

    `gained`: rows of the newer that beat one of the older beyond noise and are beaten by none of it; `lost`: the same
    the other way round. `hypervolume`: (older, newer) to the older's reference point.
    """

    older: Summary
    newer: Summary
    gained: pd.DataFrame
    lost: pd.DataFrame
    hypervolume: tuple[float, float]

    @property
    def verdict(self) -> str:
        """In words."""
        if len(self.gained) and len(self.lost):
            return "better in one part of the front and worse in another, beyond noise"
        if len(self.gained):
            return "better beyond noise"
        return "worse beyond noise" if len(self.lost) else "no difference beyond noise"

    @property
    def title(self) -> str:
        """`smoke-002 against smoke-001: better beyond noise`."""
        return f"{self.newer.sweep} against {self.older.sweep}: {self.verdict}"


def aims(summary: Summary) -> list[str]:
    """`maximize accuracy`, `minimize latency_ms`: what two sweeps must share to be compared."""
    return [f"{summary.metrics[name].direction} {name}" for name in summary.objectives]


def compare(older: Summary, newer: Summary) -> Comparison:
    """Raises UsageError when the two have other objectives and so no common axes."""
    if aims(older) != aims(newer):
        found = "; ".join(f"{each.sweep} searched to {', '.join(aims(each))}" for each in (older, newer))
        raise UsageError(f"sweep: {found}; compare sweeps of the same objectives")
    # Each sweep has its own baseline latency in ms, as fast as the machine then was; the ratio to it holds.
    axes = ["latency_ratio" if name == "latency_ms" else name for name in older.objectives]
    directions = older.metrics.directions(axes)
    fronts = [older.front, newer.front]
    ends = [_ends(rows, axes) for rows in fronts]
    both = [np.vstack([e[side] for e in ends]) for side in (0, 1)]
    better = pareto.beats(both[0], both[1], directions)
    cut = len(fronts[0])
    up, down = better[cut:, :cut], better[:cut, cut:]
    gained = np.flatnonzero(up.any(axis=1) & ~down.any(axis=0))
    lost = np.flatnonzero(down.any(axis=1) & ~up.any(axis=0))
    recorded = older.about["reference"] or _worst(fronts, axes, directions)
    reference = [1.1 if name == "latency_ratio" else value for name, value in zip(axes, recorded, strict=True)]
    volumes = [pareto.hypervolume(rows[axes].to_numpy(float), directions, reference) for rows in fronts]
    return Comparison(older, newer, fronts[1].iloc[gained], fronts[0].iloc[lost], (volumes[0], volumes[1]))


def _ends(rows: pd.DataFrame, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), each [n, m]; a metric without an interval is its own two ends."""
    pairs = [[interval(row, name) or (row[name], row[name]) for name in names] for _, row in rows.iterrows()]
    table = np.array(pairs, dtype=float).reshape(len(rows), len(names), 2)
    return table[:, :, 0], table[:, :, 1]


def _worst(fronts: Sequence[pd.DataFrame], names: Sequence[str], directions: Sequence[str]) -> list[float]:
    values = pd.concat([rows[list(names)] for rows in fronts])
    sides = zip(names, directions, strict=True)
    return [float(values[name].max() if d == "minimize" else values[name].min()) for name, d in sides]


def beside(tracking: Tracking, summary: Summary, which: int) -> Comparison | None:
    """The sweep beside an earlier one, 0 the first and -1 the previous; None where there is no such pair of fronts."""
    names = tracking.sweeps()
    earlier = names[: names.index(summary.sweep)]
    if not earlier:
        return None
    before = summarize(tracking, earlier[which])
    if aims(before) != aims(summary) or before.front.empty or summary.front.empty:
        return None
    return compare(before, summary)
