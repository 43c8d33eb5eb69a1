"""Charts of the search itself: hypervolume over trials, parameter importances, parallel coordinates, time spent."""

from __future__ import annotations

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from search.front.plots import GREY, INK, blank, label, shown
from search.front.summary import Summary

ENOUGH = 50  # trials; importances from fewer are luck
_MOST, _RESAMPLES = 300, 10  # trials that importances are computed of, and how often: some ten seconds
_SECTIONS = ("pruning.", "quantization.", "distillation.", "finetuning.")
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
    figure.update_layout(margin={"l": 190, "t": 86})
    return figure


def parallel(summary: Summary) -> go.Figure | None:
    """Parallel coordinates: what was varied, then the objectives; coloured by the first. None if nothing varied.

    Feasible trials only: one at chance level would press all others into one line.
    """
    rows, fields = summary.complete[summary.complete["feasible"]], varied(summary)
    if rows.empty or not fields:
        return None
    metrics, first = summary.metrics, summary.objectives[0]
    lines = {"color": shown(metrics, rows, first), "colorscale": "Cividis", "showscale": True}
    lines["colorbar"] = {"title": {"text": label(metrics, first), "side": "right"}, "thickness": 14}
    axes = [_axis(rows[name], name.split(".")[-1]) for name in fields]
    axes += [{"label": label(metrics, name), "values": shown(metrics, rows, name)} for name in summary.objectives]
    figure = blank("How recipes lead to results: parallel coordinates", height=500)
    figure.add_trace(go.Parcoords(dimensions=axes, line=lines, labelangle=-18, labelfont={"size": 13}))
    figure.update_layout(margin={"l": 100, "r": 30, "t": 130, "b": 30})
    return figure


def _axis(column: pd.Series, name: str) -> dict[str, object]:
    if pd.api.types.is_numeric_dtype(column):
        return {"label": name, "values": column.to_numpy(dtype=float)}
    words = sorted(set(map(str, column)))
    places = list(range(len(words)))
    values = [words.index(str(value)) for value in column]
    return {"label": name, "values": values, "tickvals": places, "ticktext": words}


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
    figure.add_bar(y=names, x=table["total"], orientation="h", marker={"color": GREY}, text=text, textposition="auto")
    figure.update_traces(textfont={"color": INK}, insidetextfont={"color": "white"}, cliponaxis=False)
    figure.update_layout(margin={"l": 130})
    return figure
