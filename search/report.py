"""The front as a table, a picture and a page; printed again by `python -m search.report study=mnist_prune`."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from search import terminal
from search.command import UsageError, command, needs_study, settings
from search.compare import Comparison, compare
from search.front.summary import (
    Summary,
    nothing_feasible,
    read,
    said,
    shrunk,
    summarize,
    than_dense,
    times,
    unconfirmed,
)
from search.tracking.tracking import Tracking
from search.trial.record import STATUSES, Outcome

HELP = """\
The front of a study's sweep, from what was recorded.

  python -m search.report study=NAME [sweep=NAME] [format=table|csv|json|html|md] [rows=front|all] [out=FILE]
                          [root=mlruns]

  study   the study, as in experiments/study
  sweep   one of its sweeps; the newest if left out
  format  table: for the terminal; csv, json: figures for other programs; html: the whole page; md: a Markdown table.
          If left out, the ending of out= decides, else table
  rows    csv and json hold the front's trials, or all
  out     a file to write instead of printing
  root    the folder that holds the record
"""
FORMATS = ("table", "csv", "json", "html", "md")
_KEYS = {"study": "", "sweep": "", "format": "", "rows": "front", "out": "", "root": "mlruns"}
_WIDTH = 160  # columns when the output is no terminal


@dataclass(frozen=True)
class Files:
    """Where a sweep's picture and page lie."""

    picture: Path
    page: Path


def files(root: Path, sweep: str) -> Files:
    """Their places under `root`, whether or not they have been written."""
    folder = root / "reports" / sweep
    return Files(folder / "front.png", folder / "report.html")


def write(root: Path, summary: Summary) -> Files:
    """Draw the sweep's picture and page."""
    # matplotlib and plotly take seconds to import: the table alone does not wait for them.
    from search.front import page, picture

    made = files(root, summary.sweep)
    made.page.parent.mkdir(parents=True, exist_ok=True)
    picture.draw(summary, made.picture)
    made.page.write_text(page.page(summary), encoding="utf-8")
    return made


def finish(root: Path, tracking: Tracking, sweep: str, status: str) -> Summary:
    """End the sweep: mark its front, draw picture and page, record both with figures and note.

    `status`: finished, interrupted or failed. Called again after a resume it brings everything up to date.
    """
    if status not in STATUSES:
        raise ValueError(f"status: {status!r} is not valid; choose from {', '.join(STATUSES)}")
    summary = summarize(tracking, sweep)
    summary = replace(summary, about={**summary.about, "status": status})
    tracking.mark_front(sweep, summary.front["number"], len(summary.trials))
    made = write(root, summary)
    previous = _beside(tracking, summary, -1)
    pictures = [made.picture, *(_overlaid(root, previous) if previous else ())]
    if previous:
        tracking.tag_sweep(sweep, {"pare.compared_with": previous.older.sweep, "pare.verdict": previous.verdict})
    metrics = _beside_first(tracking, summary) | _metrics(summary)
    verdict = [f"**{previous.title}**"] if previous else []
    small = [_smaller(path) for path in pictures if path.suffix == ".png"]
    note = "\n\n".join([markdown(summary), *verdict, *_images(summary, small)])
    tables = figures(summary), summary.hypervolume
    tracking.finish_sweep(sweep, Outcome(status, *tables, metrics, [*pictures, *small, made.page], note))
    return summary


def _beside(tracking: Tracking, summary: Summary, which: int) -> Comparison | None:
    """The sweep beside an earlier one, 0 the first and -1 the previous; None where there is no such pair of fronts."""
    names = tracking.sweeps()
    earlier = names[: names.index(summary.sweep)]
    if not earlier:
        return None
    before = summarize(tracking, earlier[which])
    if before.objectives != summary.objectives or before.front.empty or summary.front.empty:
        return None
    return compare(before, summary)


def _overlaid(root: Path, found: Comparison) -> list[Path]:
    from search.front import overlay

    made = [files(root, found.newer.sweep).page.with_name(f"compare.{suffix}") for suffix in ("png", "html")]
    for path in made:
        overlay.write(found, path)
    return made


