"""Writes MLflow's record in a process of its own, one trial after the other: no worker waits for a slow server."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import queue
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.signals import follow, shielded
from search.tracking import tensorboard as events
from search.tracking.uri import TrackingError
from search.trial.record import TrialRecord

WAITING = 50  # trials that may wait to be written before the driver waits, too
_POLL_S = 0.2


class Writer:
    """`log` hands a trial over, `close` waits until all are written; both raise what the writing raised.

    The process ends with the driver, however that ends: what was not written then, the next start hands over again.
    `start`: what Tracking.start_sweep takes; without it the sweep has been started already. Importing MLflow takes
    seconds, which the driver does not wait for.
    """

    def __init__(self, root: Path, study: str, sweep: str, tensorboard: bool, start: Mapping[str, Any] | None = None):
        context = multiprocessing.get_context("spawn")
        self._records: Any = context.Queue(WAITING)
        self._answer, theirs = context.Pipe(duplex=False)
        args = (self._records, theirs, os.getpid(), root, study, sweep, tensorboard, start)
        self._process = context.Process(target=_serve, args=args, daemon=True, name="record")
        with shielded():
            self._process.start()
        theirs.close()

    def log(self, record: TrialRecord | None) -> None:
        """Hand one finished trial over; None: it was the last."""
        while self._process.is_alive() and not self._answer.poll():
            try:
                self._records.put(record, timeout=_POLL_S)
                return
            except queue.Full:
                continue
        self._raise()

    def check(self) -> None:
        """Raise what the process ended with, if it has."""
        if not self._process.is_alive() or self._answer.poll():
            self._raise()

    def close(self) -> None:
        """Until all is written."""
        try:
            self.log(None)
            self._process.join()
            self._raise()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Stop at once."""
        self._records.cancel_join_thread()
        self._process.kill()
        self._process.join()

    def _raise(self) -> None:
        """What the process said of its end."""
        error: Exception | None = TrackingError(
            "tracking: the process that writes MLflow's record was killed; run the same command again: the results are "
            "kept and logged then"
        )
        with contextlib.suppress(EOFError):
            if self._answer.poll(_POLL_S):
                error = self._answer.recv()
        if error is not None:
            raise error


def _serve(
    records: Any,
    answer: Any,
    driver: int,
    root: Path,
    study: str,
    sweep: str,
    tensorboard: bool,
    start: Mapping[str, Any] | None,
) -> None:
    """In the process: write until None comes, then say None, or the error that ended it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends when the driver says so, or is gone
    follow(driver)
    try:
        from search.tracking.tracking import Tracking

        # That of a driver that was just killed may still write its last trial: two at once would write it twice.
        place = root / "locks" / f"{study}.record"
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            tracking = Tracking(root, study)
            if start is not None:
                tracking.start_sweep(sweep, **start)
            while (record := records.get()) is not None:
                write(tracking, root, sweep, record, tensorboard)
        answer.send(None)
    except Exception as error:
        answer.send(error)


def write(tracking: Any, root: Path, sweep: str, record: TrialRecord, tensorboard: bool) -> None:
    """Log one finished trial; a second time changes nothing."""
    tracking.log_trial(sweep, record)
    if tensorboard:
        events.write(record, root / "tensorboard" / sweep / f"{record.number:04d}")
