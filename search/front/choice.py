"""Which point of a front to take, and how sure it is that it meets the bounds it was asked for."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from search.command import UsageError
from search.front.summary import Summary, interval
from search.front.wording import said, unconfirmed
from search.study.constraint import Constraint


def choose(
    found: Summary, limits: Sequence[Constraint] = (), by: str = "", trial: str = "", certain: bool = True
) -> pd.Series:
    """The row to take: `trial`, or of the front's members that meet the limits the best in `by`, or else the knee.

    `certain`: a limit is met where the bad end of the value's 95 % interval meets it, which only a confirmed trial has;
    else where the mean does. Raises UsageError saying what is nearest when nothing meets the limits.
    """
    for where, name in [(str(limit), limit.metric) for limit in limits] + [("by", by)]:
        if name and name not in found.metrics.names():
            raise UsageError(f"{where}: {found.metrics.unknown(name)}")
    if trial:
        rows = found.complete[found.complete["number"] == int(trial)]
        if rows.empty:
            raise UsageError(f"trial: {trial} is no measured trial of {found.sweep}")
        return rows.iloc[0]
    rows = found.front
    if rows.empty:
        raise UsageError(f"study: the front of {found.sweep} is empty; trial=NUMBER exports that trial anyway")
    kept = rows[[all(met(row, limit, certain) for limit in limits) for _, row in rows.iterrows()]]
    if kept.empty:
        raise UsageError(_none(found, rows, limits, certain))
    knee = kept[kept["knee"]]
    if not by and not knee.empty:
        return knee.iloc[0]
    by = by or found.objectives[-1]
    return kept.sort_values(by, ascending=found.metrics.minimized(by)).iloc[0]


def met(row: pd.Series, limit: Constraint, certain: bool) -> bool:
    """Whether the row meets the limit: at the bad end of its interval if `certain`, else with its mean."""
    if not certain:
        return limit.violation(float(row[limit.metric])) <= 0
    ends = interval(row, limit.metric) if row.get("confirmed") else None
    return ends is not None and max(map(limit.violation, ends)) <= 0


def _none(found: Summary, rows: pd.DataFrame, limits: Sequence[Constraint], certain: bool) -> str:
    """That no point meets the limits, which is nearest, and what would help."""
    metrics = found.metrics
    missed = [_missed(row, limits) for _, row in rows.iterrows()]
    best = rows.iloc[missed.index(min(missed))]
    names = dict.fromkeys(limit.metric for limit in limits)
    has = ", ".join(f"{metrics[name].phrase} {said(metrics, best, name)}" for name in names)
    what = f"no point of the front{' surely' if certain else ''} meets it"
    lines = [f"{', '.join(map(str, limits))}: {what}; nearest is trial {best['number']} ({best['words']}): {has}"]
    if certain and not _missed(best, limits):
        reason = "its 95 % interval does not" if best.get("confirmed") else "and it is not confirmed"
        lines.append(f"Its mean meets it, {reason}; certain=no judges the mean")
    others = found.unconfirmed
    offered = others[[not _missed(row, limits) for _, row in others.iterrows()]]
    if len(offered):
        numbers = ", ".join(map(str, offered["number"]))
        lines.append(f"Not confirmed, but met as the search found them: trials {numbers} (trial=NUMBER exports one)")
        lines.append(unconfirmed(found))
    return "\n".join(lines)


def _missed(row: pd.Series, limits: Sequence[Constraint]) -> float:
    """By how much the row's means miss the limits, 0 when they meet all."""
    return sum(max(0.0, limit.violation(float(row[limit.metric]))) for limit in limits)


def sureness(found: Summary, row: pd.Series, limits: Sequence[Constraint]) -> list[str]:
    """One sentence per limit and one of the test split: how surely the row meets it, and what unseen data say."""
    metrics = found.metrics
    lines = [f"{limit}: {metrics[limit.metric].phrase} {_how(found, row, limit)}" for limit in limits]
    tested = [name for name in metrics.test if pd.notna(row.get(name))]
    for name in tested:
        parts = [part for part in (name, f"{name}_drop") if part in row]
        lines.append(", ".join(f"{metrics[part].phrase} {said(metrics, row, part)}" for part in parts))
    if not tested:
        lines.append("the test split has not been read for it: only confirmed trials are judged there")
    return lines


def _how(found: Summary, row: pd.Series, limit: Constraint) -> str:
    ends = interval(row, limit.metric) if row.get("confirmed") else None
    if met(row, limit, certain=True):
        how = "surely met, with the whole 95 % interval"
    elif not met(row, limit, certain=False):
        how = "not met"
    elif ends is None:
        how = "met by a single training, not confirmed"
    else:
        worst = found.metrics[limit.metric].text(max(ends, key=limit.violation))
        how = f"met by the mean; the 95 % interval reaches {worst}"
    return f"{said(found.metrics, row, limit.metric)}, {how}"
