"""The front as a table: for a terminal, in Markdown, as plain figures for other programs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich.markup import escape
from rich.table import Table

from search.front.summary import Summary, nothing_feasible, said, shrunk, than_dense, times, unconfirmed
from search.study.metrics import lowered


def table(summary: Summary) -> Table:
    """The front for a terminal, the knee marked."""
    counts = summary.counts()
    title = f"{summary.study}: {counts['front']} of {counts['trials']} trials are on the Pareto front ({summary.sweep})"
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    made.add_column("")
    made.add_column("Recipe", min_width=28, overflow="fold")
    names = [name for name in _shown(summary) if name in summary.trials]
    for name in names:
        made.add_column(_head(summary, name), justify="right", no_wrap=True)
    made.add_column("Trial", justify="right")
    for _, row in summary.front.iterrows():
        words = escape(str(row["words"])) + (f" [dim]({escape(row['reference'])})[/dim]" if row["reference"] else "")
        cells = _cells(summary, row, names)
        made.add_row("◆" if row["knee"] else "", words, *cells, str(row["number"]), style="bold" if row["knee"] else "")
    return made


def _head(summary: Summary, name: str) -> str:
    if name.startswith("search/"):
        return "in search"  # it stands beside what it is of
    short = {"latency_ratio": "× faster", "size_ratio": "× smaller", "size_bytes": "Size"}
    return short.get(name) or summary.metrics.short(name)


def _cells(summary: Summary, row: pd.Series, names: Sequence[str]) -> list[str]:
    ratios = ("latency_ratio", "size_ratio")
    return [times(row, name) if name in ratios else said(summary.metrics, row, name) for name in names]


def _shown(summary: Summary) -> list[str]:
    quality = [each for name in summary.metrics.quality for each in (f"test_{name}", name, f"search/{name}")]
    usual = [*quality, "latency_ms", "latency_ratio", "size_bytes", "size_ratio"]
    return usual + [name for name in summary.objectives if name not in usual]


def below(summary: Summary) -> list[str]:
    """What stands below the table: the knee in words, what luck had added, what broke a constraint."""
    counts, lines = summary.counts(), []
    if summary.knee is not None:
        lines.append(f"◆ the knee, the best compromise; against the dense model: {than_dense(summary.knee)}.")
        lines.append(f"{_listed(summary)} on the validation split, which the search has seen.")
        lines += [f"Confirmed with fresh seeds: {shrunk(summary)}."] if len(summary.confirmed) else []
        lines += [unconfirmed(summary)] if summary.unconfirmed else []
    elif counts["complete"]:
        lines.append(nothing_feasible(summary))
    else:
        lines.append("No trial has been measured.")
    if counts["infeasible"] or counts["failed"]:
        infeasible = f"{counts['infeasible']} of {counts['trials']} trials break a constraint"
        lines.append(f"{infeasible}, {counts['failed']} failed.")
    return lines


def _listed(summary: Summary) -> str:
    """`Accuracy is`, `F1 and recall are`: the columns of the task's own metrics."""
    metrics = summary.metrics
    first, *rest = [metrics.short(name) for name in metrics.quality if name in summary.trials] or ["Quality"]
    rest = [lowered(title) for title in rest]
    return f"{first} is" if not rest else f"{', '.join([first, *rest[:-1]])} and {rest[-1]} are"


def figures(summary: Summary, rows: str = "front") -> pd.DataFrame:
    """The trials for other programs: plain numbers in base units; `rows`: front or all."""
    chosen = summary.front if rows == "front" else summary.trials
    first = ["number", "words", "knee", "on_front", "feasible", "state", "reference", "reason"]
    rest = [name for name in chosen if name not in first and not str(name).startswith(("epoch/", "seconds/"))]
    return chosen[[name for name in first if name in chosen] + rest].dropna(axis="columns", how="all")


def markdown(summary: Summary, most: int = 15) -> str:
    """The front's table in Markdown, at most `most` rows: the description of sweep and study in MLflow."""
    names = [name for name in _shown(summary) if name in summary.trials]
    heads = ["", "Recipe", *(_head(summary, name) for name in names), "Trial"]
    lines = [f"**{line}**" for line in (f"{summary.study}, sweep {summary.sweep}",)]
    lines += ["", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for _, row in summary.front.head(most).iterrows():
        cells = _cells(summary, row, names)
        words = str(row["words"]) + (f" ({row['reference']})" if row["reference"] else "")
        lines.append("| " + " | ".join(["◆" if row["knee"] else "", words, *cells, str(row["number"])]) + " |")
    if (left := len(summary.front) - most) > 0:
        lines.append(f"\n{left} more in front.csv.")
    return "\n".join([*lines, "", *below(summary)])
