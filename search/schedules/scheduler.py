"""The scheduler: APScheduler says what is due, one sweep after the other runs as a process of its own.

One at a time, because a sweep uses every core and measures latencies. The process is single-threaded and keeps
nothing in memory that matters: killed at any moment, its next start continues from the table of runs and the job store.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from apscheduler.executors.base import BaseExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.base import BaseScheduler

from search.schedules.history import History, Run
from search.schedules.recurring import Schedule
from search.schedules.verdict import WORSE
from search.signals import FOLLOW

KILLED_AT_MOST = 5  # times that a sweep takes its scheduler down with it before it is given up
_Say = Callable[[str], None]


def placeholder() -> None:
    """What a job calls: nothing, since its executor writes the run down. APScheduler stores a function's name."""


class _Plan(BaseExecutor):
    """Hands what is due, all its times at once, to `due`, before the job store moves the job on."""

    def __init__(self, due: Callable[[str, list[float]], None]):
        super().__init__()
        self._due = due

    def _do_submit_job(self, job: Any, run_times: list[datetime]) -> None:
        try:
            self._due(job.id, [moment.timestamp() for moment in run_times])
        except BaseException:
            # APScheduler would log it and move the job on, and the run would be forgotten: rather end as if killed.
            traceback.print_exc()
            os._exit(1)
        self._run_job_success(job.id, [])


class Clock(BaseScheduler):
    """APScheduler on a persistent job store, without a thread of its own: `tick` hands over what is due.

    The jobs' next times survive a restart, so what was missed is due then. A changed cron expression takes effect.
    """

    def __init__(self, root: Path, due: Callable[[str, list[float]], None]):
        store = SQLAlchemyJobStore(
            f"sqlite:///{root / 'schedule.db'}", engine_options={"connect_args": {"timeout": 30}}
        )
        super().__init__(jobstores={"default": store}, executors={"default": _Plan(due)}, timezone=UTC)
        self._next = 0.0

    def wakeup(self) -> None:
        """What is stored has changed; called by APScheduler."""
        self._next = 0.0

    def shutdown(self, wait: bool = True) -> None:
        """Required by APScheduler, unused here."""
        super().shutdown(wait)

    def follow(self, schedules: Mapping[str, Schedule], say: _Say) -> None:
        """Start on the jobs that these schedules need: those that are as they were keep their next time."""
        self.start(paused=True)
        wanted = {name: schedule for name, schedule in schedules.items() if schedule.enabled}
        for job in self.get_jobs():
            if job.id not in wanted:
                say(f"{job.id}: no longer scheduled")
                job.remove()
        for name, schedule in wanted.items():
            job = self.get_job(name)
            if job is not None and job.name == schedule.when:
                continue
            # Lateness and coalescing are decided where the history is kept, so APScheduler must drop nothing.
            rules = {"misfire_grace_time": None, "coalesce": False, "max_instances": 1, "replace_existing": True}
            self.add_job(placeholder, schedule.trigger, id=name, name=schedule.when, **rules)
        for job in self.get_jobs():
            say(f"{job.id}: {job.name}, next {job.next_run_time.astimezone(job.trigger.zone):%Y-%m-%d %H:%M:%S %Z}")
        self.resume()

    def tick(self) -> None:
        """Hand over what is due now. Looks at the wall clock, which moves on while a machine sleeps."""
        if time.time() >= self._next:
            wait = self._process_jobs()
            self._next = float("inf") if wait is None else time.time() + wait


class Signals:
    """SIGTERM and Ctrl-C, counted: the first asks to stop, further ones press."""

    def __init__(self) -> None:
        self.count = 0
        self._came = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._came.set()

    def wait(self, seconds: float) -> None:
        """Sleep, but for a signal."""
        self._came.wait(seconds)
        self._came.clear()


