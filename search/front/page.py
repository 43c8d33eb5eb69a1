"""The report of a sweep as one self-contained HTML page: for a desktop, a phone, paper, a screen reader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from search.front import axes, html, insight, layers, papers, plots, published, rows
from search.front.summary import Summary
from search.front.wording import nothing_feasible, said, than_dense
from search.study.metrics import Metrics


def page(summary: Summary, found: Mapping[str, Any] | None = None) -> str:
    """The whole page. `found`: what is known of the front's files layer by layer."""
    title = f"{summary.study}: what the search found"
    return html.document(title, _body(summary, title, found))


def _body(summary: Summary, title: str, found: Mapping[str, Any] | None) -> Iterator[str]:
    yield f"<a class=skip href='#all'>to the table of all trials</a><h1>{escape(title)}</h1>"
    yield from _head(summary)
    yield from _cards(summary)
    if len(summary.complete):
        yield "<h2>The front</h2>"
        for x, y in summary.pairs:
            yield html.chart(plots.front(summary, x, y), _alt(summary, x, y), " ".join(plots.explained(summary)))
    yield from rows.confirmed(summary)
    yield from _published(summary)
    yield from rows.trials(summary)
    yield from layers.section(summary, found)
    yield "<h2>How the search went</h2>"
    yield from _chart_of(insight.hypervolume(summary), _reference(summary))
    fanova = "fANOVA over the measured trials; the lines are 95 % intervals from resampling them."
    yield from _chart_of(insight.importance(summary), fanova)
    yield from _chart_of(insight.parallel(summary), _lines(summary), wide=True)
    together = "Measured in each trial; trials run side by side, so it adds up to more."
    yield from _chart_of(insight.stages(summary), together)
    yield from rows.environment(summary)


def _published(summary: Summary) -> Iterator[str]:
    found = published.beside(summary)
    if found:
        yield "<h2>Beside published results</h2>"
    for each in found:
        hint = "Crosses: papers' figures as they report them. Diamonds: ours, with 95 % intervals."
        yield html.chart(papers.chart(summary, each), f"{hint} The table below holds the same figures.", hint)
        yield from published.table(summary, each)


def _alt(summary: Summary, x: str, y: str) -> str:
    """The chart in a sentence: how many points, and the ends of the front."""
    counts, metrics = summary.counts(), summary.metrics
    against = "the number of the trial" if x == "number" else metrics[x].phrase
    text = f"{metrics[y].title} against {against}: {counts['complete']} trials, {counts['front']} on the front"
    ends = axes.staircase(summary, x, y)
    if len(ends) > 1:
        first, last = (ends.iloc[at] for at in (0, -1))
        text += (
            f", from {said(metrics, first, y)} at {said(metrics, first, x)} to {said(metrics, last, y)} at "
            f"{said(metrics, last, x)}"
        )
    return f"{text}. Arrow keys go from point to point; the table of all trials holds the same figures."


def _head(summary: Summary) -> Iterator[str]:
    counts, about = summary.counts(), summary.about
    when = datetime.fromtimestamp(about["start_ms"] / 1000, UTC).strftime("%d %B %Y %H:%M UTC")
    facts = [f"sweep {summary.sweep}", f"started {when}", about["status"].lower(), f"{counts['trials']} trials"]
    facts += [f"{counts[kind]} {kind}" for kind in ("infeasible", "stopped", "failed") if counts[kind]]
    description = about["tags"].get("pare.description", "")
    yield f"<p>{escape(description)}</p>" if description else ""
    yield f"<p class=soft>{escape(' · '.join(facts))}</p>"
    if not counts["front"]:
        reason = nothing_feasible(summary) if counts["complete"] else "No trial has been measured yet."
        yield f"<p class=warn>{escape(reason)}</p>"
    if noisy := int(
        summary.complete.get("environment.noisy", pd.Series(dtype=str)).astype(str).str.contains("noisy").sum()
    ):
        yield (
            f"<p class=warn>In {noisy} of {counts['complete']} trials the machine was too noisy for the latency "
            "precision that was asked; the intervals say how far each figure can be trusted. End other programs or "
            "raise latency.max_seconds.</p>"
        )
    if out_of_view := axes.hidden(summary):
        few = "1 measured trial lies" if out_of_view == 1 else f"{out_of_view} measured trials lie"
        yield f"<p class=soft>{few} outside the charts' first view; double-click a chart to see all.</p>"


def _cards(summary: Summary) -> Iterator[str]:
    dense = summary.complete[summary.complete["reference"] == "dense"]
    if summary.front.empty and dense.empty:
        return
    metrics, knee = summary.metrics, summary.knee
    yield "<div class=cards>"
    if len(dense):
        yield _card(
            metrics, "The dense model, before compression", dense.iloc[0], summary.objectives, "", compare=False
        )
    if knee is not None:
        yield _card(metrics, "Knee: the best compromise", knee, summary.objectives, "knee")
    for name in summary.objectives if len(summary.front) else ():
        row = summary.front.sort_values(name, ascending=metrics.minimized(name)).iloc[0]
        yield _card(metrics, f"Best: {metrics[name].phrase}", row, [name], "")
    yield "</div>"


def _card(metrics: Metrics, title: str, row: pd.Series, names: list[str], kind: str, compare: bool = True) -> str:
    figures = " · ".join(said(metrics, row, name) for name in names)
    below = f"against dense: {than_dense(row)}" if compare else f"trial {row['number']}"
    return (
        f"<div class='card {kind}'><h2>{escape(title)}</h2><b>{escape(figures)}</b>{escape(row['words'])}"
        f"<div class=soft>{escape(below)}</div></div>"
    )


def _chart_of(figure: go.Figure | None, hint: str, wide: bool = False) -> Iterator[str]:
    if figure is not None:
        yield html.chart(figure, f"{figure.layout.title.text}. {hint}", hint, wide)


def _reference(summary: Summary) -> str:
    if not summary.recorded:
        return "Up to the worst value of each objective in this sweep: not comparable with other sweeps."
    point = zip(map(summary.metrics.__getitem__, summary.objectives), summary.about["reference"], strict=True)
    return "Reference point: " + ", ".join(f"{metric.phrase} {metric.text(value)}" for metric, value in point) + "."


def _lines(summary: Summary) -> str:
    first = summary.metrics[summary.objectives[0]].phrase
    return f"Feasible trials, one line each; its colour says the {first}: blue the best fifth, brown the worst."
