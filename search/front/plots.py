"""The front as an interactive chart, and what the picture beside it shares: colours, symbols, views, labels.

Colour says the quantization scheme (Okabe & Ito's colours, told apart by colour-blind eyes), the symbol says the
pruning granularity, size and fill say front, dominated or infeasible; the table beside the charts says all of it
in words.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from search.front.axes import cut, label, scale, shown, staircase, ticks, turn, view
from search.front.labels import PLOTLY, Label, labels
from search.front.summary import Summary, interval
from search.front.wording import said
from search.study.metrics import Metrics
from search.trial.record import colour

# granularity -> plotly's symbol, matplotlib's marker
SYMBOLS = {
    "none": ("circle", "o"),
    "unstructured": ("diamond", "D"),
    "block": ("star", "*"),
    "n_m": ("triangle-up", "^"),
    "channel": ("square", "s"),
}
GREY, GRID, INK = "#8a8a8a", "#e8e8e8", "#222222"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
SCHEME, GRANULARITY = "quantization.scheme", "pruning.granularity"


def blank(title: str, x: str = "", y: str = "", height: int = 460) -> go.Figure:
    """An empty chart in the style of all."""
    axis = {"gridcolor": GRID, "linecolor": GREY, "zeroline": False, "ticks": "outside", "tickcolor": GREY}
    return go.Figure(
        layout=go.Layout(
            title={"text": title, "x": 0, "xref": "paper", "font": {"size": 17}},
            xaxis={**axis, "title": x},
            yaxis={**axis, "title": y, "automargin": True},
            height=height,
            margin={"l": 76, "r": 16, "t": 52, "b": 56},
            font={"family": FONT, "size": 14, "color": INK},
            plot_bgcolor="white",
            paper_bgcolor="white",
            template="none",
            hoverlabel={"bgcolor": "white", "font": {"family": FONT}},
        )
    )


def front(summary: Summary, x: str, y: str) -> go.Figure:
    """Every trial as a point, the front in front."""
    metrics = summary.metrics
    against = "trial" if x == "number" else metrics[x].phrase
    figure = blank(f"{metrics[y].title} against {against}", label(metrics, x), label(metrics, y))
    stairs = staircase(summary, x, y)
    line = {"color": GREY, "width": 1.5, "dash": "dot", "shape": turn(metrics, x)}
    way = {"mode": "lines", "line": line, "showlegend": False, "hoverinfo": "skip"}
    figure.add_scatter(x=shown(metrics, stairs, x), y=shown(metrics, stairs, y), **way)
    for kind, rows in kinds(summary).items():
        if len(rows):
            figure.add_trace(_points(metrics, kind, rows, x, y))
    for trace in legend(summary):
        figure.add_trace(trace)
    for one in labels(summary, x, y, PLOTLY):
        figure.add_trace(_ring(metrics, one.row, x, y))
        figure.add_annotation(text=one.name, **_place(summary, one, x, y))
    for axis, name in (("xaxis", x), ("yaxis", y)):
        ends = view(summary, name)
        if ends and scale(summary, name) == "log":
            at = ticks(*ends)
            words = [f"{value:,g}" for value in at]
            figure.layout[axis].update(range=np.log10(ends).tolist(), type="log", tickvals=at, ticktext=words)
        else:
            figure.layout[axis].update(range=ends)
    figure.update_layout(legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0}, height=580)
    return figure


def kinds(summary: Summary) -> dict[str, pd.DataFrame]:
    """The measured trials by how they are drawn; every one is of one kind."""
    measured = summary.complete
    member, hollow = measured["on_front"], measured["unconfirmed"]
    feasible = measured["feasible"].astype(bool)
    return {
        "infeasible": measured[~feasible & ~member & ~hollow],
        "not on the front": measured[feasible & ~member & ~hollow],
        "not confirmed": measured[hollow],
        "on the front": summary.front,
    }


def explained(summary: Summary) -> list[str]:
    """What the marks of the charts mean, one sentence for each that occurs."""
    rows, again = kinds(summary), bool(len(summary.confirmed))
    said_of = []
    if len(rows["on the front"]):
        of = "means of fresh trainings" if again else "of a single training"
        said_of.append(f"Large and full: on the front ({of}).")
    if len(rows["not on the front"]):
        luck = (
            "Faded: measured once, in the search, and not on the front; one above the line was lucky or cannot be told "
            "from it."
        )
        said_of.append(luck if again else "Faded: measured, and not on the front.")
    if len(rows["not confirmed"]):
        said_of.append("Hollow: on the search's front, but not confirmed.")
    if len(rows["infeasible"]):
        said_of.append("×: breaks a constraint.")
    if len(rows["on the front"]):
        said_of.append("Dotted line: the best to be had at each point of the lower axis.")
        barred = [n for pair in summary.pairs for n in pair if any(interval(r, n) for _, r in summary.front.iterrows())]
        if barred:
            beyond = " (some reach beyond the chart)" if cut(summary) else ""
            said_of.append(f"Bars: 95 % intervals{beyond}.")
    said_of.append("Ring: the knee, which is the best compromise, and the references.")
    return said_of


def _ring(metrics: Metrics, row: pd.Series, x: str, y: str) -> go.Scatter:
    marker = {"symbol": "circle-open", "size": 19, "color": INK, "line": {"width": 1.2}}
    way = {"mode": "markers", "showlegend": False, "hoverinfo": "skip"}
    return go.Scatter(x=shown(metrics, row, x), y=shown(metrics, row, y), marker=marker, **way)


def _place(summary: Summary, one: Label, x: str, y: str) -> dict[str, object]:
    """plotly's annotation: the point, and from there where the text stands, in pixels downwards."""
    at = [shown(summary.metrics, one.row, name)[0] for name in (x, y)]
    at = [np.log10(v) if scale(summary, name) == "log" else v for v, name in zip(at, (x, y), strict=True)]
    anchor = {"right": "left", "left": "right", "middle": "center"}[one.side]
    style = {"font": {"size": 12}, "arrowcolor": GREY, "arrowwidth": 1, "arrowhead": 0, "standoff": 9, "borderpad": 0}
    return {"x": at[0], "y": at[1], "ax": one.right, "ay": -one.up, "xanchor": anchor, "yanchor": "middle", **style}


