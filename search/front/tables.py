"""The front as a table: for a terminal, in Markdown, as plain figures for other programs."""

from __future__ import annotations

import pandas as pd

from search.front import published
from search.front.listing import KNEE, UNCONFIRMED, Column, Listing
from search.front.summary import Summary
from search.front.wording import nothing_feasible, result, said, shrunk, unconfirmed
from search.study import phrases
from search.study.metrics import lowered

# What is known of a trial besides the task's own metrics -> the head of its column and its rank (see listing.Column).
_COLUMNS = {
    "latency_ratio": ("Faster", 1),
    "size_ratio": ("Smaller", 2),
    "latency_ms": ("", 21),
    "size_bytes": ("Size", 22),
}


def listing(summary: Summary) -> Listing:
    """The front for a terminal: its members with the knee marked, and those that were not confirmed."""
    counts = summary.counts()
    members = f"{counts['front']} of {counts['trials']} trials are on the Pareto front"
    rows = rows_of(summary)
    names = [name for name in _shown(summary) if name in summary.trials]
    return Listing(
        title=f"{summary.study}: {members} (sweep {summary.sweep})",
        marks=tuple(mark(row) for _, row in rows.iterrows()),
        trials=tuple(str(row["number"]) for _, row in rows.iterrows()),
        recipes=tuple(_named(row) for _, row in rows.iterrows()),
        columns=tuple(
            Column(_head(summary, n), tuple(_cell(summary, row, n) for _, row in rows.iterrows()), _rank(summary, n))
            for n in names
        ),
        below=tuple(below(summary)),
    )


def rows_of(summary: Summary) -> pd.DataFrame:
    """What a table of the front lists: its members and, after them, those of the search's that were not confirmed."""
    return pd.concat([summary.front, summary.unconfirmed]) if len(summary.unconfirmed) else summary.front


def mark(row: pd.Series) -> str:
    """◆ the knee, ○ not confirmed."""
    return KNEE if row["knee"] else UNCONFIRMED if row["unconfirmed"] else ""


def _named(row: pd.Series) -> str:
    return str(row["words"]) + (f" ({row['reference']})" if row["reference"] else "")


def _head(summary: Summary, name: str) -> str:
    if name.startswith("search/"):
        return "in search"  # it stands beside what it is of
    return _COLUMNS.get(name, ("", 0))[0] or summary.metrics.short(name)


def _rank(summary: Summary, name: str) -> int:
    """The task's own objective, then speed and size against the dense model, other objectives, the test split."""
    metrics = summary.metrics
    if name == metrics.first:
        return 0
    if name in _COLUMNS:
        return _COLUMNS[name][1]
    if name in summary.objectives:
        return 3
    if name == f"test_{metrics.first}":
        return 20
    return 30 if name.startswith("search/") else 31


def _cell(summary: Summary, row: pd.Series, name: str) -> str:
    return phrases.times(row, name) if name in phrases.RATIOS else said(summary.metrics, row, name)


def _shown(summary: Summary) -> list[str]:
    quality = [each for name in summary.metrics.quality for each in (name, f"search/{name}", f"test_{name}")]
    usual = [*quality, "latency_ms", "latency_ratio", "size_bytes", "size_ratio"]
    return usual + [name for name in summary.objectives if name not in usual]


def below(summary: Summary) -> list[str]:
    """What stands below the table: the knee in words, what luck had added, what broke a constraint."""
    counts, lines = summary.counts(), []
    if summary.knee is not None:
        lines.append(f"{KNEE} the best compromise (the knee): {result(summary, summary.knee)}.")
        lines.append(f"{_listed(summary)} on the validation split, which the search has seen.")
        lines.append(
            f"± is the 95 % interval over fresh trainings. Confirmed with them: {shrunk(summary)}."
            if len(summary.confirmed)
            else "Not confirmed: figures of single trainings, of which a search picks the luckiest."
        )
        lines += [said for said in [unconfirmed(summary)] if said]
    elif counts["complete"]:
        lines.append(nothing_feasible(summary))
    else:
        lines.append("No trial has been measured.")
    lines += [f"Beside papers, {lowered(published.sentence(summary, each))}" for each in published.beside(summary)]
    if counts["infeasible"] or counts["failed"]:
        infeasible = f"{counts['infeasible']} of {counts['trials']} trials break a constraint"
        lines.append(f"{infeasible}, {counts['failed']} failed.")
    if counts["stopped"]:
        lines.append(
            f"{counts['stopped']} of {counts['trials']} trials were stopped early: they break a constraint, were "
            "expected to add too little to the front, or were behind others after a short schedule."
        )
    return lines


def _listed(summary: Summary) -> str:
    """`Accuracy is`, `F1 and recall are`: the columns of the task's own metrics."""
    metrics = summary.metrics
    first, *rest = [metrics.short(name) for name in metrics.quality if name in summary.trials] or ["Quality"]
    rest = [lowered(title) for title in rest]
    return f"{first} is" if not rest else f"{', '.join([first, *rest[:-1]])} and {rest[-1]} are"


def figures(summary: Summary, rows: str = "front") -> pd.DataFrame:
    """The trials for other programs: plain numbers in base units; `rows`: front or all."""
    chosen = rows_of(summary) if rows == "front" else summary.trials
    first = [
        "number",
        "words",
        "knee",
        "on_front",
        "unconfirmed",
        "feasible",
        "state",
        "reference",
        "reason",
        "not_faster",
    ]
    rest = [name for name in chosen if name not in first and not str(name).startswith(("epoch/", "seconds/"))]
    return chosen[[name for name in first if name in chosen] + rest].dropna(axis="columns", how="all")


def markdown(summary: Summary, most: int = 1000) -> str:
    """The front's table in Markdown, at most `most` rows: the description of sweep and study in MLflow."""
    made, rows = listing(summary), list(rows_of(summary).index)
    heads = ["", "Trial", "Recipe", *(column.head for column in made.columns)]
    lines = [
        f"**{summary.study}, sweep {summary.sweep}**",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    for row in range(min(most, len(rows))):
        cells = [made.marks[row], made.trials[row], made.recipes[row], *(column.cells[row] for column in made.columns)]
        lines.append("| " + " | ".join(cells) + " |")
    if (left := len(rows) - most) > 0:
        lines.append(f"\n{left} more in front.csv.")
    return "\n".join([*lines, "", *(f"{sentence}\n" for sentence in made.below)]).rstrip()
