"""What a scheduled sweep came to: its front against the last one's, marked in the record, told to the webhook.

The scheduler starts it after every sweep, in a process of its own: reading the record takes memory and time.
"""

from __future__ import annotations

import math
import socket
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from search.command import RefusedError, UsageError, command, settings
from search.schedules.history import History, Run
from search.schedules.recurring import FOLDER, Schedule, one
from search.tracking.uri import TrackingError, store_uri

if TYPE_CHECKING:
    import pandas as pd

    from search.front.comparison import Comparison
    from search.front.summary import Summary

HELP = """\
Compare the sweep of a scheduled run with the last one, mark it in the record, tell the schedule's webhook.

  python -m search.schedules.verdict run=NUMBER [root=mlruns] [schedules=experiments/schedule]

  run  as `python -m search.schedule history` shows it

The scheduler does this after every sweep; doing it again overwrites what was found and posts again.
Ends with exit code 0, or 3 when a part of the front has become worse beyond noise.
"""
WORSE = 3
FIRST = "nothing to compare with yet"


def judge(root: Path, history: History, run: Run, against: str) -> tuple[str, bool, Summary | None, Comparison | None]:
    """(verdict, whether worse, the sweep, the comparison if there was one) of a run whose sweep has ended."""
    from search.front import comparison, summary

    assert run.sweep is not None
    study = run.sweep.rpartition("-")[0]
    newer = summary.read(root, study, run.sweep)
    before = against if against != "previous" else _before(root, history, run, study)
    if before is None:
        return FIRST, False, newer, None
    try:
        found = comparison.compare(summary.read(root, study, before), newer)
    except (UsageError, TrackingError) as error:
        return f"not compared: {error}", False, newer, None
    return found.verdict, found.moved[1], newer, found


def _before(root: Path, history: History, run: Run, study: str) -> str | None:
    """The last sweep that this schedule finished, or else the one before this in the study."""
    from search.front import summary

    assert run.sweep is not None
    recorded = summary.existing(root, study).sweeps()
    own = [r.sweep for r in history.of(run.schedule) if r.outcome == "finished" and r.id < run.id]
    older = recorded[: recorded.index(run.sweep)] if run.sweep in recorded else recorded
    return next((s for s in own if s in recorded and s != run.sweep), older[-1] if older else None)


def body(root: Path, run: Run, found: Comparison | None, sweep: Summary | None) -> dict[str, Any]:
    """The webhook's JSON: plain values, times in ISO 8601, metrics in base units."""
    uri = urlsplit(store_uri(root))
    said: dict[str, Any] = {
        "schedule": run.schedule,
        "run": run.id,
        "study": run.sweep.rpartition("-")[0] if run.sweep else None,
        "sweep": run.sweep,
        "outcome": "failed" if run.exit_code else "finished",
        "exit_code": run.exit_code,
        "note": run.note,
        "verdict": run.verdict,
        "worse": bool(run.worse),
        "planned": _iso(run.planned),
        "started": _iso(run.started),
        "ended": _iso(run.ended),
        "host": socket.gethostname(),
        "log": str(run.log(root)),
        "record": uri._replace(netloc=uri.netloc.rpartition("@")[2]).geturl(),
    }
    if sweep is not None:
        said["mlflow_run"] = sweep.about["run_id"]
        said["report"] = str(root / "reports" / sweep.sweep / "report.html")
        said["knee"] = None if sweep.knee is None else _point(sweep.knee, sweep)
        said["front"] = len(sweep.front)
    if found is not None:
        said["compared_with"] = found.older.sweep
        said["hypervolume"] = dict(zip(("older", "newer"), map(_plain, found.hypervolume), strict=True))
        for name, rows in (("gained", found.gained), ("lost", found.lost)):
            said[name] = [_point(row, found.older) for _, row in rows.iterrows()]
    return said


def _point(row: pd.Series, sweep: Summary) -> dict[str, Any]:
    names = dict.fromkeys([*sweep.objectives, "latency_ratio", "size_ratio", *sweep.metrics.test])
    figures = {name: _plain(row[name]) for name in names if name in row}
    return {"trial": int(row["number"]), "recipe": str(row["words"]), **figures}


def _plain(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def settle(root: Path, history: History, run: Run, schedule: Schedule | None) -> Run:
    """Compare, mark and tell; the run's row says what was found. `schedule`: None when its file has gone."""
    sweep, found = None, None
    if run.exit_code == 0 and run.sweep:
        from search.front import summary

        about = summary.existing(root, run.sweep.rpartition("-")[0]).about(run.sweep)
        if about["status"] != "FINISHED":
            note = "stopped from outside; resumes when the scheduler starts again"
            return history.update(run.id, outcome="interrupted", attempts=0, note=note)
        verdict, worse, sweep, found = judge(root, history, run, schedule.against if schedule else "previous")
        run = history.update(run.id, verdict=verdict, worse=int(worse))
        _mark(root, run, found)
    hook = schedule.webhook if schedule else None
    if hook and (hook.when == "always" or run.worse or run.exit_code):
        from search.schedules.webhook import post

        run = history.update(run.id, webhook=post(hook, body(root, run, found, sweep)))
    return run


def _mark(root: Path, run: Run, found: Comparison | None) -> None:
    from search.tracking.tracking import Tracking

    assert run.sweep is not None
    tags = {"pare.schedule": run.schedule, "pare.verdict": str(run.verdict), "pare.worse": str(bool(run.worse)).lower()}
    if found is not None:
        tags["pare.compared_with"] = found.older.sweep
    Tracking(root, run.sweep.rpartition("-")[0]).tag_sweep(run.sweep, tags)


def _carry_out(words: list[str]) -> int:
    asked = settings(words, {"run": "", "root": "mlruns", "schedules": str(FOLDER)})
    if not asked["run"].isdecimal():
        raise UsageError(f"run: {asked['run']!r} is not a run's number; see python -m search.schedule history")
    root = Path(asked["root"]).expanduser().absolute()
    history = History(root)
    run = history.get(int(asked["run"]))
    if run.exit_code is None:
        raise RefusedError(f"run: {run.id} is {run.outcome}, not finished; nothing to compare")
    try:
        schedule = one(Path(asked["schedules"]), run.schedule)
    except UsageError as error:  # while it is edited: the comparison is made anyway
        schedule = None
        history.update(run.id, webhook=f"not sent: {error}")
    run = settle(root, history, run, schedule)
    print(f"{run.schedule}: run {run.id}: {'; '.join(filter(None, [run.verdict, run.note, run.webhook]))}")
    return WORSE if run.worse else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0, 3 for a worse front, 2 for a mistake in it, 1 for a record that cannot be read."""
    return command("search.schedules.verdict", HELP, argv, _carry_out)


if __name__ == "__main__":
    sys.exit(main())
