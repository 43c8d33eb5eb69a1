"""Front against front: `python -m search.compare study=mnist_prune sweep=A sweep=B` says what moved beyond noise."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.table import Table

from search import terminal
from search.command import UsageError, command, needs_study, settings
from search.front import pareto
from search.front import summary as summaries
from search.front.summary import Summary, interval, said

HELP = """\
Compare the fronts of two sweeps of a study.

  python -m search.compare study=NAME [sweep=OLDER sweep=NEWER] [out=FILE.html|FILE.png] [root=mlruns]

  sweep  twice, the older first; the last two if left out
  out    a file for both fronts in one chart

A part of the front has moved only where the intervals say so: a point beats another when its interval lies wholly on
the better side in one objective and wholly on the worse side in none. Latencies are compared as ratios to each sweep's
own dense baseline. Ends with exit code 0, also when the newer is worse.
"""


@dataclass(frozen=True)
class Comparison:
    """Two fronts of one study, latencies as ratios to each sweep's own baseline.

    `gained`: rows of the newer that beat one of the older beyond noise and are beaten by none of it; `lost`: the same
    the other way round. `hypervolume`: (older, newer) to the older's reference point.
    """

    older: Summary
    newer: Summary
    gained: pd.DataFrame
    lost: pd.DataFrame
    hypervolume: tuple[float, float]

    @property
    def verdict(self) -> str:
        """In words."""
        if len(self.gained) and len(self.lost):
            return "better in one part of the front and worse in another, beyond noise"
        if len(self.gained):
            return "better beyond noise"
        return "worse beyond noise" if len(self.lost) else "no difference beyond noise"

    @property
    def title(self) -> str:
        """`smoke-002 against smoke-001: better beyond noise`."""
        return f"{self.newer.sweep} against {self.older.sweep}: {self.verdict}"


def compare(older: Summary, newer: Summary) -> Comparison:
    """Raises UsageError when the two have other objectives and so no common axes."""
    ways = [[f"{each.metrics[name].direction} {name}" for name in each.objectives] for each in (older, newer)]
    if ways[0] != ways[1]:
        said_of = (f"{each.sweep} searched to {', '.join(way)}" for each, way in zip((older, newer), ways, strict=True))
        raise UsageError(f"sweep: {'; '.join(said_of)}: compare sweeps of the same objectives")
    # Each sweep has its own baseline latency in ms, as fast as the machine then was; the ratio to it holds.
    axes = ["latency_ratio" if name == "latency_ms" else name for name in older.objectives]
    directions = older.metrics.directions(axes)
    fronts = [older.front, newer.front]
    ends = [_ends(rows, axes) for rows in fronts]
    both = [np.vstack([e[side] for e in ends]) for side in (0, 1)]
    better = pareto.beats(both[0], both[1], directions)
    cut = len(fronts[0])
    up, down = better[cut:, :cut], better[:cut, cut:]
    gained = np.flatnonzero(up.any(axis=1) & ~down.any(axis=0))
    lost = np.flatnonzero(down.any(axis=1) & ~up.any(axis=0))
    recorded = older.about["reference"] or _worst(fronts, axes, directions)
    reference = [1.1 if name == "latency_ratio" else value for name, value in zip(axes, recorded, strict=True)]
    volumes = [pareto.hypervolume(rows[axes].to_numpy(float), directions, reference) for rows in fronts]
    return Comparison(older, newer, fronts[1].iloc[gained], fronts[0].iloc[lost], (volumes[0], volumes[1]))


def _ends(rows: pd.DataFrame, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), each [n, m]; a metric without an interval is its own two ends."""
    pairs = [[interval(row, name) or (row[name], row[name]) for name in names] for _, row in rows.iterrows()]
    table = np.array(pairs, dtype=float).reshape(len(rows), len(names), 2)
    return table[:, :, 0], table[:, :, 1]


def _worst(fronts: Sequence[pd.DataFrame], names: Sequence[str], directions: Sequence[str]) -> list[float]:
    values = pd.concat([rows[list(names)] for rows in fronts])
    sides = zip(names, directions, strict=True)
    return [float(values[name].max() if d == "minimize" else values[name].min()) for name, d in sides]


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
