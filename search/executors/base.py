"""What runs work somewhere: the Executor protocol, and what its kinds share.

An executor only evaluates; the driver alone asks and tells. A crash, an out-of-memory kill or a time-out costs one
piece of work, which is tried again as often as the configuration says; after that its reason is the result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from search.study import config

# (key of the work, stage and on a cluster its host, fraction done); without a key a warning
Event = tuple[int | None, str, float]


class Executor(Protocol):
    """Runs `work(*args, progress)` and says how far it is. Work and results travel by pickle.

    `slots`: pieces of work at once. `threads`: what a piece may use that runs alone.
    """

    @property
    def slots(self) -> int: ...  # noqa: D102

    @property
    def threads(self) -> int: ...  # noqa: D102

    def submit(self, key: int, trainer: str, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """Run it on a worker that serves `trainer`; the Future raises what the work raised, or WorkerError."""
        ...

    def events(self) -> list[Event]:
        """Progress reported since the last call."""
        ...

    def close(self) -> None:
        """Stop at once; unfinished work is abandoned."""
        ...


@dataclass(frozen=True)
class Work:
    """One piece of work for `run_all`: what `Executor.submit` takes."""

    key: int
    trainer: str
    function: Callable[..., Any]
    args: tuple[Any, ...]


def run_all(
    executor: Executor,
    works: Sequence[Work],
    started: Callable[[Work], None],
    ended: Callable[[Work, Future[Any]], None],
    told: Callable[[Event], None],
) -> None:
    """Run every piece, as many at once as the executor has slots; whatever a callback raises ends it."""
    waiting, running = list(works), dict[Future[Any], Work]()
    while waiting or running:
        while waiting and len(running) < executor.slots:
            work = waiting.pop(0)
            started(work)
            running[executor.submit(work.key, work.trainer, work.function, *work.args)] = work
        done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
        for event in executor.events():
            told(event)
        for future in done:
            ended(running.pop(future), future)


def interpreter(settings: config.Executor, trainer: str) -> Path | None:
    """That of the trainer's workers, where it is not the driver's."""
    return next((path for name, path in settings.python.items() if name == trainer), None)


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
