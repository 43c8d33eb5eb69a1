"""The runs of the schedules, past and to come: one table in ROOT/schedule.db, beside APScheduler's own.

A run is written down before anything else is done for it, so that a scheduler killed at any moment neither forgets
nor repeats one: a planned time is in the table at most once.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

from search.command import RefusedError
from search.schedules.recurring import Schedule

# waiting -> running -> finished or failed; interrupted ones resume when the scheduler starts again.
UNDER_WAY = ("waiting", "running", "interrupted")
_TABLE = """
create table if not exists runs (
    id integer primary key, schedule text not null, planned real, missed integer not null default 0,
    asked real not null, started real, ended real, outcome text not null, exit_code integer, sweep text,
    verdict text, worse integer, webhook text, note text not null default '', pid integer, born real,
    attempts integer not null default 0, command text not null, fresh integer not null,
    unique (schedule, planned)
)"""


@dataclass(frozen=True)
class Run:
    """One row. Times in seconds since 1970; `planned` is None for a run that was triggered by hand.

    `missed`: earlier planned times that this run stands for too. `verdict`: the front against the last one's, `worse`
    where a part of it is so beyond noise. `webhook`: what became of its message. `pid` and `born`: the sweep's process
    and its start, by the system's clock. `attempts`: starts since the last orderly stop. `command`: the words for
    search.run.
    """

    id: int
    schedule: str
    planned: float | None
    missed: int
    asked: float
    started: float | None
    ended: float | None
    outcome: str
    exit_code: int | None
    sweep: str | None
    verdict: str | None
    worse: int | None
    webhook: str | None
    note: str
    pid: int | None
    born: float | None
    attempts: int
    command: tuple[str, ...]
    fresh: int

    @property
    def under_way(self) -> bool:
        """Whether it is still to end."""
        return self.outcome in UNDER_WAY

    def log(self, root: Path) -> Path:
        """The file for what its sweep prints."""
        return root / "logs" / "schedule" / f"{self.schedule}-{self.id:04d}.log"


class History:
    """The table. Every method is one short transaction, so that several processes may use it."""

    def __init__(self, root: Path):
        root.mkdir(parents=True, exist_ok=True)
        self.path = root / "schedule.db"
        with self._open() as database:
            database.execute(_TABLE)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Raises RefusedError when the file cannot be used."""
        try:
            database = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            database.row_factory = sqlite3.Row
            try:
                database.execute("begin immediate")
                yield database
                database.execute("commit")
            finally:
                database.close()
        except sqlite3.Error as error:
            raise RefusedError(
                f"{self.path} cannot be used ({error}); check free space and write permission there"
            ) from None

    def ask(self, name: str, schedule: Schedule, planned: Sequence[float] = ()) -> Run:
        """Write down a run, for the planned times that are due or, without any, as triggered by hand.

        It waits to be started, or is skipped at once by the schedule's rules for overlap and missed runs. Planned
        times that were written down before, by a scheduler killed just then, give the run they gave.
        """
        now = time.time()
        due = planned[-1] if planned else None
        with self._open() as database:
            if due is not None and (known := _runs(database, "schedule = ? and planned = ?", name, due)):
                return known[0]
            outcome, note = "waiting", ""
            before = _runs(database, "schedule = ? and outcome in ('waiting', 'running')", name)
            if due is not None and now - due > schedule.grace:
                note = f"{len(planned)} missed"
                outcome = "skipped" if schedule.missed == "skip" else outcome
            elif len(planned) > 1:
                note = f"{len(planned) - 1} missed"
            queued = schedule.overlap == "queue" and all(run.started for run in before)
            if outcome == "waiting" and before and not queued:
                outcome, note = "skipped", f"overlap: run {before[0].id} was {before[0].outcome}"
            row = {
                "schedule": name,
                "planned": due,
                "missed": max(len(planned) - 1, 0),
                "asked": now,
                "outcome": outcome,
                "note": note,
                "command": json.dumps(schedule.words()),
                "fresh": int(schedule.fresh),
            }
            names, places = ", ".join(row), ", ".join("?" * len(row))
            made = database.execute(f"insert into runs ({names}) values ({places})", list(row.values()))
            return _runs(database, "id = ?", made.lastrowid)[0]

    def get(self, run: int) -> Run:
        """The run of that number; raises RefusedError if there is none."""
        with self._open() as database:
            found = _runs(database, "id = ?", run)
        if not found:
            raise RefusedError(f"run: {self.path} has no run {run}; see python -m search.schedule history")
        return found[0]

    def update(self, run: int, **changes: Any) -> Run:
        """Change columns of a run."""
        names = ", ".join(f"{name} = ?" for name in changes)
        with self._open() as database:
            database.execute(f"update runs set {names} where id = ?", [*changes.values(), run])
            return _runs(database, "id = ?", run)[0]

    def next(self) -> Run | None:
        """The oldest run that waits."""
        with self._open() as database:
            found = _runs(database, "outcome = 'waiting' order by id limit 1")
        return found[0] if found else None

    def of(self, schedule: str | None = None, count: int = -1) -> list[Run]:
        """The newest `count` runs, the newest first; of one schedule or of all."""
        with self._open() as database:
            return _runs(database, "? is null or schedule = ? order by id desc limit ?", schedule, schedule, count)


def _runs(database: sqlite3.Connection, condition: str, *values: Any) -> list[Run]:
    columns = ", ".join(field.name for field in fields(Run))
    rows = database.execute(f"select {columns} from runs where {condition}", values)
    return [Run(**{**dict(row), "command": tuple(json.loads(row["command"]))}) for row in rows]


@contextmanager
def only_scheduler(root: Path) -> Iterator[None]:
    """Two schedulers on one store would run everything twice. Raises RefusedError when another holds it."""
    with _lock_file(root).open("a+") as file:
        if not _locked(file, fcntl.LOCK_EX, patience=1.0):  # longer than somebody looks whether it is held
            file.seek(0)
            raise RefusedError(
                f"another scheduler (process {file.read().strip() or 'unknown'}) runs on {root}; stop it first, "
                "or give this one a folder of its own with root=FOLDER"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def scheduler_runs(root: Path) -> bool:
    """Whether a scheduler runs on this store."""
    if not root.exists():
        return False
    with _lock_file(root).open("a+") as file:
        return not _locked(file, fcntl.LOCK_SH)


def _lock_file(root: Path) -> Path:
    path = root / "locks" / "scheduler"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _locked(file: IO[str], how: int, patience: float = 0.0) -> bool:
    """Whether the lock could be taken within `patience` seconds."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.1)
