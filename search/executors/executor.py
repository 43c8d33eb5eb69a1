"""Where work runs: local worker processes (default), a Ray cluster (search/executors/ray), or this process (`inline`).

An executor only evaluates; the driver alone asks and tells. A crash, an out-of-memory kill or a time-out costs one
piece of work, which is tried again as often as the configuration says; after that its reason is the result.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pebble import ProcessExpired, ProcessPool

from search.errors import WorkerError
from search.executors.interpreter import Child
from search.signals import follow, shielded
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


class InlineExecutor:
    """Runs the work in this process when it is submitted: breakpoints work, frameworks are imported here."""

    slots = 1
    threads = 1

    def submit(self, key: int, trainer: str, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """See Executor."""
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, lambda stage, fraction: None))
        except Exception as error:
            future.set_exception(error)
        return future

    def events(self) -> list[Event]:
        """See Executor."""
        return []

    def close(self) -> None:
        """See Executor."""


class LocalExecutor:
    """Worker processes on this host, one pool per trainer because no process may import two frameworks.

    What frameworks print goes to the file `output`; our own warnings reach the driver as events.

    Trials run one-threaded side by side, which beats one many-threaded trial. Workers are recycled after
    `trials_per_worker` pieces of work, since TensorFlow leaks some 30 MB per model.
    """

    def __init__(self, settings: config.Executor, output: Path | None = None):
        self.slots = self.threads = cores() if settings.workers == "auto" else settings.workers
        self._settings = settings
        self._output = output
        self._context = multiprocessing.get_context("spawn")
        self._events: Any = self._context.Queue()
        self._pools: dict[str, ProcessPool] = {}
        self._closed = False

    def submit(self, key: int, trainer: str, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """See Executor."""
        outer: Future[Any] = Future()
        self._attempt(outer, self._settings.retries, key, trainer, work, args)
        return outer

    def _attempt(
        self, outer: Future[Any], retries: int, key: int, trainer: str, work: Callable[..., Any], args: Any
    ) -> None:
        started = time.monotonic()

        def finished(inner: Future[Any]) -> None:
            try:
                outer.set_result(inner.result())
                return
            except CancelledError:
                outer.cancel()
                return
            except ProcessExpired as error:
                failure: Exception = WorkerError(_last_words(error))
            except TimeoutError:
                limit = self._settings.trial_timeout
                failure = WorkerError(f"took longer than executor.trial_timeout ({limit:g} s); raise it or train less")
            except Exception as error:
                outer.set_exception(error)
                return
            if retries and not self._closed:
                self._attempt(outer, retries - 1, key, trainer, work, args)
            else:
                failure.add_note(f"after {time.monotonic() - started:.0f} s in the last attempt")
                outer.set_exception(failure)

        python = interpreter(self._settings, trainer)
        with shielded():  # the pool starts its workers from threads that begin with the first work
            inner = self._pool(trainer).schedule(
                serve, args=[key, python, work, args], timeout=self._settings.trial_timeout
            )
        inner.add_done_callback(finished)

    def _pool(self, trainer: str) -> ProcessPool:
        if trainer not in self._pools:
            self._pools[trainer] = ProcessPool(
                max_workers=self.slots,
                max_tasks=self._settings.trials_per_worker,
                initializer=_start_worker,
                initargs=[self._events, os.getpid(), self._output],
                context=self._context,
            )
        return self._pools[trainer]

    def events(self) -> list[Event]:
        """See Executor."""
        found: list[Event] = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._events.get_nowait())
        return found

    def close(self) -> None:
        """See Executor."""
        self._closed = True
        for pool in self._pools.values():
            pool.stop()
        for pool in self._pools.values():
            pool.join()


def interpreter(settings: config.Executor, trainer: str) -> Path | None:
    """That of the trainer's workers, where it is not the driver's."""
    return next((path for name, path in settings.python.items() if name == trainer), None)


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _last_words(error: ProcessExpired) -> str:
    code = error.exitcode
    if code is not None and code < 0:
        killed = signal.Signals(-code).name
        hint = "; out of memory?" if killed == "SIGKILL" else ""
        return f"the worker process was killed by {killed}{hint}"
    return f"the worker process ended with exit code {code}"


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


def _start_worker(events: Any, driver: int, output: Path | None) -> None:
    """In a new process: end when the driver is gone; Ctrl-C is left to the driver (`shielded`)."""
    listen(events.put)
    if output is not None:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
    follow(driver)


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


def start(wanted: config.Config, output: Path) -> Executor:
    """The executor that the configuration names; `output`: file for what frameworks print on this host.

    Raises SweepError when its cluster cannot be reached or has not what the study needs.
    """
    if wanted.executor.name == "inline":
        return InlineExecutor()
    if wanted.executor.name == "ray":
        from search.executors.ray.executor import RayExecutor
        from search.executors.ray.inputs import inputs

        return RayExecutor(wanted.executor, wanted.root, wanted.study.target, inputs(wanted))
    output.parent.mkdir(parents=True, exist_ok=True)
    return LocalExecutor(wanted.executor, output)