def _beside_first(tracking: Tracking, summary: Summary) -> dict[str, float]:
    """`front/hypervolume_vs_first`: the one figure that compares all sweeps of a study, 1 for the first of them."""
    if tracking.sweeps()[0] == summary.sweep:
        return {"front/hypervolume_vs_first": 1.0}
    found = _beside(tracking, summary, 0)
    if found is None or found.hypervolume[0] == 0:
        return {}
    return {"front/hypervolume_vs_first": found.hypervolume[1] / found.hypervolume[0]}


def _smaller(picture: Path) -> Path:
    """The picture as wide as MLflow's pages: they show images at full size, whatever their Markdown says."""
    from PIL import Image

    made = picture.with_stem(f"{picture.stem}_small")
    with Image.open(picture) as image:
        image.thumbnail((980, 980))
        image.save(made)
    return made


def _images(summary: Summary, pictures: Sequence[Path]) -> list[str]:
    """As Markdown: MLflow's pages show an image from an address relative to the server's, and no data: URI."""
    run_id = summary.about["run_id"]
    return [f"![{path.stem}](get-artifact?path={path.name}&run_uuid={run_id})" for path in pictures]


def say(root: Path, study: str, sweep: str | None = None, console: Console | None = None) -> None:
    """Print the front, where picture and page lie, and the command for the UI; draw them if they are missing."""
    summary = read(root, study, sweep)
    made = files(root, summary.sweep)
    if not (made.picture.exists() and made.page.exists()):
        made = write(root, summary)
    console = console or terminal.console()
    console.print(table(summary))
    for line in _below(summary):
        console.print(line, soft_wrap=True)
    console.print(f"Picture  {made.picture}\nReport   {made.page}\nMLflow   python -m search.ui", soft_wrap=True)


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


def _below(summary: Summary) -> list[str]:
    counts, lines = summary.counts(), []
    if summary.knee is not None:
        lines.append(f"◆ the knee, the best compromise; against the dense model: {than_dense(summary.knee)}.")
        lines.append("Accuracy is on the validation split, which the search has seen.")
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
    return "\n".join([*lines, "", *_below(summary)])


def _metrics(summary: Summary) -> dict[str, float]:
    """Single figures of the sweep, for MLflow's compare page."""
    said_of = {f"trials/{kind}": float(count) for kind, count in summary.counts().items()}
    for name in summary.objectives:
        column = summary.front[name]
        if len(column):
            best = column.min() if summary.metrics.minimized(name) else column.max()
            said_of[f"front/best_{name}"] = float(best)
            said_of[f"knee/{name}"] = float(summary.trials.loc[summary.trials["knee"], name].iloc[0])
    return said_of


def arguments(argv: Sequence[str]) -> dict[str, str]:
    """`key=value` words -> the settings; raises UsageError."""
    asked = settings(argv, _KEYS)
    needs_study(asked)
    asked["format"] = asked["format"] or (Path(asked["out"]).suffix.removeprefix(".") if asked["out"] else "table")
    for key, valid in (("format", FORMATS), ("rows", ("front", "all"))):
        if asked[key] not in valid:
            raise UsageError(f"{key}: {asked[key]!r} is not valid; choose from {', '.join(valid)}")
    return asked


def rendered(summary: Summary, form: str, rows: str) -> str:
    """The sweep in the asked format, as text."""
    if form == "csv":
        return figures(summary, rows).to_csv(index=False)
    if form == "json":
        return str(figures(summary, rows).to_json(orient="records", indent=2, force_ascii=False)) + "\n"
    if form == "html":
        from search.front import page

        return page.page(summary)
    if form == "md":
        return markdown(summary, most=len(summary.front)) + "\n"
    text = io.StringIO()
    Console(width=_WIDTH, highlight=False, file=text).print(table(summary), *_below(summary), sep="\n")
    return text.getvalue()


def _carry_out(words: list[str]) -> int:
    asked = arguments(words)
    root = Path(asked["root"])
    if asked["format"] == "table" and not asked["out"]:
        say(root, asked["study"], asked["sweep"] or None)
        return 0
    text = rendered(read(root, asked["study"], asked["sweep"] or None), asked["format"], asked["rows"])
    if asked["out"]:
        Path(asked["out"]).write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0, 2 for a mistake in it, 1 for a record that cannot be read or a file not written."""
    return command("search.report", HELP, argv, _carry_out)


if __name__ == "__main__":
    sys.exit(main())
