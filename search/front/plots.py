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

from search.front import pareto
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
_LOG = 8.0  # an axis that spans a larger factor is logarithmic
GREY, GRID, INK = "#8a8a8a", "#e8e8e8", "#222222"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
SCHEME, GRANULARITY = "quantization.scheme", "pruning.granularity"


def label(metrics: Metrics, name: str) -> str:
    """An axis title: what is measured, and the unit."""
    return "Trial" if name == "number" else metrics[name].axis


def shown(metrics: Metrics, rows: pd.DataFrame | pd.Series, name: str) -> np.ndarray:
    """float64 values in the unit the axis names."""
    unit = 1.0 if name == "number" else metrics[name].scale
    return np.atleast_1d(np.asarray(rows[name], dtype=np.float64)) * unit


def span(summary: Summary, name: str) -> tuple[float, float] | None:
    """(lowest, highest) value of the feasible trials and the references, in the unit shown; None if there are none.

    A trial at chance level would squeeze the rest into a line: it stays out of the first view.
    """
    rows = summary.complete
    rows = rows[rows["feasible"] | (rows["reference"] != "")]
    values = shown(summary.metrics, rows if len(rows) else summary.complete, name)
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if len(values) else None


def scale(summary: Summary, name: str) -> str:
    """`log` for an axis that spans more than a factor of 8, else `linear`."""
    ends = span(summary, name)
    return "log" if name != "number" and ends is not None and 0 < _LOG * ends[0] < ends[1] else "linear"


def view(summary: Summary, name: str) -> tuple[float, float] | None:
    """(low, high) of the axis: the span and a margin."""
    ends = span(summary, name)
    if ends is None:
        return None
    low, high = ends
    if scale(summary, name) == "log":
        return low * 0.8, high * 1.25
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... of a logarithmic axis between `low` and `high`."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    return [m * 10.0**e for e in decades for m in (1, 2, 5) if low <= m * 10.0**e <= high]


def staircase(summary: Summary, x: str, y: str) -> pd.DataFrame:
    """The front's rows that are a front in these two objectives alone, from left to right."""
    rows = summary.front
    if x == "number" or rows.empty:
        return rows.iloc[:0]
    kept = pareto.front(rows[[x, y]].to_numpy(dtype=float), summary.metrics.directions((x, y)))
    return rows[kept].sort_values(x)


def hidden(summary: Summary) -> int:
    """How many measured trials lie outside the first view of some chart."""
    outside = np.zeros(len(summary.complete), dtype=bool)
    for name in dict.fromkeys(name for pair in summary.pairs for name in pair):
        ends = view(summary, name)
        if ends is not None:
            values = shown(summary.metrics, summary.complete, name)
            outside |= (values < ends[0]) | (values > ends[1])
    return int(outside.sum())


