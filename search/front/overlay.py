"""Two sweeps' fronts in one chart, which says where the newer is better or worse beyond noise: HTML and PNG."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from search.front import html, pareto
from search.front.axes import label, shown, turn
from search.front.comparison import Comparison
from search.front.picture import ends
from search.front.plots import FONT, GREY, GRID, INK, bars, hover
from search.study.metrics import Metrics


@dataclass(frozen=True)
class _Series:
    """Rows drawn alike: points in `fill`, joined by a `line` to the stairs of their front, or rings."""

    name: str
    rows: pd.DataFrame
    colour: str
    fill: str = ""
    line: str = ""


def _series(found: Comparison) -> Iterator[_Series]:
    """Both fronts, and over them rings around what moved beyond noise."""
    yield _Series(f"{found.older.sweep}, the older", found.older.front, "#7a7a7a", "white", "dash")
    yield _Series(f"{found.newer.sweep}, the newer", found.newer.front, "#0072b2", "#0072b2", "solid")
    yield _Series("gained beyond noise", found.gained, "#009e73")
    yield _Series("lost beyond noise", found.lost, "#d55e00")


def pairs(found: Comparison) -> list[tuple[str, str]]:
    """(x, y) of the panels: latency as the ratio to each sweep's own dense baseline, which no drift moves."""
    return [("latency_ratio" if x == "latency_ms" else x, y) for x, y in found.older.pairs if x != "number"]


def chart(found: Comparison) -> go.Figure:
    """One panel per further objective; hovering a point names its recipe."""
    drawn = pairs(found)
    figure = make_subplots(cols=max(1, len(drawn)), horizontal_spacing=0.09)
    for column, (x, y) in enumerate(drawn, 1):
        for one in _series(found):
            for trace in _traces(found.older.metrics, one, x, y):
                figure.add_trace(trace.update(showlegend=bool(trace.showlegend) and column == 1), row=1, col=column)
        figure.update_xaxes(title=label(found.older.metrics, x), row=1, col=column)
        figure.update_yaxes(title=label(found.older.metrics, y), row=1, col=column)
    axes = {"gridcolor": GRID, "linecolor": GREY, "zeroline": False, "ticks": "outside", "tickcolor": GREY}
    figure.update_xaxes(**axes)
    figure.update_yaxes(**axes)
    return figure.update_layout(
        title={"text": "Both fronts", "x": 0, "xref": "paper", "font": {"size": 17}},
        template="none",
        height=560,
        font={"family": FONT, "size": 14, "color": INK},
        plot_bgcolor="white",
        paper_bgcolor="white",
        legend={"orientation": "h", "y": -0.18, "yanchor": "top", "x": 0},
    )


def _traces(metrics: Metrics, one: _Series, x: str, y: str) -> Iterator[go.Scatter]:
    if one.rows.empty:
        return
    if one.line:
        stairs = _stairs(metrics, one.rows, x, y)
        line = {"color": one.colour, "width": 1.5, "dash": one.line, "shape": turn(metrics, x)}
        way = {"mode": "lines", "line": line, "showlegend": False, "hoverinfo": "skip"}
        yield go.Scatter(x=shown(metrics, stairs, x), y=shown(metrics, stairs, y), **way)
    ring = {"symbol": "circle-open", "size": 22, "color": one.colour, "line": {"width": 2.5}}
    point = {"color": one.fill, "size": 11, "line": {"color": one.colour, "width": 1.5}}
    yield go.Scatter(
        x=shown(metrics, one.rows, x),
        y=shown(metrics, one.rows, y),
        mode="markers",
        name=one.name,
        marker=point if one.line else ring,
        text=[hover(metrics, row, one.name) for _, row in one.rows.iterrows()],
        hovertemplate="%{text}<extra></extra>",
        showlegend=True,
        **({"error_x": bars(metrics, one.rows, x), "error_y": bars(metrics, one.rows, y)} if one.line else {}),
    )


def _stairs(metrics: Metrics, rows: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """The rows that are a front in these two objectives alone, from left to right."""
    kept = pareto.front(rows[[x, y]].to_numpy(dtype=float), metrics.directions((x, y)))
    return rows[kept].sort_values(x)


def picture(found: Comparison) -> Figure:
    """The same for mails and MLflow's preview."""
    drawn = pairs(found)
    figure = Figure(figsize=(7.2 * max(1, len(drawn)), 5.6), dpi=120, layout="constrained")
    figure.suptitle(found.title, fontsize=13)
    panels = np.atleast_1d(figure.subplots(1, max(1, len(drawn))))
    for axes, (x, y) in zip(panels, drawn, strict=False):
        for one in _series(found):
            _draw(found.older.metrics, axes, one, x, y)
        axes.set(xlabel=label(found.older.metrics, x), ylabel=label(found.older.metrics, y))
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _draw(metrics: Metrics, axes: Axes, one: _Series, x: str, y: str) -> None:
    if one.rows.empty:
        return
    if one.line:
        stairs, where = _stairs(metrics, one.rows, x, y), "post" if turn(metrics, x) == "hv" else "pre"
        style: dict[str, Any] = {"where": where, "color": one.colour, "linewidth": 1.2}
        axes.step(
            shown(metrics, stairs, x),
            shown(metrics, stairs, y),
            linestyle="--" if one.line == "dash" else "-",
            zorder=1,
            **style,
        )
        for _, row in one.rows.iterrows():
            at = shown(metrics, row, x)[0], shown(metrics, row, y)[0]
            spread: dict[str, Any] = {"xerr": ends(metrics, row, x), "yerr": ends(metrics, row, y)}
            axes.errorbar(*at, fmt="none", **spread, ecolor=one.colour, linewidth=1, capsize=2, zorder=2)
    style = {"s": 45, "linewidth": 1.2} if one.line else {"s": 230, "linewidth": 2}
    points = shown(metrics, one.rows, x), shown(metrics, one.rows, y)
    axes.scatter(*points, facecolor=one.fill or "none", edgecolor=one.colour, label=one.name, zorder=3, **style)


def write(found: Comparison, path: Path) -> None:
    """Write the overlay to `path`, as its suffix says: .html, which holds plotly.js, or .png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        picture(found).savefig(path, metadata={"Software": None})
    else:
        hint = "Rings: what the newer sweep gained or lost beyond noise. Bars: 95 % intervals. Lines: the fronts."
        page = html.document(
            found.title, [f"<h1>{escape(found.title)}</h1>", html.chart(chart(found), found.title, hint)]
        )
        path.write_text(page, encoding="utf-8")
