"""The front as a PNG, drawn by matplotlib: for READMEs, mails and MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from search.front import papers
from search.front.plots import (
    GRANULARITY,
    GREY,
    GRID,
    INK,
    SCHEME,
    SYMBOLS,
    label,
    labels,
    legend,
    near_right,
    scale,
    shown,
    staircase,
    symbol,
    ticks,
    turn,
    view,
)
from search.front.published import Beside, beside
from search.front.summary import Summary, interval
from search.study.metrics import Metrics
from search.trial.record import colour


def draw(summary: Summary, path: Path) -> None:
    """Write the front as a PNG to `path`, one panel per further objective."""
    pairs = summary.pairs
    published = beside(summary)
    panels = len(pairs) + len(published)
    figure = Figure(figsize=(7.2 * panels, 5.6), dpi=140, layout="constrained")
    figure.suptitle(f"{summary.study}: the Pareto front of {summary.counts()['complete']} trials", fontsize=13)
    every = list(np.atleast_1d(figure.subplots(1, panels)))
    for axes, (x, y) in zip(every[: len(pairs)], pairs, strict=True):
        _panel(axes, summary, x, y)
    for axes, each in zip(every[len(pairs) :], published, strict=True):
        _beside(axes, summary, each)
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=_marker(t.marker.symbol),
            label=t.name,
            color=t.marker.color,
            markeredgecolor=t.marker.line.color or t.marker.color,
            markersize=7,
        )
        for t in legend(summary.complete)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4 * panels, frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Software": None})


def _marker(plotly_symbol: str) -> str:
    known = dict(SYMBOLS.values()) | {"x-thin-open": "x"}
    return known.get(plotly_symbol, "h")


def _panel(axes: Axes, summary: Summary, x: str, y: str) -> None:
    metrics, stairs = summary.metrics, staircase(summary, x, y)
    where: Literal["pre", "post"] = "post" if turn(metrics, x) == "hv" else "pre"
    axes.step(
        shown(metrics, stairs, x),
        shown(metrics, stairs, y),
        where=where,
        color=GREY,
        linewidth=1.2,
        linestyle=":",
        zorder=1,
    )
    for _, row in summary.complete.iterrows():
        at, up = shown(metrics, row, x)[0], shown(metrics, row, y)[0]
        drawn = colour(str(row.get(SCHEME, "none"))), symbol(str(row.get(GRANULARITY, "none")))[1]
        if row["on_front"]:
            spread: dict[str, Any] = {"xerr": ends(metrics, row, x), "yerr": ends(metrics, row, y)}
            axes.errorbar(at, up, **spread, color=GREY, linewidth=1, capsize=2, zorder=2)
            axes.scatter(at, up, s=60, color=drawn[0], marker=drawn[1], edgecolor="white", linewidth=0.8, zorder=3)
        elif row["feasible"]:
            axes.scatter(at, up, s=30, color=drawn[0], marker=drawn[1], alpha=0.3, linewidth=0, zorder=1.5)
        else:
            axes.scatter(at, up, s=26, color=drawn[0], marker="x", alpha=0.45, linewidth=1, zorder=1.5)
    for name, row, steps in labels(summary, x, y):
        at = (shown(metrics, row, x)[0], shown(metrics, row, y)[0])
        axes.scatter(*at, s=170, facecolor="none", edgecolor=INK, linewidth=0.9, zorder=4)
        left = near_right(summary, row, x)
        side: dict[str, Any] = {"ha": "right" if left else "left", "va": "center"}
        side["xytext"] = (-18 if left else 18, -20 * steps)
        arrow = {"arrowstyle": "-", "color": GREY, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 6}
        axes.annotate(name, at, **side, textcoords="offset points", fontsize=9, arrowprops=arrow, zorder=5)
    axes.set_xscale(scale(summary, x))
    axes.set_yscale(scale(summary, y))
    for axis, name in ((axes.xaxis, x), (axes.yaxis, y)):
        if scale(summary, name) == "log":
            axis.set_major_locator(FixedLocator(ticks(*view(summary, name) or (1, 10))))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.set_minor_locator(NullLocator())
    axes.set(xlabel=label(metrics, x), ylabel=label(metrics, y), xlim=view(summary, x), ylim=view(summary, y))
    _style(axes)


def _beside(axes: Axes, summary: Summary, found: Beside) -> None:
    """Papers as crosses with their names, ours as points with intervals."""
    metrics, (x, y) = summary.metrics, (found.x, found.y)
    for (across, up), name in zip(papers.points(summary, found), found.papers, strict=True):
        axes.scatter(across, up, marker="x", color=papers.PAPER, s=50, zorder=3)
        axes.annotate(name, (across, up), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=9)
    for _, row in found.ours.iterrows():
        at, up = shown(metrics, row, x)[0], shown(metrics, row, y)[0]
        spread: dict[str, Any] = {"xerr": ends(metrics, row, x), "yerr": ends(metrics, row, y)}
        axes.errorbar(at, up, **spread, color=GREY, linewidth=1, capsize=2, zorder=2)
        axes.scatter(at, up, marker="D", color=papers.OURS, s=50, edgecolor="white", linewidth=0.8, zorder=4)
    low, high = papers.span(summary, found)
    if papers.logarithmic(low, high):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(ticks(low, high)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title("beside published results (crosses)", fontsize=11, color=INK)
    axes.set(xlabel=label(metrics, x), ylabel=label(metrics, y), xlim=(low, high))
    _style(axes)


def _style(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def ends(metrics: Metrics, row: pd.Series, name: str) -> np.ndarray | None:
    """float64 [2, 1]: how far the interval reaches below and above the row's metric, in the unit shown."""
    found = interval(row, name)
    if found is None:
        return None
    value, unit = shown(metrics, row, name)[0], metrics[name].scale
    return np.maximum([[value - found[0] * unit], [found[1] * unit - value]], 0.0)
