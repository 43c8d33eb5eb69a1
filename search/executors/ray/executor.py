"""Workers on a Ray cluster: `executor=ray`. Whatever the cluster does to them, a piece of work is told once.

A node shares no disk with the driver (transfer.py), and measures only if it carries the resource that the study
names as its target. A worker that dies costs one of the work's `retries`; a node that is lost is not the work's fault.
"""

from __future__ import annotations

import contextlib
import platform
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

from search.errors import WorkerError
from search.executors.base import Event, interpreter
from search.executors.ray.connection import RayConnection, attach
from search.executors.ray.node import Reply
from search.executors.ray.pool import MEASURE, PooledWorker, WorkerPool
from search.executors.ray.transfer import Payload, Receiver, Sender
from search.study import config
from search.trial.steps import TrainThenMeasure

LOST_NODES = 5  # that a piece of work outlives
POLL_S = 0.3


class RayExecutor:
    """Workers on a Ray cluster. `inputs`: folders of the cache below `root` that every node needs."""

    def __init__(self, settings: config.Executor, root: Path, target: str = "latency", inputs: Sequence[Path] = ()):
        self._settings = settings
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._connection: RayConnection = attach(settings, target)
        self._sender, self._receiver = Sender(root, self._connection.ray.put), Receiver(root)
        blobs = [found for path in inputs if (found := self._sender.blobs(path)) is not None]
        self._pool = WorkerPool(self._connection, settings, target, f"{platform.node()}:{root}", blobs)
        self._packing = threading.Lock()
        self._threads: list[threading.Thread] = []

    @property
    def slots(self) -> int:
        """Pieces of work at once; it follows the cluster as nodes join and leave."""
        return self._connection.slots()

    @property
    def threads(self) -> int:
        """CPU cores per worker, for the work it does."""
        return max(1, int(self._settings.num_cpus))

    def submit(self, key: int, trainer: str, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """Run it on the cluster; of TrainThenMeasure the second is done where latency may be measured."""
        outer: Future[Any] = Future()

        def carry_out() -> None:
            try:
                outer.set_result(self._carry_out(key, trainer, work, args))
            except CancelledError:
                outer.cancel()
            except Exception as error:
                outer.set_exception(error)

        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(threading.Thread(target=carry_out, daemon=True, name=f"work {key}"))
        self._threads[-1].start()
        return outer

    def _carry_out(self, key: int, trainer: str, work: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        with self._packing:
            payloads = [self._sender.pack(args)]
        if isinstance(work, TrainThenMeasure):
            payloads.append(self._tried(key, trainer, work.work, payloads))
            payloads = [self._tried(key, MEASURE, work.measure, payloads)]
        else:
            payloads = [self._tried(key, trainer, work, payloads)]
        with self._packing:
            return self._receiver.unpack(payloads[0])[0]

    def _tried(self, key: int, kind: str, work: Callable[..., Any], payloads: list[Payload]) -> Payload:
        """What the work gives, tried again on another worker as often as the settings say."""
        crashes = lost = 0
        while True:
            worker = self._pool.take(kind, lambda what: self._events.put((key, what, 0.0)))
            began = time.monotonic()
            try:
                reply = self._attempt(worker, key, kind, work, payloads)
            except WorkerError as failure:
                self._pool.dismiss(worker)
                crashes += 1
                if crashes > self._settings.retries:
                    failure.add_note(f"after {time.monotonic() - began:.0f} s in the last attempt")
                    raise
                continue
            except ConnectionError:
                self._pool.lost(worker)
                lost += 1
                if lost > LOST_NODES:
                    raise WorkerError(f"gave up after losing {lost} nodes, the last of them {worker.host}") from None
                self._events.put((None, f"warning: the node {worker.host} was lost; its work runs again", 0.0))
                continue
            except BaseException:
                self._pool.dismiss(worker)
                raise
            self._pool.give(worker)
            if reply.error is not None:
                raise reply.error
            assert reply.result is not None
            return reply.result

    def _attempt(
        self, worker: PooledWorker, key: int, kind: str, work: Callable[..., Any], payloads: list[Payload]
    ) -> Reply:
        """Once. Raises WorkerError when the worker dies or is too slow, ConnectionError when its node is lost."""
        ray, limit = self._connection.ray, self._settings.trial_timeout
        deadline = time.monotonic() + limit
        try:
            coming = worker.actor.do.remote(key, interpreter(self._settings, kind), work, payloads)
            while not ray.wait([coming], timeout=POLL_S)[0]:
                if self._pool.closed:
                    raise CancelledError
                if time.monotonic() > deadline:
                    raise WorkerError(f"took longer than executor.trial_timeout ({limit:g} s); raise it or train less")
                with contextlib.suppress(ray.exceptions.GetTimeoutError):
                    self._hear(worker, ray.get(worker.actor.heard.remote(), timeout=POLL_S))
            reply: Reply = ray.get(coming)
            if isinstance(reply.error, ray.exceptions.RayError):
                raise reply.error  # what the worker was sent did not reach it
        except ray.exceptions.RayTaskError:
            raise  # our bug
        except ray.exceptions.RayError as error:
            if self._pool.closed:
                raise CancelledError from None
            if _is_crash(error):
                raise WorkerError(_last_words(error, worker.host)) from None
            raise ConnectionError(str(error)) from None
        self._hear(worker, reply.events)
        return reply

    def _hear(self, worker: PooledWorker, events: list[Event]) -> None:
        for key, what, fraction in events:
            self._events.put((key, f"{what} on {worker.host}" if key is not None else what, fraction))

    def events(self) -> list[Event]:
        """Progress reported since the last call."""
        found = self._pool.warnings()
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._events.get_nowait())
        return found

    def close(self) -> None:
        """Stop at once, unfinished work is abandoned; a cluster that was there before stays."""
        self._pool.close()
        for thread in self._threads:
            thread.join(timeout=10)
        self._connection.close()


def _is_crash(error: Exception) -> bool:
    """Whether a worker died by itself, on a node that lives: the system says so of no lost node."""
    return type(error).__name__ in ("ActorDiedError", "OutOfMemoryError") and "worker process has died" in str(error)


def _last_words(error: Exception, host: str) -> str:
    code = re.search(r"exit code[ =:]+(-?\d+)", str(error))
    if code and code[1] != "2":  # 2 is that of the broken connection
        return f"the worker process on {host} ended with exit code {code[1]}"
    return f"the worker process on {host} was killed or crashed; out of memory?"