class Runner:
    """Starts runs that wait, one after the other, and settles what they came to."""

    def __init__(self, root: Path, folder: Path, history: History, say: _Say):
        self._root, self._folder, self._history, self._say = root, folder, history, say
        self._run: Run | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._judging = False
        self._pressed = 0

    @property
    def idle(self) -> bool:
        """Whether no process of a run is there."""
        return self._process is None

    def step(self, pressed: int, only: int | None = None) -> None:
        """Do what can be done now. `pressed`: how often it was asked to stop; `only`: start this run and no other."""
        if self._process is None or self._run is None:
            waiting = None if pressed else self._history.get(only) if only else self._history.next()
            if waiting is not None and waiting.outcome == "waiting" and not _alive(waiting):
                self._start(waiting)
        elif (code := self._process.poll()) is not None:
            self._ended(self._run, code)
        elif pressed > self._pressed:
            self._press(pressed)

    def _start(self, run: Run) -> None:
        log = run.log(self._root)
        log.parent.mkdir(parents=True, exist_ok=True)
        sweep = run.sweep or sweep_of(log)
        words = [*run.command, f"root={self._root}"]
        words += [f"sweep={sweep}"] if sweep else ["fresh=true"] if run.fresh else []
        with log.open("ab") as output:
            process = self._spawn(["search.run", *words], output)
        born = None
        with contextlib.suppress(psutil.NoSuchProcess):
            born = psutil.Process(process.pid).create_time()
        self._run = self._history.update(
            run.id,
            outcome="running",
            started=run.started or time.time(),
            sweep=sweep,
            pid=process.pid,
            born=born,
            attempts=run.attempts + 1,
        )
        self._process, self._judging, self._pressed = process, False, 0
        what = f"resumes {sweep}" if sweep else f"starts a sweep of {' '.join(run.command)}"
        self._say(f"{run.schedule}: run {run.id} {what}; its output is in {log}")

    def _spawn(self, module: list[str], output: Any) -> subprocess.Popen[bytes]:
        # In a session of its own: Ctrl-C in a terminal reaches the scheduler alone, which passes it on in its way.
        return subprocess.Popen(
            [sys.executable, "-m", *module],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, FOLLOW: str(os.getpid())},
            start_new_session=True,
        )

    def _press(self, pressed: int) -> None:
        assert self._process is not None
        assert self._run is not None
        if not self._judging or pressed > 1:
            self._say(f"{self._run.schedule}: run {self._run.id} is told to stop")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL) if pressed > 2 else self._process.terminate()
        self._pressed = pressed

    def _ended(self, run: Run, code: int) -> None:
        self._process = None
        if self._judging:
            self._settle(self._history.get(run.id), code)
            return
        log = run.log(self._root)
        changes = {"sweep": sweep_of(log), "exit_code": code, "ended": time.time(), "pid": None, "born": None}
        if self._pressed or code in (-signal.SIGTERM, 130):
            self._history.update(run.id, **changes, outcome="interrupted", attempts=0)
            self._say(f"{run.schedule}: run {run.id} is interrupted; it resumes when the scheduler starts again")
            return
        changes["note"] = ", ".join(filter(None, [run.note, _why(code, log)]))
        self._run = self._history.update(run.id, **changes)
        with log.open("ab") as output:
            words = [f"run={run.id}", f"root={self._root}", f"schedules={self._folder}"]
            self._process = self._spawn(["search.schedules.verdict", *words], output)
        self._judging = True

    def _settle(self, run: Run, code: int) -> None:
        """After the verdict: it has written what it found into the run's row."""
        changes: dict[str, Any] = {}
        if code not in (0, WORSE):
            changes["verdict"] = f"not compared: {_why(code, run.log(self._root))}"
        if run.outcome == "running":
            changes["outcome"] = "failed" if run.exit_code else "finished"
        run = self._history.update(run.id, **changes) if changes else run
        said = [
            run.outcome,
            *filter(None, [run.sweep, run.verdict, run.note, run.webhook and f"webhook {run.webhook}"]),
        ]
        self._say(f"{run.schedule}: run {run.id} {'; '.join(said)}")


def sweep_of(log: Path) -> str | None:
    """The sweep that the log's run opened, as its first line names it: `mnist_prune-004: 0 of 32 trials done; ...`."""
    with contextlib.suppress(FileNotFoundError):
        found = re.search(r"^([A-Za-z0-9_-]+-\d{3,}): (?:its )?\d+ ", log.read_text(errors="replace"), re.MULTILINE)
        return found[1] if found else None
    return None


def _why(code: int, log: Path) -> str:
    """Why a process failed: the last line of its log that says `error:`, or else its last."""
    if code <= 0:
        return f"killed by {signal.Signals(-code).name}" if code else ""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["it said nothing"]
    return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), lines[-1])


def _alive(run: Run) -> bool:
    """Whether the run's process of before still ends: that of a killed scheduler notices within a second."""
    try:
        return run.pid is not None and psutil.Process(run.pid).create_time() == run.born
    except psutil.NoSuchProcess:
        return False


def take_up(history: History, schedules: Mapping[str, Schedule], say: _Say) -> None:
    """What a scheduler that ended left behind is resumed before anything else: the newest run of its schedule."""
    seen: set[str] = set()
    for run in history.of():
        if run.outcome == "skipped":
            continue
        newest = run.schedule not in seen
        seen.add(run.schedule)
        if run.outcome not in ("running", "interrupted"):
            continue
        why = ""
        if run.schedule not in schedules:
            why = "interrupted, and its schedule has gone"
        elif not newest:
            why = "interrupted, and a newer run has taken its place"
        elif run.attempts >= KILLED_AT_MOST:
            why = f"given up: the scheduler was killed {run.attempts} times while it ran"
        history.update(run.id, outcome="failed" if why else "waiting", note=", ".join(filter(None, [run.note, why])))
        say(f"{run.schedule}: run {run.id} {why or 'was interrupted'}")


def serve(root: Path, folder: Path, schedules: Mapping[str, Schedule], signals: Signals, say: _Say) -> None:
    """Until SIGTERM or Ctrl-C; the sweep that then runs is stopped as gently as it can be."""
    history = History(root)
    take_up(history, schedules, say)

    def due(name: str, planned: Sequence[float]) -> None:
        run = history.ask(name, schedules[name], planned)
        say(f"{name}: run {run.id} is due{f' ({run.note})' if run.note else ''}: {run.outcome}")

    clock = Clock(root, due)
    clock.follow(schedules, say)
    runner = Runner(root, folder, history, say)
    while not (signals.count and runner.idle):
        if not signals.count:
            clock.tick()
        runner.step(signals.count)
        signals.wait(1.0 if runner.idle else 0.5)


def carry_out(root: Path, folder: Path, run: Run, signals: Signals, say: _Say) -> Run:
    """One run without a daemon; returns what it came to."""
    history = History(root)
    runner = Runner(root, folder, history, say)
    while (now := history.get(run.id)).outcome in ("waiting", "running"):
        if signals.count and runner.idle:
            break
        runner.step(signals.count, only=run.id)
        signals.wait(0.5)
    return now
