"""Front against front: `python -m search.compare study=mnist_prune sweep=A sweep=B` says what moved beyond noise."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from search import terminal
from search.command import UsageError, command, needs_study, settings
from search.front import summary as summaries
from search.front.comparison import Comparison, compare
from search.front.wording import said

HELP = """\
Compare the fronts of two sweeps of a study.

  python -m search.compare study=NAME [sweep=OLDER sweep=NEWER] [out=FILE.html|FILE.png] [root=mlruns]

  sweep  twice, the older first; the last two if left out
  out    a file for both fronts in one chart

A part of the front has moved only where the intervals say so: a point beats another when its interval lies wholly on
the better side in one objective and wholly on the worse side in none. Latencies are compared as ratios to each sweep's
own dense baseline. Ends with exit code 0, also when the newer is worse.
"""


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
    """One line for every point that moved beyond noise."""
    lines, metrics = [], found.older.metrics
    for rows, sweep, sign in ((found.gained, found.newer, "+"), (found.lost, found.older, "-")):
        for _, row in rows.iterrows():
            names = dict.fromkeys([*found.older.objectives, "latency_ratio"])
            figures = ", ".join(f"{metrics[n].phrase} {said(metrics, row, n)}" for n in names if n in row)
            lines.append(f"{sign} trial {row['number']} of {sweep.sweep}, {row['words']}: {figures}")
    return lines


def arguments(words: Sequence[str]) -> tuple[str, list[str], Path, Path | None]:
    """(study, sweeps, root, file for the chart); raises UsageError."""
    sweeps = [word.partition("=")[2] for word in words if word.startswith("sweep=")]
    asked = settings(words, {"study": "", "sweep": "", "out": "", "root": "mlruns"})
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
