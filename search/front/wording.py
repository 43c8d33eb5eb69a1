"""A sweep's front in words: figures of a row, what confirmation changed, what was left out."""

from __future__ import annotations

import pandas as pd

from search.front.summary import Summary, limits, shrinkage
from search.study import phrases
from search.study.metrics import Metrics


def said(metrics: Metrics, row: pd.Series, name: str) -> str:
    """The row's metric as people read it, with its interval once it is confirmed; `–` when it was not measured."""
    return phrases.figure(metrics, row, name, certain=bool(row.get("confirmed")))


def result(summary: Summary, row: pd.Series) -> str:
    """`half the channels removed, int8 · 95.8 ± 0.3 % · 5.1× faster · 14× smaller`."""
    figures = phrases.result(summary.metrics, summary.objectives, row, certain=bool(row.get("confirmed")))
    return " · ".join([str(row["words"]), *figures])


def than_dense(row: pd.Series) -> str:
    """`2.1× faster, 4.2× smaller` than the dense model, of what was measured."""
    return ", ".join(phrases.than_dense(row))


def shrunk(summary: Summary) -> str:
    """`validation accuracy 99.01 % in the search, 98.87 % confirmed`, in the mean over the confirmed trials."""
    found = [(summary.metrics[name], was, now) for name, (was, now) in shrinkage(summary).items()]
    return "; ".join(f"{m.phrase} {m.text(was)} in the search, {m.text(now)} confirmed" for m, was, now in found)


def nothing_feasible(summary: Summary) -> str:
    """That no trial meets the constraints, and which one misses them least and by how much."""
    metrics, again = summary.metrics, " with fresh seeds" if len(summary.confirmed) else ""
    found = summary.trials[summary.trials["number"] == summary.nearest]
    if found.empty:
        return f"No trial meets the constraints{again}."
    row = found.iloc[0]
    missed = [name.removeprefix("violation/").partition(" ") for name in limits(summary.trials) if row[name] > 0]
    figures = ", ".join(f"{metrics[n].phrase} {said(metrics, row, n)}, asked: {rule}" for n, _, rule in missed)
    return f"No trial meets the constraints{again}; nearest is trial {row['number']}, {row['words']}: {figures}."


def unconfirmed(summary: Summary) -> str:
    """How many of the search's front were not confirmed, and the command that confirms them; "" for none."""
    rows = summary.unconfirmed
    if rows.empty:
        return ""
    which = f"trial {rows['number'].iloc[0]} is" if len(rows) == 1 else f"{len(rows)} trials are"
    return (
        f"○ {which} on the search's front but not confirmed: figures of one lucky training. To confirm: "
        f"python -m search.run study={summary.study} study.confirm.candidates=null"
    )
