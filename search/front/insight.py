"""Charts of the search itself: hypervolume over trials, parameter importances, parallel coordinates, time spent."""

from __future__ import annotations

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from search.front.axes import label, shown
from search.front.plots import GREY, INK, blank
from search.front.summary import Summary
from search.study.metrics import Metrics

ENOUGH = 50  # trials; importances from fewer are luck
_MOST, _RESAMPLES = 300, 10  # trials that importances are computed of, and how often: some ten seconds
_SECTIONS = ("pruning.", "quantization.", "distillation.", "finetuning.")
_FIFTHS = ("#a34400", "#8f6b2f", "#6b6b6b", "#3f6f8f", "#005a9c")  # at least 4.5:1 on white
_PLAIN = {"showarrow": False, "name": "axis", "font": {"size": 12}}
_TICK = {"yanchor": "middle", "bgcolor": "white", "opacity": 0.9, "font": {"size": 11}}
_SHADES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def hypervolume(summary: Summary) -> go.Figure | None:
    """The dominated hypervolume after each trial, beside the sweep before; None before the first."""
    curve = summary.hypervolume
    if curve.empty:
        return None
    figure = blank("Hypervolume over trials", "Trial", "Dominated hypervolume", 380)
    line = {"shape": "hv", "color": "#0072b2", "width": 2}
    drawn = {"x": curve["number"], "y": curve["hypervolume"], "line": line, "marker": {"size": 5}}
    figure.add_scatter(**drawn, mode="lines+markers", name=summary.sweep)
    if summary.earlier is not None:
        name, before = summary.earlier
        dashed = {"shape": "hv", "color": GREY, "width": 2, "dash": "dash"}
        figure.add_scatter(x=before["number"], y=before["hypervolume"], mode="lines", line=dashed, name=name)
        figure.update_layout(showlegend=True)
    figure.update_yaxes(rangemode="tozero")
    return figure


def varied(summary: Summary) -> list[str]:
    """The recipe fields that the sweep varied."""
    rows = summary.complete
    fields = [n for n in map(str, rows) if n.startswith(_SECTIONS) or n in ("model", "trainer")]
    return [name for name in fields if rows[name].nunique() > 1]


def importances(summary: Summary) -> dict[str, dict[str, tuple[float, float]]]:
    """objective -> recipe field -> (share of the objective's variance that it explains, half its 95 % interval).

    fANOVA over the recorded trials (Hutter, Hoos, Leyton-Brown, "An efficient approach for assessing hyperparameter
    importance", ICML 2014). Every recipe has every field, so that fields of one branch count as well. The interval
    comes from resampling the trials. Empty below ENOUGH trials: their shares are luck.
    """
    rows, fields = summary.complete, varied(summary)
    rows = rows[np.isfinite(rows[summary.objectives].to_numpy(dtype=float)).all(axis=1)]
    if len(rows) < ENOUGH or not fields:
        return {}
    if len(rows) > _MOST:
        rows = rows.sample(_MOST, random_state=0)
    space = {name: _distribution(rows[name]) for name in fields}
    changing = [name for name in summary.objectives if rows[name].nunique() > 1]
    return {objective: _with_intervals(rows, space, objective) for objective in changing}


def _with_intervals(
    rows: pd.DataFrame, space: dict[str, BaseDistribution], objective: str
) -> dict[str, tuple[float, float]]:
    shares = _explained(rows, space, objective)
    drawn = [_explained(rows.sample(frac=1, replace=True, random_state=i), space, objective) for i in range(_RESAMPLES)]
    halves = {name: 1.96 * float(np.std([one[name] for one in drawn], ddof=1)) for name in shares}
    return {name: (share, halves[name]) for name, share in shares.items()}


def _explained(rows: pd.DataFrame, space: dict[str, BaseDistribution], objective: str) -> dict[str, float]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _, row in rows.iterrows():
        params = {name: row[name] for name in space}
        study.add_trial(optuna.create_trial(params=params, distributions=space, value=float(row[objective])))
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=16, seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator, params=list(space))
    return {name: float(share) for name, share in shares.items()}


def _distribution(column: pd.Series) -> BaseDistribution:
    if pd.api.types.is_numeric_dtype(column):
        return FloatDistribution(float(column.min()), float(column.max()))
    return CategoricalDistribution(sorted(set(column)))


def importance(summary: Summary) -> go.Figure | None:
    """Bars of `importances`; None where there are none."""
    shares = importances(summary)
    if not shares:
        return None
    nothing = (0.0, 0.0)
    total = {name: sum(found.get(name, nothing)[0] for found in shares.values()) for name in varied(summary)}
    order = sorted(total, key=lambda name: total[name])
    figure = blank("What mattered: parameter importances", "Share of variance explained (%)", "", 120 + 40 * len(order))
    for shade, (objective, found) in zip(_SHADES * 3, shares.items(), strict=False):
        values, halves = zip(*(found.get(name, nothing) for name in order), strict=True)
        figure.add_bar(
            y=order,
            x=[100 * value for value in values],
            error_x={"type": "data", "array": [100 * half for half in halves], "color": INK, "thickness": 1.2},
            name=summary.metrics[objective].title,
            orientation="h",
            marker={"color": shade},
        )
    figure.update_layout(barmode="group", legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0})
    figure.update_yaxes(automargin=True)
    figure.update_layout(margin={"l": 20, "t": 86})
    return figure


