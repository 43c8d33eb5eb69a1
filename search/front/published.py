"""What papers report, beside the confirmed front: their figures on the test split against ours on the test split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape

import numpy as np
import pandas as pd

from search.front import html
from search.front.summary import Summary
from search.front.wording import said

_KEY = "published."
_RATIO, _BYTES = "float32_ratio", "download_bytes"


@dataclass(frozen=True)
class Beside:
    """A chart of papers' points and ours. `x`, `y`: metric names, `y` of the test split once the front is confirmed.

    `papers`: name -> (x, y); `ours`: rows of the sweep; `beaten`: the papers that one of `ours` is at least as good as
    in both. `denominator`: bytes that ratios of papers are of, where that is known.
    """

    x: str
    y: str
    papers: dict[str, tuple[float, float]]
    ours: pd.DataFrame
    beaten: list[str] = field(default_factory=list)
    denominator: int | None = None


def papers(settings: dict[str, str]) -> dict[str, dict[str, float]]:
    """Name -> figures of every paper in a sweep's recorded settings, which are flat."""
    found: dict[str, dict[str, float]] = {}
    for key, value in settings.items():
        if key.startswith(_KEY) and value != "{}":
            paper, _, name = key.removeprefix(_KEY).rpartition(".")
            found.setdefault(paper, {})[name] = float(value)
    return found


def beside(summary: Summary) -> list[Beside]:
    """One for each pair of objectives in which the study names papers and has measured something."""
    known, measured = papers(summary.about["settings"]), summary.complete
    if not known or measured.empty:
        return []
    whole = denominator(measured)
    if whole is not None:
        known = {
            paper: figures | ({_BYTES: whole / figures[_RATIO]} if _RATIO in figures and _BYTES not in figures else {})
            for paper, figures in known.items()
        }
    made = (_pair(summary, known, x, y, whole) for x, y in summary.pairs)
    return [each for each in made if each is not None]


def _pair(summary: Summary, known: dict[str, dict[str, float]], x: str, y: str, whole: int | None) -> Beside | None:
    drawn = {paper: (figures[x], figures[y]) for paper, figures in known.items() if {x, y} <= set(figures)}
    rows = summary.confirmed if len(summary.confirmed) else summary.front
    tested = f"test_{y}" if f"test_{y}" in rows and len(summary.confirmed) else y
    rows = rows.dropna(subset=[name for name in (x, tested) if name in rows])
    if not drawn or rows.empty:
        return None
    sign = np.array([1 if summary.metrics.minimized(name) else -1 for name in (x, y)])
    own = rows[[x, tested]].to_numpy(dtype=float) * sign
    beaten = [p for p, values in drawn.items() if bool((own <= np.array(values) * sign).all(axis=1).any())]
    return Beside(x, tested, drawn, rows, beaten, whole)


def denominator(rows: pd.DataFrame) -> int | None:
    """Bytes of the dense model's float32 weights and biases, which `float32_ratio` is of; None for several models."""
    if not {_RATIO, _BYTES} <= set(rows):
        return None
    # Of single files: the mean of ratios over fresh trainings is not the ratio of the mean.
    single = [rows.get(f"search/{name}", rows[name]).fillna(rows[name]) for name in (_RATIO, _BYTES)]
    found = (single[0] * single[1]).dropna().round().unique()
    return int(found[0]) if len(found) == 1 else None


def sentence(summary: Summary, found: Beside) -> str:
    """Which papers one of ours is at least as good as in both figures, and which not."""
    metrics = summary.metrics
    both = f"in {metrics[found.y].phrase} and {metrics[found.x].phrase} at once"
    left = [paper for paper in found.papers if paper not in found.beaten]
    parts = [f"at least as good as {', '.join(found.beaten)}"] * bool(found.beaten)
    parts += [f"not as good as {', '.join(left)}"] * bool(left)
    if not found.y.startswith("test_"):
        parts.append("papers' figures are of the test split, ours are not confirmed on it yet")
    text = f"{both}: {'; '.join(parts)}."
    return text[:1].upper() + text[1:]


def rows_of(summary: Summary, found: Beside) -> Iterator[tuple[str, bool, str, str, str]]:
    """(what, whether it is ours, y, x, times smaller than the denominator), the best in y first."""
    metrics, whole = summary.metrics, found.denominator
    points: list[tuple[str, bool, float, float, str]] = []
    for name, (x, y) in found.papers.items():
        points.append((name, False, x, y, metrics[found.y].text(y)))
    for _, row in found.ours.iterrows():
        x, y = (float(row[name]) for name in (found.x, found.y))
        points.append((f"trial {row['number']}: {row['words']}", True, x, y, said(metrics, row, found.y)))
    down = metrics.minimized(found.y.removeprefix("test_"))
    for name, ours, x, _, text in sorted(points, key=lambda point: point[3], reverse=not down):
        ratio = f"{whole / x:,.0f}×" if whole and found.x == _BYTES else ""
        yield name, ours, text, metrics[found.x].text(x), ratio


def table(summary: Summary, found: Beside) -> Iterator[str]:
    """The same as HTML: in words, then every point."""
    heads = ["Of", summary.metrics[found.y].title, summary.metrics[found.x].title]
    if found.denominator and found.x == _BYTES:
        heads.append(f"× smaller than {found.denominator:,} bytes, the dense model's float32 weights and biases")
    head = "".join(f"<th scope=col>{escape(head)}</th>" for head in heads)
    rows = []
    for name, ours, *cells in rows_of(summary, found):
        drawn = "".join(f"<td>{escape(cell)}</td>" for cell in cells[: len(heads) - 1])
        rows.append(f"<tr class={'front' if ours else 'off'}><td>{escape(name)}</td>{drawn}</tr>")
    yield f"<p>{escape(sentence(summary, found))}</p>"
    yield html.table(f"<thead><tr>{head}</tr></thead>", "".join(rows), "Beside published results", "class=plain")
