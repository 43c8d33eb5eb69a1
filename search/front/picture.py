"""The front as a PNG, drawn by matplotlib: for READMEs, mails and MLflow."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from search.front import papers
from search.front.axes import label, scale, shown, staircase, ticks, turn, view
from search.front.labels import PICTURE, labels
from search.front.plots import GRANULARITY, GREY, GRID, INK, SCHEME, SYMBOLS, explained, kinds, legend, symbol
from search.front.published import Beside, beside
from search.front.summary import Summary, interval
from search.study.metrics import Metrics
from search.trial.record import colour


def draw(summary: Summary, path: Path) -> None:
    """Write the front as a PNG to `path`, one panel per further objective."""
    pairs, published = summary.pairs, beside(summary)
    panels = len(pairs) + len(published)
    figure = Figure(figsize=(7.2 * panels, 6.0), dpi=140, layout="constrained")
    figure.suptitle(f"{summary.study}: the Pareto front of {summary.counts()['complete']} trials", fontsize=13)
    every = list(np.atleast_1d(figure.subplots(1, panels)))
    for axes, (x, y) in zip(every[: len(pairs)], pairs, strict=True):
        _panel(axes, summary, x, y)
    for axes, each in zip(every[len(pairs) :], published, strict=True):
        _beside(axes, summary, each)
    words = textwrap.fill(" ".join(explained(summary)), 118 * panels)
    way: dict[str, Any] = {"ncols": 4 * panels, "frameon": False, "fontsize": 9, "columnspacing": 1.4}
    figure.legend(handles=_handles(summary), loc="outside lower center", title=words, title_fontsize=8.5, **way)
    figure.savefig(path, metadata={"Software": None})


def _handles(summary: Summary) -> list[Line2D]:
    return [
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
        for t in legend(summary)
    ]


def _marker(plotly_symbol: str) -> str:
    known = dict(SYMBOLS.values()) | {"x-thin-open": "x"}
    return known.get(plotly_symbol, "h")


def _panel(axes: Axes, summary: Summary, x: str, y: str) -> None:
    metrics, stairs = summary.metrics, staircase(summary, x, y)
    where: Literal["pre", "post"] = "post" if turn(metrics, x) == "hv" else "pre"
    line: dict[str, Any] = {"where": where, "color": GREY, "linewidth": 1.2, "linestyle": ":", "zorder": 1}
    axes.step(shown(metrics, stairs, x), shown(metrics, stairs, y), **line)
    for kind, rows in kinds(summary).items():
        for _, row in rows.iterrows():
            _point(axes, metrics, kind, row, x, y)
    for one in labels(summary, x, y, PICTURE):
        at = (shown(metrics, one.row, x)[0], shown(metrics, one.row, y)[0])
        axes.scatter(*at, s=170, facecolor="none", edgecolor=INK, linewidth=0.9, zorder=4)
        side: dict[str, Any] = {"ha": {"right": "left", "left": "right", "middle": "center"}[one.side], "va": "center"}
        arrow = {"arrowstyle": "-", "color": GREY, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 6}
        place: dict[str, Any] = {"xytext": (one.right, one.up), "textcoords": "offset points", "arrowprops": arrow}
        axes.annotate(one.name, at, **side, **place, fontsize=9, zorder=5)
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
    axes.margins(y=0.15)  # room for the names above the crosses
    axes.set_title("beside published results (crosses)", fontsize=11, color=INK)
    axes.set(xlabel=label(metrics, x), ylabel=label(metrics, y), xlim=(low, high))
    _style(axes)


def _style(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _point(axes: Axes, metrics: Metrics, kind: str, row: pd.Series, x: str, y: str) -> None:
    at, up = shown(metrics, row, x)[0], shown(metrics, row, y)[0]
    shade, marker = colour(str(row.get(SCHEME, "none"))), symbol(str(row.get(GRANULARITY, "none")))[1]
    if kind == "on the front":
        spread: dict[str, Any] = {"xerr": ends(metrics, row, x), "yerr": ends(metrics, row, y)}
        axes.errorbar(at, up, **spread, color=GREY, linewidth=1, capsize=2, zorder=2)
        axes.scatter(at, up, s=60, color=shade, marker=marker, edgecolor=INK, linewidth=0.7, zorder=3)
    elif kind == "not confirmed":
        axes.scatter(at, up, s=52, facecolor="white", marker=marker, edgecolor=shade, linewidth=1.6, zorder=2.5)
    elif kind == "not on the front":
        axes.scatter(at, up, s=30, color=shade, marker=marker, alpha=0.3, linewidth=0, zorder=1.5)
    else:
        axes.scatter(at, up, s=26, color=shade, marker="x", alpha=0.45, linewidth=1, zorder=1.5)


def ends(metrics: Metrics, row: pd.Series, name: str) -> np.ndarray | None:
    """float64 [2, 1]: how far the interval reaches below and above the row's metric, in the unit shown."""
    found = interval(row, name)
    if found is None:
        return None
    value, unit = shown(metrics, row, name)[0], metrics[name].scale
    return np.maximum([[value - found[0] * unit], [found[1] * unit - value]], 0.0)