def parallel(summary: Summary) -> go.Figure | None:
    """Parallel coordinates: what was varied, then the objectives; coloured by the first. None if nothing varied.

    Feasible trials only: one at chance level would press all others into one line.
    """
    rows, fields = summary.complete[summary.complete["feasible"]], varied(summary)
    if rows.empty or not fields:
        return None
    metrics, first = summary.metrics, summary.objectives[0]
    axes = [_axis(name.split(".")[-1].replace("_", " "), rows[name]) for name in fields]
    axes += [_axis(label(metrics, name), pd.Series(shown(metrics, rows, name))) for name in summary.objectives]
    quality = rows[first].rank(pct=True, ascending=not metrics.minimized(first)).to_numpy()
    shade = np.clip((quality * len(_FIFTHS)).astype(int), 0, len(_FIFTHS) - 1)
    figure = blank("How recipes lead to results: parallel coordinates", height=520)
    for at, colour in enumerate(_FIFTHS):
        _lines(figure, rows[shade == at], [axis[1][shade == at] for axis in axes], colour, metrics, first)
    for place, (title, _, ends) in enumerate(axes):
        figure.add_shape(type="line", x0=place, x1=place, y0=0, y1=1, line={"color": GREY, "width": 1}, layer="below")
        figure.add_annotation(x=place, y=1.06, text=title, textangle=-20, xanchor="left", yanchor="bottom", **_PLAIN)
        for height, text in ends:
            figure.add_annotation(x=place, y=height, text=text, xanchor="left", xshift=5, **_PLAIN | _TICK)
    hidden = {"visible": False, "fixedrange": True}
    figure.update_layout(xaxis={**hidden, "range": [-0.15, len(axes) - 0.4]}, yaxis={**hidden, "range": [-0.05, 1.35]})
    return figure.update_layout(margin={"l": 12, "r": 110, "t": 40, "b": 16}, showlegend=False)


def _lines(
    figure: go.Figure,
    rows: pd.DataFrame,
    heights: list[np.ndarray],
    colour: str,
    metrics: Metrics,
    first: str,
) -> None:
    """One trace: the lines of `rows`, with gaps between them."""
    across: list[float | None] = []
    up: list[float | None] = []
    text: list[str] = []
    for at, (_, row) in enumerate(rows.iterrows()):
        across += [*range(len(heights)), None]
        up += [*(float(height[at]) for height in heights), None]
        text += [f"trial {row['number']}: {metrics[first].text(row[first])}"] * (len(heights) + 1)
    if across:
        line = {"color": colour, "width": 1.4}
        way = {"mode": "lines", "line": line, "opacity": 0.8, "text": text, "hovertemplate": "%{text}<extra></extra>"}
        figure.add_scatter(x=across, y=up, **way)


def _axis(title: str, column: pd.Series) -> tuple[str, np.ndarray, list[tuple[float, str]]]:
    """(title, float64 [rows] between 0 and 1, what stands where beside the axis)."""
    if pd.api.types.is_numeric_dtype(column):
        values = column.to_numpy(dtype=float)
        low, high = float(np.min(values)), float(np.max(values))
        return title, (values - low) / (high - low or 1.0), [(0.0, f"{low:,.3g}"), (1.0, f"{high:,.3g}")]
    words = sorted(set(map(str, column)))
    places = {word: at / max(len(words) - 1, 1) for at, word in enumerate(words)}
    heights = np.array([places[str(value)] for value in column], dtype=float)
    return title, heights, [(place, word.replace("_", " ")) for word, place in places.items()]


def stage_seconds(summary: Summary) -> pd.DataFrame:
    """Columns stage, total, median (seconds): what each stage cost, the dearest first."""
    spent = summary.trials.filter(regex="^seconds/")
    table = pd.DataFrame(
        {
            "stage": [str(name).removeprefix("seconds/") for name in spent],
            "total": [float(spent[name].sum()) for name in spent],
            "median": [float(spent[name].median()) for name in spent],
        }
    )
    return table.sort_values("total", ascending=False, ignore_index=True)


def stages(summary: Summary) -> go.Figure | None:
    """Bars of `stage_seconds`; None when no stage was timed."""
    table = stage_seconds(summary)[::-1]
    if table.empty:
        return None
    text = [
        f"{total:,.1f} s, median {median:.2f} s" for total, median in zip(table["total"], table["median"], strict=True)
    ]
    names = [name.replace("_", " ") for name in table["stage"]]
    figure = blank("What each stage cost", "Seconds over all trials", "", 110 + 38 * len(table))
    figure.add_bar(
        y=names, x=table["total"], orientation="h", marker={"color": _FIFTHS[2]}, text=text, textposition="auto"
    )
    figure.update_traces(textfont={"color": INK}, insidetextfont={"color": "white"}, cliponaxis=False)
    figure.update_yaxes(automargin=True)
    figure.update_layout(margin={"l": 20})
    return figure
