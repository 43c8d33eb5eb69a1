"""Worker processes on this host, the default."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

from search.errors import WorkerError
from search.executors import worker
from search.executors.base import Event, cores, interpreter
from search.signals import shielded
from search.study import config

_PATIENCE_S = 1.0


class _Spawning(SpawnContext):
    """Spawns processes and knows those that it has made."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[SpawnProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        """As a context's class of this name."""
        made = SpawnProcess(*args, **kwargs)
        self._made = [each for each in self._made if each.pid is None or each.is_alive()] + [made]
        return made

    def end(self) -> None:
        """Those that still run are told to end; waits a moment for them."""
        running = [each for each in self._made if each.pid is not None and each.is_alive()]
        for each in running:
            each.terminate()
        for each in running:
            each.join(_PATIENCE_S)


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
        self._context = _Spawning()
        self._events: Any = self._context.Queue()
        self._pools: dict[str, ProcessPool] = {}
        self._warm: set[str] = set()
        self._closed = False

    def warm(self, trainer: str) -> None:
        """Start the trainer's workers, which import its framework before the first work comes."""
        self._warm.add(trainer)
        with shielded():
            self._pool(trainer).schedule(worker.begun)

    def submit(self, key: int, trainer: str, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """Run it on a worker that serves `trainer`; the Future raises what the work raised, or WorkerError."""
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
                worker.serve, args=[key, python, work, args], timeout=self._settings.trial_timeout
            )
        inner.add_done_callback(finished)

    def _pool(self, trainer: str) -> ProcessPool:
        if trainer not in self._pools:
            self._pools[trainer] = ProcessPool(
                max_workers=self.slots,
                max_tasks=self._settings.trials_per_worker,
                initializer=worker.begin,
                initargs=[self._events, os.getpid(), self._output, self._imported(trainer)],
                context=self._context,
            )
        return self._pools[trainer]

    def _imported(self, trainer: str) -> str | None:
        """The trainer that the workers import themselves, where they are to."""
        return trainer if trainer in self._warm and interpreter(self._settings, trainer) is None else None

    def events(self) -> list[Event]:
        """Progress reported since the last call."""
        found: list[Event] = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._events.get_nowait())
        return found

    def close(self) -> None:
        """Stop at once; unfinished work is abandoned."""
        self._closed = True
        for pool in self._pools.values():
            pool.stop()
        # A pool removes its semaphores before it stops its workers: one that still starts would miss them, aloud.
        self._context.end()
        for pool in self._pools.values():
            pool.join()
        self._pools.clear()
        # Its semaphores are named ones: kept until the process ends, they would be reported as leaked.
        events, self._events = self._events, queue.Queue()
        if hasattr(events, "cancel_join_thread"):
            events.close()
            events.cancel_join_thread()


def _last_words(error: ProcessExpired) -> str:
    code = error.exitcode
    if code is not None and code < 0:
        killed = signal.Signals(-code).name
        hint = "; out of memory?" if killed == "SIGKILL" else ""
        return f"the worker process was killed by {killed}{hint}"
    return f"the worker process ended with exit code {code}"
