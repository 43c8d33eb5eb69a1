"""Workers on a Ray cluster: `executor=ray`. Whatever the cluster does to them, a piece of work is told once.

A node shares no disk with the driver (travel.py), and measures only if it carries the resource that the study
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

from search import config
from search.cluster.attach import Attached, attach
from search.cluster.crew import MEASURE, Crew, Hired
from search.cluster.node import Reply
from search.cluster.travel import Parcel, Receiver, Sender
from search.executor import Event, interpreter
from search.faults import WorkerError
from search.steps import Steps

LOST_NODES = 5  # that a piece of work outlives
POLL_S = 0.3


class RayExecutor:
    """See Executor. `inputs`: folders of the cache below `root` that every node needs; `target`: see config.Study."""

    def __init__(self, settings: config.Executor, root: Path, target: str = "latency", inputs: Sequence[Path] = ()):
        self._settings = settings
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._attached: Attached = attach(settings, target)
        self._sender, self._receiver = Sender(root, self._attached.ray.put), Receiver(root)
        goods = [found for path in inputs if (found := self._sender.goods(path)) is not None]
        self._crew = Crew(self._attached, settings, target, f"{platform.node()}:{root}", goods)
        self._packing = threading.Lock()
        self._threads: list[threading.Thread] = []

    @property
    def slots(self) -> int:
        """See Executor; it follows the cluster as nodes join and leave."""
        return self._attached.slots()

    @property
    def threads(self) -> int:
        """See Executor."""
        return max(1, int(self._settings.num_cpus))

    def submit(self, key: int, trainer: str, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """See Executor. Of Steps the second is done where latency may be measured."""
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
            parcels = [self._sender.pack(args)]
        if isinstance(work, Steps):
            parcels.append(self._tried(key, trainer, work.work, parcels))
            parcels = [self._tried(key, MEASURE, work.measure, parcels)]
        else:
            parcels = [self._tried(key, trainer, work, parcels)]
        with self._packing:
            return self._receiver.unpack(parcels[0])[0]

    def _tried(self, key: int, kind: str, work: Callable[..., Any], parcels: list[Parcel]) -> Parcel:
        """What the work gives, tried again on another worker as often as the settings say."""
        crashes = lost = 0
        while True:
            worker = self._crew.take(kind, lambda what: self._events.put((key, what, 0.0)))
            began = time.monotonic()
            try:
                reply = self._attempt(worker, key, kind, work, parcels)
            except WorkerError as failure:
                self._crew.dismiss(worker)
                crashes += 1
                if crashes > self._settings.retries:
                    failure.add_note(f"after {time.monotonic() - began:.0f} s in the last attempt")
                    raise
                continue
            except ConnectionError:
                self._crew.lost(worker)
                lost += 1
                if lost > LOST_NODES:
                    raise WorkerError(f"{lost} nodes were lost under it, the last of them {worker.host}") from None
                self._events.put((None, f"warning: the node {worker.host} was lost; its work runs again", 0.0))
                continue
            except BaseException:
                self._crew.dismiss(worker)
                raise
            self._crew.give(worker)
            if reply.error is not None:
                raise reply.error
            assert reply.result is not None
            return reply.result

    def _attempt(self, worker: Hired, key: int, kind: str, work: Callable[..., Any], parcels: list[Parcel]) -> Reply:
        """Once. Raises WorkerError when the worker dies or is too slow, ConnectionError when its node is lost."""
        ray, limit = self._attached.ray, self._settings.trial_timeout
        deadline = time.monotonic() + limit
        try:
            coming = worker.actor.do.remote(key, interpreter(self._settings, kind), work, parcels)
            while not ray.wait([coming], timeout=POLL_S)[0]:
                if self._crew.closed:
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
            if self._crew.closed:
                raise CancelledError from None
            if _is_crash(error):
                raise WorkerError(_last_words(error, worker.host)) from None
            raise ConnectionError(str(error)) from None
        self._hear(worker, reply.events)
        return reply

    def _hear(self, worker: Hired, events: list[Event]) -> None:
        for key, what, fraction in events:
            self._events.put((key, f"{what} on {worker.host}" if key is not None else what, fraction))

    def events(self) -> list[Event]:
        """See Executor."""
        found = self._crew.warnings()
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._events.get_nowait())
        return found

    def close(self) -> None:
        """See Executor; a cluster that was there before stays."""
        self._crew.close()
        for thread in self._threads:
            thread.join(timeout=10)
        self._attached.close()


def _is_crash(error: Exception) -> bool:
    """Whether a worker died by itself, on a node that lives: the system says so of no lost node."""
    return type(error).__name__ in ("ActorDiedError", "OutOfMemoryError") and "worker process has died" in str(error)


def _last_words(error: Exception, host: str) -> str:
    code = re.search(r"exit code[ =:]+(-?\d+)", str(error))
    if code and code[1] != "2":  # 2 is that of the broken connection
        return f"the worker process on {host} ended with exit code {code[1]}"
    return f"the worker process on {host} was killed or crashed; out of memory?"
