"""Sweeps that recur: `python -m search.schedule run` starts them when they are due, while people sleep."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from rich.table import Table

from search import terminal
from search.command import RefusedError, UsageError, command, settings
from search.schedules import recurring
from search.schedules.history import History, Run, only_scheduler, scheduler_runs
from search.schedules.recurring import FOLDER, Schedule
from search.schedules.verdict import WORSE

HELP = """\
Sweeps that recur, and what they found: each front is compared with the last one's.

  python -m search.schedule run               start what is due, until SIGTERM or Ctrl-C; for a service manager
  python -m search.schedule list              the schedules, when each is due next and what it last came to
  python -m search.schedule next [NAME]       the next times; count=5 of them for each
  python -m search.schedule trigger NAME      run one now: by the scheduler that runs, or with --wait right here
  python -m search.schedule history [NAME]    the last runs; count=20 of them
  python -m search.schedule check             every mistake in the schedules, also in what they override

  root=mlruns                     the folder that holds the record, as for search.run; one scheduler runs on each
  schedules=experiments/schedule  the folder of schedules, one NAME.yaml for each:

    cron: 30 2 * * mon-fri        # minute, hour, day of month, month, day of week; or with seconds before them
    timezone: Europe/Berlin       # UTC if left out
    study: mnist_prune
    overrides: {study.confirm.seeds: 5}   # or a list of KEY=VALUE, as on the command line of search.run
    budget: {trials: 40, minutes: 90}     # in place of the study's
    executor: local               # also storage: and config_dir:, as for search.run
    fresh: true                   # each run a new sweep; false: the newest is resumed
    overlap: skip                 # or queue: what a run does that is due before this schedule's last has ended
    missed: run_once              # or skip: runs that were due while no scheduler ran, more than `grace` seconds ago
    grace: 300
    against: previous             # or a sweep's name: what the front is compared with
    webhook: {url_env: PARE_WEBHOOK, when: trouble, timeout: 10, retries: 3}   # or url:, and when: always
    enabled: true

Sweeps run one at a time; those of other schedules wait in line. Missed runs become one. After SIGTERM or kill -9 the
sweep resumes when the scheduler starts again, before anything else. Files are read at the start.

The intervals know the noise of training and measuring, not the luck of a search: fronts of few trials differ by it.
Give a sweep that is to sound an alarm a budget that finds its front every time.

trigger --wait ends with exit code 0, with 3 if a part of the front has become worse beyond noise, with 1 if the sweep
failed or did not run.
"""
COMMANDS = ("run", "list", "next", "trigger", "history", "check")
_PLACES = {"root": "mlruns", "schedules": str(FOLDER)}


def checked(folder: Path) -> dict[str, Schedule]:
    """Every schedule by name; raises UsageError with every mistake in them, also in what they set of their studies."""
    # Composing takes seconds to import: a mistake in the files themselves is answered before.
    schedules = recurring.read(folder)
    from search.run import EXPERIMENTS
    from search.study import compose
    from search.study.config import ConfigError

    problems = []
    for name, schedule in schedules.items():
        try:
            compose.composed([*schedule.words(), f"fresh={str(schedule.fresh).lower()}"], EXPERIMENTS)
        except ConfigError as error:
            problems += [f"{name}.yaml: {problem}" for problem in error.problems]
    if problems:
        raise UsageError("\n".join(problems))
    return schedules


def _reachable(schedules: dict[str, Schedule]) -> None:
    """Raise UsageError when a webhook's address is not there."""
    from search.schedules.webhook import address

    problems = []
    for name, schedule in schedules.items():
        try:
            if schedule.webhook:
                address(schedule.webhook)
        except ValueError as error:
            problems.append(f"{name}.yaml: {error}")
    if problems:
        raise UsageError("\n".join(problems))


def _say(text: str) -> None:
    print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}", flush=True)


