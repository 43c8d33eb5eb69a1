"""The report's tables: what was confirmed, every trial with the command that picks it, where it was measured."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import pandas as pd

from search.front import html
from search.front.summary import Summary, interval
from search.front.wording import said, shrunk, unconfirmed
from search.study.metrics import Metrics
from search.study.phrases import times

_UI = "http://127.0.0.1:5000"  # where `python -m search.ui` answers by itself
_SCHEME = "quantization.scheme"


def confirmed(summary: Summary) -> Iterator[str]:
    """The candidates with their confirmed figures beside what the search had found."""
    metrics = summary.metrics
    rows = summary.confirmed.sort_values(summary.objectives[0], ascending=metrics.minimized(summary.objectives[0]))
    if rows.empty:
        return
    yield "<h2>Confirmed with fresh seeds</h2>"
    said_in_words = f"In the mean over {len(rows)} candidates: {shrunk(summary)}."
    left_out = f" {unconfirmed(summary)}".rstrip()
    yield f"<p>{escape(said_in_words)} The test split was read here for the first time.{escape(left_out)}</p>"
    names = [name for name in (*metrics.test, *summary.objectives) if name in rows]
    heads = ["<th scope=col>#</th><th scope=col>Recipe</th>"]
    for name in names:
        heads.append(f"<th scope=col>{escape(_head_of(metrics, name))}</th>")
        heads += ["<th scope=col class=soft>in the search</th>"] if f"search/{name}" in rows else []
    body = "".join(_confirmed_row(metrics, row, names) for _, row in rows.iterrows())
    yield html.table(f"<thead><tr>{''.join(heads)}</tr></thead>", body, "Confirmed with fresh seeds")


def _confirmed_row(metrics: Metrics, row: pd.Series, names: list[str]) -> str:
    cells = [f"<td>{row['number']}</td><td>{escape(row['words'])}</td>"]
    for name in names:
        cells.append(f"<td>{escape(said(metrics, row, name))}</td>")
        if f"search/{name}" in row:
            cells.append(f"<td class=soft>{metrics[name].text(row[f'search/{name}'])}</td>")
    return f"<tr class={'front' if row['on_front'] else 'off'}>{''.join(cells)}</tr>"


def trials(summary: Summary) -> Iterator[str]:
    """Every trial: sorted by a click, filtered, with the command that picks it and its page in MLflow."""
    metrics, rows = summary.metrics, summary.trials
    usual = ["latency_ms", "latency_ratio", "size_bytes", "size_ratio", "sparsity"]
    wanted = dict.fromkeys([*metrics.test, *metrics.quality, *usual, *summary.objectives])
    names = [name for name in wanted if name in rows and rows[name].notna().any()]
    heads = ["#", "Recipe", *(_head_of(metrics, name) for name in names)]
    yield "<h2 id=all>All trials</h2>"
    yield _filters(summary)
    yield (
        "<p class=soft>copy: the command that copies this trial's file, with a model card, into a folder. Trial: its "
        "page in MLflow, while <code>python -m search.ui</code> runs.</p>"
    )
    head = "".join(f"<th scope=col><button>{escape(head)}</button></th>" for head in heads)
    head += "<th scope=col class=act>Take</th><th scope=col class=act>Page</th>"
    ordered = pd.concat([summary.front, rows[~rows["on_front"]]])
    body = "".join(_row(summary, row, names) for _, row in ordered.iterrows())
    yield html.table(f"<thead><tr>{head}</tr></thead>", body, "All trials", "id=trials")


def _filters(summary: Summary) -> str:
    rows = summary.trials
    kinds = {"front": "on the front", "feasible": "feasible", "confirmed": "confirmed"}
    boxes = [f"<label><input type=checkbox value={kind}> {words}</label>" for kind, words in kinds.items()]
    schemes = sorted({str(name) for name in rows.get(_SCHEME, pd.Series(dtype=str)).dropna()})
    options = "".join(f"<option value='{escape(n)}'>{escape(_scheme(n))}</option>" for n in schemes)
    chosen = f"<label>quantization <select><option value=''>any</option>{options}</select></label>"
    return (
        f"<fieldset class=filters><legend>Show only</legend>{''.join(boxes)}{chosen}"
        f"<output class=soft aria-live=polite>{len(rows)} of {len(rows)} shown</output></fieldset>"
    )


def _scheme(name: str) -> str:
    return "none (fp32)" if name == "none" else name.replace("_", " ")


def _head_of(metrics: Metrics, name: str) -> str:
    short = {"size_bytes": "Size", "latency_ratio": "× faster", "size_ratio": "× smaller"}
    return short.get(name, metrics.short(name))


def command(summary: Summary, number: int) -> str:
    """The command line that picks the trial."""
    return f"python -m search.pick study={summary.study} sweep={summary.sweep} trial={number}"


def _row(summary: Summary, row: pd.Series, names: list[str]) -> str:
    kinds = ["front" if row["on_front"] else "off", *(["knee"] if row["knee"] else [])]
    measured = row["state"] == "complete"
    if not measured:
        kinds.append(row["state"])
    else:
        kinds.append("feasible" if row["feasible"] else "infeasible")
    kinds += ["confirmed"] if row["confirmed"] else []
    tags = [kind for kind in kinds if kind in ("knee", "stopped", "failed", "running", "infeasible")]
    tags += ["not faster"] if row["not_faster"] else []
    tags += ["not confirmed"] if row["unconfirmed"] else []
    tags += [row["reference"]] if row["reference"] else []
    marks = "".join(f"<span class=tag>{escape(tag)}</span>" for tag in tags)
    reasons = [row[name] for name in ("reason", "not_faster") if row[name]]
    reason = "".join(f"<br><span class=soft>{escape(each)}</span>" for each in reasons)
    cells = [_cell(summary.metrics, row, name) for name in names]
    number = int(row["number"])
    copied = escape(command(summary, number))
    copy = f"<button class=copy title='{copied}' aria-label='copy the command for trial {number}'>copy</button>"
    place = f"#/experiments/{summary.about.get('experiment', '')}/runs/{row.get('run_id', '')}"
    link = f"<a class=mlflow href='{_UI}/{place}' aria-label='trial {number} in MLflow'>trial</a>"
    return (
        f"<tr class='{' '.join(kinds)}' id=trial-{number} data-kinds='{' '.join(kinds)}' "
        f"data-scheme='{escape(str(row.get(_SCHEME, '')))}'><td data-value={number}>{number}</td>"
        f"<td>{escape(row['words'])}{marks}{reason}</td>{''.join(cells)}"
        f"<td class=act>{copy if measured else ''}</td><td class=act>{link}</td></tr>"
    )


def _cell(metrics: Metrics, row: pd.Series, name: str) -> str:
    value = row[name]
    if name in ("latency_ratio", "size_ratio"):
        return f"<td data-value={f'{1 / value:.7g}' if value else ''}>{times(row, name)}</td>"
    ends = interval(row, name)
    title = f" title='{metrics[name].text(ends[0])} to {metrics[name].text(ends[1])}'" if ends else ""
    return f"<td data-value={value:.9g}{title}>{escape(said(metrics, row, name))}</td>"


def environment(summary: Summary) -> Iterator[str]:
    """Machine and versions, as far as the trials share them."""
    yield "<h2>Measured where, made with what</h2>"
    found = []
    for name in map(str, summary.trials.filter(regex=r"^(environment\.|version\.|data_digest|git_commit)")):
        values = [str(value) for value in summary.trials[name].dropna().unique() if str(value) not in ("", "[]")]
        if values and len(values) <= 4:
            found.append(f"<tr><th scope=row>{escape(name)}</th><td>{escape(' | '.join(values))}</td></tr>")
    yield html.table("", "".join(found), "Measured where, made with what", "class=plain")
