"""Papers' points beside ours as an interactive chart, and what the picture shares with it."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from search.front.axes import label, shown, ticks
from search.front.plots import bars, blank, hover
from search.front.published import Beside
from search.front.summary import Summary

PAPER, OURS = "#d55e00", "#0072b2"
_LOG = 4.0  # an axis that spans a larger factor is logarithmic: papers differ by more than a front does


def chart(summary: Summary, found: Beside) -> go.Figure:
    """Papers as crosses with their names, ours as points with intervals."""
    metrics, (x, y) = summary.metrics, (found.x, found.y)
    figure = blank("Beside published results", label(metrics, x), label(metrics, y))
    at = points(summary, found)
    names = {"mode": "markers+text", "text": list(found.papers), "textposition": "top center", "name": "papers"}
    cross = {"symbol": "x", "size": 10, "color": PAPER}
    figure.add_scatter(x=at[:, 0], y=at[:, 1], marker=cross, hoverinfo="text", **names)
    figure.add_scatter(
        x=shown(metrics, found.ours, x),
        y=shown(metrics, found.ours, y),
        mode="markers",
        name="this study",
        marker={"symbol": "diamond", "size": 12, "color": OURS},
        text=[hover(metrics, row, "confirmed") for _, row in found.ours.iterrows()],
        hovertemplate="%{text}<extra></extra>",
        error_x=bars(metrics, found.ours, x),
        error_y=bars(metrics, found.ours, y),
    )
    low, high = span(summary, found)
    if logarithmic(low, high):
        marks = ticks(low, high)
        texts = [f"{value:,g}" for value in marks]
        figure.layout.xaxis.update(type="log", range=np.log10((low, high)).tolist(), tickvals=marks, ticktext=texts)
    figure.update_layout(legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0})
    return figure


def points(summary: Summary, found: Beside) -> np.ndarray:
    """float64 [papers, 2] in the units that the axes name."""
    units = [summary.metrics[name].scale for name in (found.x, found.y)]
    return np.array(list(found.papers.values())) * units


def span(summary: Summary, found: Beside) -> tuple[float, float]:
    """(low, high) of the x axis, in the unit shown."""
    values = np.concatenate([points(summary, found)[:, 0], shown(summary.metrics, found.ours, found.x)])
    low, high = float(values.min()), float(values.max())
    if logarithmic(low, high):
        return low * 0.7, high * 1.5
    margin = 0.1 * (high - low) or 1.0
    return low - margin, high + margin


def logarithmic(low: float, high: float) -> bool:
    """Whether the x axis is."""
    return high > _LOG * low > 0
