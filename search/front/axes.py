"""The charts' axes: what they show in which unit, how far they reach, logarithmic or linear."""

from __future__ import annotations

import numpy as np
import pandas as pd

from search.front import pareto
from search.front.summary import Summary, interval
from search.study.metrics import Metrics

_FACTOR = 3.0  # an axis that spans less than this is linear in any case
_REACH = 1.0  # intervals widen an axis by at most this part of the span of the values, to either side


def label(metrics: Metrics, name: str) -> str:
    """An axis title: what is measured, and the unit."""
    return "Trial" if name == "number" else metrics[name].axis


def shown(metrics: Metrics, rows: pd.DataFrame | pd.Series, name: str) -> np.ndarray:
    """float64 values in the unit the axis names."""
    unit = 1.0 if name == "number" else metrics[name].scale
    return np.atleast_1d(np.asarray(rows[name], dtype=np.float64)) * unit


def _values(summary: Summary, name: str) -> np.ndarray:
    """Sorted finite values of the feasible trials and the references, in the unit shown.

    A trial at chance level would squeeze the rest into a line: it stays out of the first view.
    """
    rows = summary.complete
    rows = rows[rows["feasible"] | (rows["reference"] != "")]
    values = shown(summary.metrics, rows if len(rows) else summary.complete, name)
    return np.sort(values[np.isfinite(values)])


def scale(summary: Summary, name: str) -> str:
    """`log` where the values lie more evenly on a logarithmic axis than on a linear one, else `linear`."""
    values = _values(summary, name)
    if name == "number" or len(values) < 2 or not 0 < _FACTOR * values[0] < values[-1]:
        return "linear"
    return "log" if _uneven(np.log(values)) < _uneven(values) else "linear"


def _uneven(values: np.ndarray) -> float:
    """How far sorted values are from an even spread: Kolmogorov's distance."""
    places = (values - values[0]) / (values[-1] - values[0])
    even = np.arange(len(values)) / (len(values) - 1)
    return float(np.abs(places - even).max())


def view(summary: Summary, name: str) -> tuple[float, float] | None:
    """(low, high) of the axis: the values, the front's intervals, and a margin."""
    values = _values(summary, name)
    if not len(values):
        return None
    low, high = float(values[0]), float(values[-1])
    if scale(summary, name) == "log":
        ends = _with_intervals(summary, name, low / (high / low) ** _REACH, high * (high / low) ** _REACH)
        return min([low, *ends]) * 0.8, max([high, *ends]) * 1.25
    room = _REACH * (high - low) or 0.05 * abs(high)
    ends = _with_intervals(summary, name, low - room, high + room)
    low, high = min([low, *ends]), max([high, *ends])
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _with_intervals(summary: Summary, name: str, least: float, most: float) -> list[float]:
    """The ends of the front's intervals, none beyond `least` or `most`."""
    unit = 1.0 if name == "number" else summary.metrics[name].scale
    found = [interval(row, name) for _, row in summary.front.iterrows()]
    return [min(max(end * unit, least), most) for pair in found if pair is not None for end in pair]


def cut(summary: Summary) -> int:
    """How many of the front's intervals reach beyond a chart's first view."""
    count = 0
    for name in dict.fromkeys(name for pair in summary.pairs for name in pair):
        ends = view(summary, name)
        unit = 1.0 if name == "number" else summary.metrics[name].scale
        found = [interval(row, name) for _, row in summary.front.iterrows()]
        if ends is not None:
            count += sum(f is not None and (f[0] * unit < ends[0] or f[1] * unit > ends[1]) for f in found)
    return count


def hidden(summary: Summary) -> int:
    """How many measured trials lie outside the first view of some chart."""
    outside = np.zeros(len(summary.complete), dtype=bool)
    for name in dict.fromkeys(name for pair in summary.pairs for name in pair):
        ends = view(summary, name)
        if ends is not None:
            values = shown(summary.metrics, summary.complete, name)
            outside |= (values < ends[0]) | (values > ends[1])
    return int(outside.sum())


def ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... of a logarithmic axis between `low` and `high`; 1.5, 3 and 7 too where these are few."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)):
        found = [m * 10.0**e for e in decades for m in steps if low <= m * 10.0**e <= high]
        if len(found) >= 4:
            break
    return found


def fraction(summary: Summary, values: np.ndarray | float, name: str) -> np.ndarray:
    """Where values, in the unit shown, lie along an axis: 0 at its beginning, 1 at its end."""
    ends = np.array(view(summary, name) or (0.0, 1.0))
    at = np.asarray(values, dtype=np.float64)
    if scale(summary, name) == "log":
        with np.errstate(invalid="ignore", divide="ignore"):
            ends, at = np.log10(ends), np.log10(at)
    return np.asarray((at - ends[0]) / (ends[1] - ends[0]))


def staircase(summary: Summary, x: str, y: str) -> pd.DataFrame:
    """The front's rows that are a front in these two objectives alone, from left to right."""
    rows = summary.front
    if x == "number" or rows.empty:
        return rows.iloc[:0]
    kept = pareto.front(rows[[x, y]].to_numpy(dtype=float), summary.metrics.directions((x, y)))
    return rows[kept].sort_values(x)


def turn(metrics: Metrics, x: str) -> str:
    """Between two members the better one of the worse x is what one gets: the stairs' shape."""
    return "hv" if x == "number" or metrics.minimized(x) else "vh"