def blank(title: str, x: str = "", y: str = "", height: int = 460) -> go.Figure:
    """An empty chart in the style of all."""
    axis = {"gridcolor": GRID, "linecolor": GREY, "zeroline": False, "ticks": "outside", "tickcolor": GREY}
    return go.Figure(
        layout=go.Layout(
            title={"text": title, "x": 0, "xref": "paper", "font": {"size": 17}},
            xaxis={**axis, "title": x},
            yaxis={**axis, "title": y},
            height=height,
            margin={"l": 60, "r": 16, "t": 52, "b": 56},
            font={"family": FONT, "size": 14, "color": INK},
            plot_bgcolor="white",
            paper_bgcolor="white",
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
    measured = summary.complete
    for kind, rows in (
        ("infeasible", measured[~measured["feasible"]]),
        ("dominated", measured[measured["feasible"] & ~measured["on_front"]]),
        ("front", summary.front),
    ):
        if len(rows):
            figure.add_trace(_points(metrics, kind, rows, x, y))
    for trace in legend(measured):
        figure.add_trace(trace)
    for name, row, steps in labels(summary, x, y):
        figure.add_trace(_ring(metrics, row, x, y))
        figure.add_annotation(text=name, **_place(summary, row, x, y) | {"ay": 30 * steps})
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


def turn(metrics: Metrics, x: str) -> str:
    """Between two members the better one of the worse x is what one gets: the stairs' shape."""
    return "hv" if x == "number" or metrics.minimized(x) else "vh"


def _ring(metrics: Metrics, row: pd.Series, x: str, y: str) -> go.Scatter:
    marker = {"symbol": "circle-open", "size": 19, "color": INK, "line": {"width": 1.2}}
    way = {"mode": "markers", "showlegend": False, "hoverinfo": "skip"}
    return go.Scatter(x=shown(metrics, row, x), y=shown(metrics, row, y), marker=marker, **way)


def _place(summary: Summary, row: pd.Series, x: str, y: str) -> dict[str, object]:
    """Where a label stands: its point, and to the left of it near the right edge."""
    at = [shown(summary.metrics, row, name)[0] for name in (x, y)]
    at = [np.log10(v) if scale(summary, name) == "log" else v for v, name in zip(at, (x, y), strict=True)]
    left = near_right(summary, row, x)
    style = {"font": {"size": 12}, "bgcolor": "rgba(255,255,255,0.75)", "arrowcolor": GREY, "arrowwidth": 1}
    place = {"ax": -22 if left else 22, "xanchor": "right" if left else "left"}
    return {"x": at[0], "y": at[1], "arrowhead": 0, "standoff": 9, **place, **style}


def near_right(summary: Summary, row: pd.Series, x: str) -> bool:
    """Whether the point lies in the right quarter of the first view, where a label has no room to its right."""
    return _fraction(summary, row, x) > 0.75


def _points(metrics: Metrics, kind: str, rows: pd.DataFrame, x: str, y: str) -> go.Scatter:
    colours = [colour(scheme) for scheme in _column(rows, SCHEME)]
    symbols = [symbol(granularity)[0] for granularity in _column(rows, GRANULARITY)]
    marker = {"color": colours, "symbol": symbols, "size": 9, "opacity": 0.4}
    if kind == "front":
        marker |= {"size": 13, "opacity": 1.0, "line": {"color": "white", "width": 1}}
    if kind == "infeasible":
        marker |= {"symbol": "x-thin-open", "line": {"width": 1.5}, "opacity": 0.5, "size": 8}
    errors = (
        {f"error_{axis}": bars(metrics, rows, name) for axis, name in (("x", x), ("y", y))} if kind == "front" else {}
    )
    return go.Scatter(
        x=shown(metrics, rows, x),
        y=shown(metrics, rows, y),
        mode="markers",
        name=kind,
        marker=marker,
        showlegend=False,
        text=[hover(metrics, row, kind) for _, row in rows.iterrows()],
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


def legend(rows: pd.DataFrame) -> Iterator[go.Scatter]:
    """Entries that explain colours and symbols, for what occurs."""
    for scheme in dict.fromkeys(_column(rows, SCHEME)):
        name = "fp32" if scheme == "none" else scheme.replace("_", " ")
        yield _entry(name, {"color": colour(scheme), "symbol": "circle", "size": 10})
    for granularity in dict.fromkeys(_column(rows, GRANULARITY)):
        name = "not pruned" if granularity == "none" else f"{granularity} pruning"
        yield _entry(
            name, {"color": "white", "line": {"color": INK, "width": 1.5}, "symbol": symbol(granularity)[0], "size": 10}
        )
    if not rows["feasible"].all():
        yield _entry("infeasible", {"color": GREY, "symbol": "x-thin-open", "line": {"width": 1.5}, "size": 9})


def _entry(name: str, marker: dict[str, object]) -> go.Scatter:
    return go.Scatter(x=[None], y=[None], mode="markers", name=name, marker=marker, hoverinfo="skip")


def labels(summary: Summary, x: str, y: str) -> list[tuple[str, pd.Series, int]]:
    """(name, row, steps) of the points that carry a label: the references and the knee.

    `steps` is how far below the point (above, if negative) the label stands so that it meets no other label.
    """
    placed: list[tuple[float, float]] = []
    found = []
    for name, row in _named(summary):
        across, up = _fraction(summary, row, x), _fraction(summary, row, y)
        near = [b for a, b in placed if abs(across - a) < 0.25]
        free = (s for s in (1, -1, 2, -2) if all(abs(up - 0.08 * s - b) > 0.06 for b in near))
        steps = next(free, 1)
        placed.append((across, up - 0.08 * steps))
        found.append((name, row, steps))
    return found


def _fraction(summary: Summary, row: pd.Series, name: str) -> float:
    """Where the row's point lies along an axis: 0 at its beginning, 1 at its end."""
    at = np.array([*(view(summary, name) or (0.0, 1.0)), shown(summary.metrics, row, name)[0]])
    low, high, value = np.log10(at) if scale(summary, name) == "log" else at
    return float((value - low) / (high - low))


def _named(summary: Summary) -> Iterator[tuple[str, pd.Series]]:
    knee = summary.knee
    for _, row in summary.complete[summary.complete["reference"] != ""].iterrows():
        is_knee = knee is not None and row["number"] == knee["number"]
        yield row["reference"] + (" = knee" if is_knee else ""), row
    if knee is not None and not knee["reference"]:
        yield "knee", knee


def _column(rows: pd.DataFrame, name: str) -> list[str]:
    return [str(value) for value in rows[name]] if name in rows else ["none"] * len(rows)


def symbol(granularity: str) -> tuple[str, str]:
    """(plotly's symbol, matplotlib's marker) of a pruning granularity."""
    return SYMBOLS.get(granularity, ("hexagon", "h"))
