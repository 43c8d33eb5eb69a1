"""The report of a sweep as one self-contained HTML page: plotly.js is inside, nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from search.front import insight, papers, plots, published
from search.front.summary import Summary, interval
from search.front.wording import nothing_feasible, said, shrunk, than_dense, unconfirmed
from search.study.metrics import Metrics
from search.study.phrases import times

_STYLE = """
:root { color-scheme: light; --ink: #222; --soft: #5c5c5c; --line: #dcdcdc; --band: #f6f7f9; --mark: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 24px 20px 64px; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; } h2 { font-size: 1.2rem; margin: 40px 0 8px; }
p { margin: 6px 0; } .soft { color: var(--soft); }
.cards { display: grid; gap: 12px; margin: 20px 0; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; }
.card h3 { margin: 0; font-size: .85rem; color: var(--soft); font-weight: 600; }
.card b { display: block; font-size: 1.2rem; } .card.knee { border: 2px solid var(--mark); }
.warn { border-left: 4px solid #d55e00; background: #fdf3ee; padding: 8px 12px; margin: 14px 0; }
.scroll { overflow-x: auto; } .wide { min-width: 860px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:nth-child(-n+2), td:nth-child(-n+2), .plain th, .plain td { text-align: left; }
.plain td { white-space: normal; overflow-wrap: anywhere; }
thead th { position: sticky; top: 0; background: #fff; border-bottom: 2px solid var(--ink); }
th button { all: unset; cursor: pointer; font-weight: 600; } th button:focus-visible { outline: 2px solid var(--mark); }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
tr.front { background: var(--band); font-weight: 600; } tr.knee td:first-child { box-shadow: inset 4px 0 var(--mark); }
tr.infeasible, tr.failed { color: var(--soft); } .tag { border: 1px solid currentColor; border-radius: 9px;
  padding: 0 7px; font-size: .78rem; font-weight: 500; margin-left: 6px; }
body.only tr.off { display: none; }
@media (max-width: 600px) { body { padding: 14px 10px 40px; } h1 { font-size: 1.35rem; } }
"""

_SCRIPT = """
for (const button of document.querySelectorAll("#trials th button")) button.onclick = () => {
  const head = button.parentElement, column = head.cellIndex, body = document.querySelector("#trials tbody");
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const last = value => value === "" || value === "nan";
  [...body.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (last(x) || last(y)) return last(x) - last(y);
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return up ? order : -order;
  }).forEach(row => body.append(row));
};
document.querySelector("#only").onchange = event => document.body.classList.toggle("only", event.target.checked);
"""


def page(summary: Summary) -> str:
    """The whole page."""
    charts = [(plots.front(summary, x, y), "The table below holds the same points.") for x, y in summary.pairs]
    title = f"{summary.study}: what the search found"
    parts = [
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{escape(title)}</title>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body>",
        f"<h1>{escape(title)}</h1>",
        *_head(summary),
        *_cards(summary),
        *(_chart(figure, hint) for figure, hint in charts if len(summary.complete)),
        *_confirmed(summary),
        *_published(summary),
        *_trials(summary),
        "<h2>How the search went</h2>",
        *_chart_of(insight.hypervolume(summary), _reference(summary)),
        *_chart_of(
            insight.importance(summary),
            "fANOVA over the measured trials; the lines are 95 % intervals from resampling them.",
        ),
        *_chart_of(
            insight.parallel(summary),
            "Feasible trials. Drag along an axis to select; drag a title to reorder.",
            wide=True,
        ),
        *_chart_of(insight.stages(summary), "Measured in each trial; trials run side by side, so it adds up to more."),
        *_environment(summary),
        f"<script>{_SCRIPT}</script></body></html>",
    ]
    return "\n".join(parts)


def _head(summary: Summary) -> Iterator[str]:
    counts, about = summary.counts(), summary.about
    when = datetime.fromtimestamp(about["start_ms"] / 1000, UTC).strftime("%d %B %Y %H:%M UTC")
    facts = [f"sweep {summary.sweep}", f"started {when}", about["status"].lower(), f"{counts['trials']} trials"]
    facts += [f"{counts[kind]} {kind}" for kind in ("infeasible", "failed") if counts[kind]]
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
    if out_of_view := plots.hidden(summary):
        yield (
            f"<p class=soft>{out_of_view} measured trials lie outside the charts' first view; "
            "double-click a chart to see all.</p>"
        )


def _cards(summary: Summary) -> Iterator[str]:
    if summary.front.empty:
        return
    yield "<div class=cards>"
    knee = summary.knee
    if knee is not None:
        yield _card(summary.metrics, "Knee: the best compromise", knee, summary.objectives, "knee")
    for name in summary.objectives:
        row = summary.front.sort_values(name, ascending=summary.metrics.minimized(name)).iloc[0]
        yield _card(summary.metrics, f"Best: {summary.metrics[name].phrase}", row, [name], "")
    yield "</div>"


def _card(metrics: Metrics, title: str, row: pd.Series, names: list[str], kind: str) -> str:
    figures = " · ".join(said(metrics, row, name) for name in names)
    return (
        f"<div class='card {kind}'><h3>{escape(title)}</h3><b>{escape(figures)}</b>{escape(row['words'])}"
        f"<div class=soft>against dense: {escape(than_dense(row))}</div></div>"
    )


def _chart_of(figure: go.Figure | None, hint: str, wide: bool = False) -> Iterator[str]:
    if figure is not None:
        yield _chart(figure, hint, wide)


def _chart(figure: go.Figure, hint: str, wide: bool = False) -> str:
    drawn = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"responsive": True, "displayModeBar": False},
        default_width="100%",
    )
    title = escape(figure.layout.title.text)
    inner = f"<div class=wide>{drawn}</div>" if wide else drawn
    return (
        f"<figure style='margin:24px 0' role=group aria-label='{title}'><div class=scroll>{inner}</div>"
        f"<figcaption class=soft>{escape(hint)}</figcaption></figure>"
    )


def _reference(summary: Summary) -> str:
    if not summary.recorded:
        return "Up to the worst value of each objective in this sweep: not comparable with other sweeps."
    point = zip(map(summary.metrics.__getitem__, summary.objectives), summary.about["reference"], strict=True)
    return "Reference point: " + ", ".join(f"{metric.phrase} {metric.text(value)}" for metric, value in point) + "."


def _confirmed(summary: Summary) -> Iterator[str]:
    metrics = summary.metrics
    rows = summary.confirmed.sort_values(summary.objectives[0], ascending=metrics.minimized(summary.objectives[0]))
    if rows.empty:
        return
    yield "<h2>Confirmed with fresh seeds</h2>"
    said_in_words = f"In the mean over {len(rows)} candidates: {shrunk(summary)}."
    left_out = f" {unconfirmed(summary)}".rstrip()
    yield f"<p>{escape(said_in_words)} The test split was read here for the first time.{escape(left_out)}</p>"
    yield "<div class=scroll><table><thead><tr><th scope=col>#</th><th scope=col>Recipe</th>"
    names = [name for name in (*metrics.test, *summary.objectives) if name in rows]
    for name in names:
        yield f"<th scope=col>{escape(_head_of(metrics, name))}</th>"
        yield "<th scope=col class=soft>in the search</th>" if f"search/{name}" in rows else ""
    yield "</tr></thead><tbody>"
    for _, row in rows.iterrows():
        kind = "front" if row["on_front"] else "off"
        yield f"<tr class={kind}><td>{row['number']}</td><td>{escape(row['words'])}</td>"
        for name in names:
            yield f"<td>{escape(said(metrics, row, name))}</td>"
            if f"search/{name}" in rows:
                yield f"<td class=soft>{metrics[name].text(row[f'search/{name}'])}</td>"
        yield "</tr>"
    yield "</tbody></table></div>"


def _published(summary: Summary) -> Iterator[str]:
    found = published.beside(summary)
    if found:
        yield "<h2>Beside published results</h2>"
    for each in found:
        yield _chart(papers.chart(summary, each), "Papers' figures as they report them, ours with 95 % intervals.")
        yield from published.table(summary, each)


def _trials(summary: Summary) -> Iterator[str]:
    metrics, trials = summary.metrics, summary.trials
    usual = ["latency_ms", "latency_ratio", "size_bytes", "size_ratio", "sparsity"]
    wanted = dict.fromkeys([*metrics.test, *metrics.quality, *usual, *summary.objectives])
    names = [name for name in wanted if name in trials and trials[name].notna().any()]
    heads = ["#", "Recipe", *(_head_of(metrics, name) for name in names)]
    yield "<h2>All trials</h2><p><label><input type=checkbox id=only> the front only</label></p>"
    yield "<div class=scroll><table id=trials><thead><tr>"
    yield "".join(f"<th scope=col><button>{escape(head)}</button></th>" for head in heads)
    yield "</tr></thead><tbody>"
    for rows in (summary.front, summary.trials[~summary.trials["on_front"]]):
        for _, row in rows.iterrows():
            yield _row(metrics, row, names)
    yield "</tbody></table></div>"


def _head_of(metrics: Metrics, name: str) -> str:
    short = {"size_bytes": "Size", "latency_ratio": "× faster", "size_ratio": "× smaller"}
    return short.get(name, metrics.short(name))


def _row(metrics: Metrics, row: pd.Series, names: list[str]) -> str:
    kinds = ["front" if row["on_front"] else "off", *(["knee"] if row["knee"] else [])]
    if row["state"] != "complete":
        kinds.append(row["state"])
    elif not row["feasible"]:
        kinds.append("infeasible")
    tags = [kind for kind in kinds if kind in ("knee", "failed", "running", "infeasible")]
    tags += ["not faster"] if row["not_faster"] else []
    tags += [row["reference"]] if row["reference"] else []
    marks = "".join(f"<span class=tag>{escape(tag)}</span>" for tag in tags)
    said = [row[name] for name in ("reason", "not_faster") if row[name]]
    reason = "".join(f"<br><span class=soft>{escape(each)}</span>" for each in said)
    cells = [_cell(metrics, row, name) for name in names]
    return (
        f"<tr class='{' '.join(kinds)}'><td data-value={row['number']}>{row['number']}</td>"
        f"<td>{escape(row['words'])}{marks}{reason}</td>{''.join(cells)}</tr>"
    )


def _cell(metrics: Metrics, row: pd.Series, name: str) -> str:
    value = row[name]
    if name in ("latency_ratio", "size_ratio"):
        return f"<td data-value={1 / value if value else ''}>{times(row, name)}</td>"
    ends = interval(row, name)
    title = f" title='{metrics[name].text(ends[0])} to {metrics[name].text(ends[1])}'" if ends else ""
    return f"<td data-value={value}{title}>{escape(said(metrics, row, name))}</td>"


def _environment(summary: Summary) -> Iterator[str]:
    yield "<h2>Measured where, made with what</h2><div class=scroll><table class=plain><tbody>"
    for name in map(str, summary.trials.filter(regex=r"^(environment\.|version\.|data_digest|git_commit)")):
        values = [str(value) for value in summary.trials[name].dropna().unique()]
        if len(values) <= 4:
            yield f"<tr><th scope=row>{escape(name)}</th><td>{escape(' | '.join(values))}</td></tr>"
    yield "</tbody></table></div>"
