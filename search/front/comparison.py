"""Front against front: which part of the newer has moved beyond noise, and which way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from search.command import UsageError
from search.front import luck, pareto
from search.front.summary import Summary, interval, summarize
from search.tracking.tracking import Tracking
from trainers.recipe import Recipe

RECIPE_FIELDS = tuple(name for name in Recipe(model="").flat() if name != "seed")


@dataclass(frozen=True)
class Comparison:
    """Two fronts of one study, latencies as ratios to each sweep's own baseline.

    `gained`: rows of the newer that beat one of the older beyond the noise of training and measuring, and are beaten by
    none of it; `lost`: the same the other way round. Both may be the search's luck: what is not is `better` and
    `worse`, rows of the newer whose own recipe the older tried too, with surely other figures. `hypervolume`:
    (older, newer) to the older's reference point; `luck`: the difference of the two that unchanged sweeps hardly ever
    exceed, None when that is not known. `doubt`: why nothing can be told, or nothing. `settings`: what differs in them.
    """

    older: Summary
    newer: Summary
    gained: pd.DataFrame
    lost: pd.DataFrame
    better: pd.DataFrame
    worse: pd.DataFrame
    hypervolume: tuple[float, float]
    luck: float | None
    doubt: str = ""
    settings: tuple[str, ...] = ()

    @property
    def moved(self) -> tuple[bool, bool]:
        """(whether something has become better, whether something has become worse), beyond noise and luck."""
        if self.doubt:
            return False, False
        change = self.hypervolume[1] - self.hypervolume[0]
        beyond = self.luck is not None and abs(change) > self.luck
        return bool(len(self.better)) or (beyond and change > 0), bool(len(self.worse)) or (beyond and change < 0)

    @property
    def verdict(self) -> str:
        """In words."""
        if self.doubt:
            return f"cannot tell: {self.doubt}"
        return {
            (True, True): "better in one part of the front and worse in another, beyond noise",
            (True, False): "better beyond noise",
            (False, True): "worse beyond noise",
            (False, False): "no difference beyond noise",
        }[self.moved]

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
    up, down = _beaten(fronts, axes, directions)
    gained = np.flatnonzero(up.any(axis=1) & ~down.any(axis=0))
    lost = np.flatnonzero(down.any(axis=1) & ~up.any(axis=0))
    recorded = older.about["reference"] or _worst(fronts, axes, directions)
    reference = [1.1 if name == "latency_ratio" else value for name, value in zip(axes, recorded, strict=True)]
    volumes = [pareto.hypervolume(rows[axes].to_numpy(float), directions, reference) for rows in fronts]
    better, worse = _same_recipes(older, newer, axes, directions)
    return Comparison(
        older,
        newer,
        fronts[1].iloc[gained],
        fronts[0].iloc[lost],
        better,
        worse,
        (volumes[0], volumes[1]),
        _luck((older, newer), axes, directions, reference),
        _doubt(older, newer),
        tuple(_differing(older, newer)),
    )


def _beaten(fronts: Sequence[pd.DataFrame], axes: list[str], directions: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(bool [newer, older]: the newer's row beats the older's, bool [older, newer]: the other way round)."""
    ends = [_ends(rows, axes) for rows in fronts]
    low, high = (np.vstack([e[side] for e in ends]) for side in (0, 1))
    beats, cut = pareto.beats(low, high, directions), len(fronts[0])
    return beats[cut:, :cut], beats[:cut, cut:]


def _same_recipes(
    older: Summary, newer: Summary, axes: list[str], directions: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the newer whose recipe the older has too: (surely better, surely worse): no luck of a search is in them.

    Compared is what both know an interval of: everything of confirmed trials, of others what was timed.
    """
    before = {_recipe(row): row for _, row in older.complete[::-1].iterrows()}
    moved: tuple[list[Any], list[Any]] = [], []
    for index, row in newer.complete.iterrows():
        other = before.get(_recipe(row))
        if other is None or row["duplicate_of"] >= 0:
            continue
        known = [i for i, name in enumerate(axes) if interval(row, name) and interval(other, name)]
        pair = [each.to_frame().T for each in (other, row)]
        up, down = _beaten(pair, [axes[i] for i in known], [directions[i] for i in known])
        for found, beaten in zip(moved, (up, down), strict=True):
            found.extend([index] if known and beaten[0, 0] else [])
    return newer.trials.loc[moved[0]], newer.trials.loc[moved[1]]


def _recipe(row: pd.Series) -> tuple[tuple[str, str], ...]:
    """The row's recipe but for its seed, which every sweep may have another of."""
    return tuple((name, str(row.get(name))) for name in RECIPE_FIELDS)


def _luck(
    sweeps: tuple[Summary, Summary], axes: list[str], directions: list[str], reference: list[float]
) -> float | None:
    """The difference in hypervolume that two unchanged sweeps hardly ever exceed."""
    squares = []
    for each in sweeps:
        values = each.promised(axes)
        scale = luck.luck(values, (each.trials["reference"] != "").to_numpy(), directions, reference)
        if scale is None:
            return None
        low, high = _ends(each.front, axes)
        noise = luck.noise(each.front[axes].to_numpy(float), (high - low) / 2, directions, reference)
        squares += [scale**2, noise**2]
    return luck.TIMES * math.sqrt(sum(squares))


def _doubt(older: Summary, newer: Summary) -> str:
    """Why the two cannot be compared: figures of single trainings have no interval, and so none of width zero."""
    bare = [each.sweep for each in (older, newer) if len(each.front) and (each.front["confirmed"] == "").any()]
    if bare:
        return f"{' and '.join(bare)} {'is' if len(bare) == 1 else 'are'} unconfirmed (study.confirm.seeds)"
    return "" if len(older.front) and len(newer.front) else "there is no front to compare"


def _differing(older: Summary, newer: Summary) -> Iterator[str]:
    """`study.budget.trials: 12, now 40` of every setting that the two did not share."""
    was, now = older.about["settings"], newer.about["settings"]
    for name in sorted({*was, *now}):
        if was.get(name) != now.get(name):
            yield f"study.{name}: {was.get(name, 'not set')}, now {now.get(name, 'not set')}"


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