def _points(metrics: Metrics, kind: str, rows: pd.DataFrame, x: str, y: str) -> go.Scatter:
    colours = [colour(scheme) for scheme in _column(rows, SCHEME)]
    symbols = [symbol(granularity)[0] for granularity in _column(rows, GRANULARITY)]
    marker: dict[str, object] = {"color": colours, "symbol": symbols, "size": 9, "opacity": 0.4}
    errors = {}
    if kind == "on the front":
        marker |= {"size": 13, "opacity": 1.0, "line": {"color": INK, "width": 1}}
        errors = {f"error_{axis}": bars(metrics, rows, name) for axis, name in (("x", x), ("y", y))}
    if kind == "not confirmed":
        marker |= {"symbol": [f"{each}-open" for each in symbols], "size": 12, "opacity": 1.0, "line": {"width": 2}}
    if kind == "infeasible":
        marker |= {"symbol": "x-thin-open", "line": {"width": 1.5}, "opacity": 0.5, "size": 8}
    return go.Scatter(
        x=shown(metrics, rows, x),
        y=shown(metrics, rows, y),
        mode="markers",
        name=kind,
        marker=marker,
        showlegend=False,
        text=[hover(metrics, row, kind) for _, row in rows.iterrows()],
        customdata=[[int(number)] for number in rows["number"]],
        hovertemplate="%{text}<extra></extra>",
        **errors,
    )


def bars(metrics: Metrics, rows: pd.DataFrame, name: str) -> dict[str, object]:
    """plotly's error bars of the metric, where it has intervals."""
    ends = [interval(row, name) for _, row in rows.iterrows()]
    if not any(ends):
        return {"visible": False}
    value = shown(metrics, rows, name)
    unit = metrics[name].scale
    up = [0.0 if e is None else max(0.0, e[1] * unit - v) for e, v in zip(ends, value, strict=True)]
    down = [0.0 if e is None else max(0.0, v - e[0] * unit) for e, v in zip(ends, value, strict=True)]
    return {"type": "data", "array": up, "arrayminus": down, "symmetric": False, "thickness": 1.2, "color": GREY}


def hover(metrics: Metrics, row: pd.Series, kind: str) -> str:
    """What hovering the row's point says."""
    names = [name for name in (*metrics.quality, "latency_ms", "size_bytes") if name in row]
    figures = [f"{metrics[name].title}: {said(metrics, row, name)}" for name in names]
    name = f" ({row['reference']})" if row["reference"] else ""
    return "<br>".join([f"<b>{row['words']}</b>{name}", *figures, f"trial {row['number']}, {kind}"])


def legend(summary: Summary) -> Iterator[go.Scatter]:
    """Entries that explain colours and symbols, for what occurs."""
    rows = summary.complete
    for scheme in dict.fromkeys(_column(rows, SCHEME)):
        name = "fp32" if scheme == "none" else scheme.replace("_", " ")
        yield _entry(name, {"color": colour(scheme), "symbol": "circle", "size": 10})
    for granularity in dict.fromkeys(_column(rows, GRANULARITY)):
        name = "not pruned" if granularity == "none" else f"{granularity} pruning"
        line = {"color": INK, "width": 1.5}
        yield _entry(name, {"color": "white", "line": line, "symbol": symbol(granularity)[0], "size": 10})
    if len(kinds(summary)["infeasible"]):
        yield _entry("infeasible", {"color": GREY, "symbol": "x-thin-open", "line": {"width": 1.5}, "size": 9})


def _entry(name: str, marker: dict[str, object]) -> go.Scatter:
    return go.Scatter(x=[None], y=[None], mode="markers", name=name, marker=marker, hoverinfo="skip")


def _column(rows: pd.DataFrame, name: str) -> list[str]:
    return [str(value) for value in rows[name]] if name in rows else ["none"] * len(rows)


def symbol(granularity: str) -> tuple[str, str]:
    """(plotly's symbol, matplotlib's marker) of a pruning granularity."""
    return SYMBOLS.get(granularity, ("hexagon", "h"))
