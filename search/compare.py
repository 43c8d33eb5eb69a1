"""Front against front: `python -m search.compare study=mnist_prune sweep=A sweep=B` says what moved beyond noise."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.table import Table

from search import terminal
from search.command import ROOT, STUDY, SWEEP, Setting, Usage, UsageError, command, needs_study
from search.front import summary as summaries
from search.front.comparison import Comparison, compare
from search.front.summary import Summary
from search.front.wording import said

HELP = Usage(
    "search.compare",
    "Compare the fronts of two sweeps of a study: what moved beyond noise, and beyond the luck of a search.",
    "study=NAME [sweep=OLDER sweep=NEWER] [SETTING=VALUE ...]",
    {
        "Settings": (
            STUDY,
            replace(SWEEP, about="twice, the older first; the last two if left out"),
            Setting("out", "a file for both fronts in one chart", "", "FILE.html|FILE.png"),
            ROOT,
        )
    },
    (
        ("study=mnist_prune", "the last two sweeps"),
        ("study=mnist_prune sweep=mnist_prune-001 sweep=mnist_prune-003 out=both.html", "two of them, in a chart too"),
    ),
    (
        "A sweep is better or worse where a recipe that both tried has surely other figures, its interval all on one "
        "side, or where the volume that the front dominates differs by more than two unchanged searches do. Latencies "
        "are compared as ratios to each sweep's own dense model. Sweeps that are not confirmed cannot be compared.",
        "Ends with exit code 0, also when the newer is worse.",
    ),
)


def table(found: Comparison) -> Table:
    """Both fronts' figures side by side."""
    made = Table(title=f"{found.older.study}: {found.verdict}", title_justify="left", title_style="bold")
    made.add_column("")
    for each in (found.older, found.newer):
        made.add_column(each.sweep, justify="right")
    rows = [("hypervolume", [f"{v:.6g}" for v in found.hypervolume])]
    fronts = [found.older.front, found.newer.front]
    rows.append(("points on the front", [str(len(rows)) for rows in fronts]))
    metrics = found.older.metrics
    for name in found.older.objectives:
        order = [rows.sort_values(name, ascending=metrics.minimized(name)) for rows in fronts]
        best = [said(metrics, rows.iloc[0], name) if len(rows) else "–" for rows in order]
        rows.append((f"best {metrics[name].phrase}", best))
    knees = [each.knee for each in (found.older, found.newer)]
    rows.append(("knee", ["–" if knee is None else str(knee["words"]) for knee in knees]))
    for title, cells in rows:
        made.add_row(title, *cells)
    return made


def moved(found: Comparison) -> list[str]:
    """One line for every recipe and every point that moved, what that means, and what differs in the settings."""
    lines = []
    if not found.doubt:
        lines += _listed(found, found.better, found.newer, "+", "same recipe, better")
        lines += _listed(found, found.worse, found.newer, "-", "same recipe, worse")
        lines += _listed(found, found.gained, found.newer, "+", "beats a point of the older front")
        lines += _listed(found, found.lost, found.older, "-", "beats a point of the newer front")
    if found.luck is not None:
        most = float(f"{found.luck:.2g}")
        lines.append(f"Unchanged searches of so many trials differ in hypervolume by up to {most:,.6g}.")
        if len(found.gained) + len(found.lost) and not any(found.moved):
            lines.append("So the points above may be luck: each search finds others.")
    return lines + [f"Setting differs: {each}" for each in found.settings]


def _listed(found: Comparison, rows: pd.DataFrame, sweep: Summary, sign: str, why: str) -> list[str]:
    names, metrics = dict.fromkeys([*found.older.objectives, "latency_ratio"]), found.older.metrics
    lines = []
    for _, row in rows.iterrows():
        figures = ", ".join(f"{metrics[n].phrase} {said(metrics, row, n)}" for n in names if n in row)
        lines.append(f"{sign} trial {row['number']} of {sweep.sweep}, {row['words']}: {figures} ({why})")
    return lines


def arguments(words: Sequence[str]) -> tuple[str, list[str], Path, Path | None]:
    """(study, sweeps, root, file for the chart); raises UsageError."""
    sweeps = [word.partition("=")[2] for word in words if word.startswith("sweep=")]
    asked = HELP.read(words)
    needs_study(asked)
    if len(sweeps) not in (0, 2):
        raise UsageError(f"sweep: {len(sweeps)} given; name two, the older first, or none for the last two")
    out = Path(asked["out"]) if asked["out"] else None
    if out is not None and out.suffix not in (".html", ".png"):
        raise UsageError(f"out: {out.name!r} must end in .html or .png")
    return asked["study"], sweeps, Path(asked["root"]), out


def _carry_out(words: list[str]) -> int:
    study, sweeps, root, out = arguments(words)
    if not sweeps:
        sweeps = summaries.existing(root, study).sweeps()[-2:]
        if len(sweeps) < 2:
            raise UsageError(f"study: {study} has one sweep; make another with fresh=true")
    found = compare(*(summaries.read(root, study, sweep) for sweep in sweeps))
    console = terminal.console()
    console.print(table(found))
    for line in moved(found):
        console.print(line, soft_wrap=True, markup=False)
    if out is not None:
        # matplotlib and plotly take seconds to import: the table alone does not wait for them.
        from search.front import overlay

        overlay.write(found, out)
        console.print(f"Chart    {out}", soft_wrap=True, markup=False)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0, 2 for a mistake in it, 1 for a record that cannot be read."""
    return command("search.compare", HELP, argv, _carry_out)


if __name__ == "__main__":
    sys.exit(main())