def _run(root: Path, folder: Path) -> int:
    from search.schedules import scheduler

    signals = scheduler.Signals()
    # In a process of its own, which takes the memory that composing needs with it.
    words = [f"root={root}", f"schedules={folder}"]
    check = subprocess.run([sys.executable, "-m", "search.schedule", "check", *words], stdout=subprocess.DEVNULL)
    if check.returncode:
        return 0 if signals.count else check.returncode
    schedules = recurring.read(folder)
    _reachable({name: schedule for name, schedule in schedules.items() if schedule.enabled})
    with only_scheduler(root):
        _say(f"scheduler (process {os.getpid()}) runs on {root}; Ctrl-C or SIGTERM ends it")
        scheduler.serve(root, folder, schedules, signals, _say)
        _say("scheduler ended")
    return 0


def _named(schedules: dict[str, Schedule], name: str) -> str:
    if name and name not in schedules:
        near = get_close_matches(name, schedules, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        have = ", ".join(schedules) or "none yet"
        raise UsageError(f"{name}: no such schedule{hint}; there are: {have}")
    return name


def _trigger(root: Path, folder: Path, name: str, wait: bool) -> int:
    schedules = checked(folder)
    if not _named(schedules, name):
        raise UsageError(f"trigger: missing the schedule; write one of {', '.join(schedules) or 'none yet'}")
    if not scheduler_runs(root):
        if wait:
            with only_scheduler(root):
                return _here(root, folder, schedules, name)
        raise RefusedError(
            f"no scheduler runs on {root}: start one with `python -m search.schedule run`, or run {name} right here "
            f"with `python -m search.schedule trigger {name} --wait`"
        )
    history = History(root)
    run = _asked(history, name, schedules[name])
    print(f"{name}: run {run.id} is handed to the scheduler", flush=True)
    if not wait:
        return 0
    while (run := history.get(run.id)).outcome in ("waiting", "running"):
        if not scheduler_runs(root):
            raise RefusedError(f"{name}: the scheduler has ended; run {run.id} resumes when it starts again")
        time.sleep(0.5)
    return _told(root, run)


def _here(root: Path, folder: Path, schedules: dict[str, Schedule], name: str) -> int:
    """Without a daemon; what was interrupted is resumed instead of a new run."""
    from search.schedules import scheduler

    _reachable({name: schedules[name]})
    signals = scheduler.Signals()
    history = History(root)
    scheduler.take_up(history, schedules, _say)
    waiting = [run for run in history.of(name) if run.outcome == "waiting"]
    run = waiting[-1] if waiting else _asked(history, name, schedules[name])
    run = scheduler.carry_out(root, folder, run, signals, _say)
    return 0 if signals.count and run.under_way else _told(root, run)


def _asked(history: History, name: str, schedule: Schedule) -> Run:
    run = history.ask(name, schedule)
    if run.outcome == "skipped":
        raise RefusedError(f"{name}: run {run.id} is skipped ({run.note}); wait for it, or write overlap: queue")
    return run


def _told(root: Path, run: Run) -> int:
    """What a run came to, in words and as an exit code."""
    said = [f"run {run.id} {run.outcome}", *filter(None, [run.sweep, run.verdict, run.note])]
    if run.outcome == "interrupted":
        said.append("resumes when the scheduler starts again")
    print(f"{run.schedule}: {'; '.join(said)}", flush=True)
    if run.outcome != "finished":
        print(f"Its output is in {run.log(root)}", file=sys.stderr)
        return 1
    return WORSE if run.worse else 0


def _list(root: Path, folder: Path) -> int:
    schedules = checked(folder)
    made = Table()
    for head in ("Schedule", "When", "Next", "Sweep", "Last run"):
        made.add_column(head, overflow="fold")
    last: dict[str, Run] = {}
    if (root / "schedule.db").exists():
        for run in History(root).of():
            last.setdefault(run.schedule, run)
    for name, schedule in schedules.items():
        due = schedule.trigger.get_next_fire_time(None, datetime.now(UTC))
        following = _local(due.timestamp(), schedule) if due and schedule.enabled else "not enabled"
        ended = last.get(name)
        came = f"{ended.outcome}{f', {ended.verdict}' if ended.verdict else ''}" if ended else "–"
        made.add_row(name, schedule.when, following, " ".join(schedule.words()), came)
    _show(made, f"No schedules in {folder} yet; see python -m search.schedule --help")
    print("A scheduler runs." if scheduler_runs(root) else "No scheduler runs.")
    return 0


def _next(folder: Path, name: str, count: int) -> int:
    schedules = recurring.read(folder)
    _named(schedules, name)
    for own, schedule in schedules.items():
        if own == name or (not name and schedule.enabled):
            print(f"{own}: {schedule.when}")
            due: datetime | None = datetime.now(UTC)
            for _ in range(count):
                due = schedule.trigger.get_next_fire_time(None, due) if due else None
                if due is None:
                    break
                print(f"  {_local(due.timestamp(), schedule)}")
                due = datetime.fromtimestamp(due.timestamp() + 1, UTC)
    return 0


def _history(root: Path, name: str, count: int) -> int:
    made = Table()
    for head in ("Run", "Schedule", "Planned", "Started", "Took", "Outcome", "Sweep", "Front", "Webhook", "Note"):
        made.add_column(head, overflow="fold")
    runs = History(root).of(name or None, count) if (root / "schedule.db").exists() else []
    for run in runs:
        took = "–" if run.ended is None or run.started is None else f"{(run.ended - run.started) / 60:.1f} min"
        planned = "by hand" if run.planned is None else _stamp(run.planned)
        outcome = run.outcome + (f" ({run.exit_code})" if run.exit_code else "")
        cells = [run.sweep, run.verdict, run.webhook, run.note]
        rest = [cell or "–" for cell in cells]
        made.add_row(str(run.id), run.schedule, planned, _stamp(run.started), took, outcome, *rest)
    _show(made, f"No runs{f' of {name}' if name else ''} yet in {root}")
    return 0


def _show(made: Table, otherwise: str) -> None:
    console = terminal.console()
    console.print(made if made.row_count else otherwise, soft_wrap=not made.row_count, markup=False)


def _local(moment: float, schedule: Schedule) -> str:
    return f"{datetime.fromtimestamp(moment, schedule.trigger.zone):%a %Y-%m-%d %H:%M:%S %Z}"


def _stamp(moment: float | None) -> str:
    return "–" if moment is None else f"{datetime.fromtimestamp(moment):%Y-%m-%d %H:%M:%S}"


def arguments(words: Sequence[str]) -> tuple[str, str, bool, dict[str, str]]:
    """(command, schedule or "", --wait, settings); raises UsageError."""
    plain = [word for word in words if "=" not in word and word != "--wait"]
    if not plain or plain[0] not in COMMANDS:
        near = get_close_matches(plain[0], COMMANDS, 1) if plain else []
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UsageError(f"{plain[0] if plain else 'command'}: no such command{hint}; write {', '.join(COMMANDS)}")
    asked = plain[0]
    if len(plain) > 1 + (asked in ("next", "trigger", "history")):
        raise UsageError(f"{plain[-1]}: one word too many after {asked}")
    if "--wait" in words and asked != "trigger":
        raise UsageError(f"--wait: belongs to trigger, not to {asked}")
    counts = {"next": {"count": "5"}, "history": {"count": "20"}}.get(asked, {})
    found = settings([word for word in words if "=" in word], {**_PLACES, **counts})
    if counts and not (found["count"].isdecimal() and int(found["count"])):
        raise UsageError(f"count: {found['count']!r} is not valid; write a whole number from 1 on")
    return asked, (plain[1:] or [""])[0], "--wait" in words, found


def _carry_out(words: list[str]) -> int:
    asked, name, wait, found = arguments(words)
    root, folder = (Path(found[key]).expanduser().absolute() for key in ("root", "schedules"))
    if asked == "run":
        return _run(root, folder)
    if asked == "list":
        return _list(root, folder)
    if asked == "next":
        return _next(folder, name, int(found["count"]))
    if asked == "trigger":
        return _trigger(root, folder, name, wait)
    if asked == "history":
        return _history(root, name, int(found["count"]))
    print(f"{len(checked(folder))} schedules in {folder}, no mistakes")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0, 2 for a mistake in it, 1 for what cannot be done, 3 for a worse front."""
    return command("search.schedule", HELP, argv, _carry_out)


if __name__ == "__main__":
    sys.exit(main())
