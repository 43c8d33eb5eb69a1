"""The worker's side: one piece of work after the other, its progress and our warnings told to the driver."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trainers.base
from runtimes import quiet
from search.errors import WorkerError
from search.executors.base import Event
from search.executors.interpreter import Child
from search.signals import follow

_report: Callable[[Event], None] = lambda event: None  # noqa: E731 — replaced when a worker starts


class _Forward(logging.Handler):
    """Sends a worker's warnings to the driver."""

    def emit(self, record: logging.LogRecord) -> None:
        _report((None, f"{record.levelname.lower()}: {record.getMessage()}", 0.0))


def listen(report: Callable[[Event], None]) -> None:
    """In a new worker: `report` is told its progress and our warnings; one thread per numeric library."""
    global _report
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    _report = report
    for room in ("tasks", "trainers", "runtimes", "search"):
        logging.getLogger(room).addHandler(_Forward(logging.WARNING))


def begin(events: Any, driver: int, output: Path | None, trainer: str | None = None) -> None:
    """In a new process: end when the driver is gone; Ctrl-C is left to the driver (`shielded`).

    `trainer`: whose framework is imported at once.
    """
    listen(events.put)
    if output is not None:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
    follow(driver)
    if trainer is not None:
        with contextlib.suppress(Exception), quiet.training():  # the first work says what is wrong
            importlib.import_module("search.trial.objective")
            trainers.base.load(trainer)


def begun() -> None:
    """Work that only starts a worker."""


_child: Child | None = None  # of this worker, where its trainer has an interpreter of its own


def serve(key: int, python: Path | None, work: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """In a worker: do one piece of work, passing on its progress at most five times a second."""
    global _child
    last: list[Any] = ["", 0.0]

    def progress(stage: str, fraction: float) -> None:
        now = time.monotonic()
        if stage != last[0] or now - last[1] > 0.2:
            last[:] = stage, now
            _report((key, stage, fraction))

    if python is None:
        return work(*args, progress)
    _child = _child or Child(python)
    try:
        return _child.do(work, args, progress)
    except WorkerError:
        _child = None
        raise
