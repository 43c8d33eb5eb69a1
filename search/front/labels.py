"""Where the names of points stand: over no point, no bar of an interval and no other name, and inside the panel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from search.front.axes import fraction, shown
from search.front.summary import Summary, interval

_POINT, _RING, _BAR, _GAP = 7.0, 11.0, 2.0, 3.0  # half widths of what may not be covered, in the panel's units
_RADII = (20.0, 30.0, 42.0, 56.0, 72.0, 92.0, 115.0, 140.0, 170.0, 205.0, 245.0)
_ANGLES = np.deg2rad([-35, 35, -145, 145, -90, 90, -10, 10, 170, -170, -60, 60, -120, 120])


@dataclass(frozen=True)
class Panel:
    """A panel's size, and of its letters: in pixels or in points."""

    width: float
    height: float
    letter: float
    line: float


PLOTLY, PICTURE = Panel(900, 420, 6.6, 15), Panel(440, 330, 5.2, 10)


@dataclass(frozen=True)
class Label:
    """`name` of the point of `row`: its nearer edge stands `right` and `up` of it; `side`: where the text goes."""

    name: str
    row: pd.Series
    right: float
    up: float
    side: str


def named(summary: Summary) -> Iterator[tuple[str, pd.Series]]:
    """(name, row) of the points that carry a ring: the knee and the references."""
    knee = summary.knee
    if knee is not None and not knee["reference"]:
        yield "knee", knee
    for _, row in summary.complete[summary.complete["reference"] != ""].iterrows():
        is_knee = knee is not None and row["number"] == knee["number"]
        yield str(row["reference"]).replace("_", " ") + (" = knee" if is_knee else ""), row


def labels(summary: Summary, x: str, y: str, panel: Panel) -> list[Label]:
    """The names that find room; those outside the first view, and those without room, have none: the table tells."""
    wanted = [(name, row, _at(summary, row, x, y, panel)) for name, row in named(summary)]
    wanted = [(n, row, at) for n, row, at in wanted if 0 <= at[0] <= panel.width and 0 <= at[1] <= panel.height]
    taken = _occupied(summary, x, y, panel, [at for _, _, at in wanted])
    found = []
    for name, row, at in wanted:
        placed = _placed(at, panel.letter * len(name), panel, taken)
        if placed is not None:
            right, up, side, box = placed
            taken = np.vstack([taken, box])
            found.append(Label(name, row, right, up, side))
    return found


def _at(summary: Summary, row: pd.Series, x: str, y: str, panel: Panel) -> tuple[float, float]:
    across, up = (float(fraction(summary, shown(summary.metrics, row, name), name)[0]) for name in (x, y))
    return across * panel.width, up * panel.height


def _occupied(summary: Summary, x: str, y: str, panel: Panel, rings: list[tuple[float, float]]) -> np.ndarray:
    """float64 [boxes, 4], each left, bottom, right, top: points, rings, bars."""
    rows, metrics = summary.complete, summary.metrics
    across = fraction(summary, shown(metrics, rows, x), x) * panel.width
    up = fraction(summary, shown(metrics, rows, y), y) * panel.height
    boxes = [_around(a, b, _POINT, _POINT) for a, b in zip(across, up, strict=True)]
    boxes += [_around(a, b, _RING, _RING) for a, b in rings]
    for _, row in summary.front.iterrows():
        a, b = _at(summary, row, x, y, panel)
        for name, size in ((x, panel.width), (y, panel.height)):
            found = interval(row, name)
            if found is not None:
                low, high = fraction(summary, np.array(found) * metrics[name].scale, name) * size
                boxes.append((low, b - _BAR, high, b + _BAR) if name == x else (a - _BAR, low, a + _BAR, high))
    made = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return made[np.isfinite(made).all(axis=1)]


def _around(across: float, up: float, width: float, height: float) -> tuple[float, float, float, float]:
    return across - width, up - height, across + width, up + height


def _placed(
    at: tuple[float, float], width: float, panel: Panel, taken: np.ndarray
) -> tuple[float, float, str, np.ndarray] | None:
    """(right, up, side, box) of the nearest free place; None without one."""
    for radius in _RADII:
        for angle in _ANGLES:
            right, up = radius * float(np.cos(angle)), radius * float(np.sin(angle))
            side = "right" if right > radius / 4 else "left" if right < -radius / 4 else "middle"
            left = at[0] + right - {"right": 0.0, "left": width, "middle": width / 2}[side]
            bottom = at[1] + up - panel.line / 2
            box = np.array([left, bottom, left + width, bottom + panel.line])
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= panel.width and box[3] <= panel.height
            if inside and not _meets(box, taken):
                return right, up, side, box
    return None


def _meets(box: np.ndarray, taken: np.ndarray) -> bool:
    apart = (
        (taken[:, 2] < box[0] - _GAP)
        | (taken[:, 0] > box[2] + _GAP)
        | (taken[:, 3] < box[1] - _GAP)
        | (taken[:, 1] > box[3] + _GAP)
    )
    return not bool(apart.all())
