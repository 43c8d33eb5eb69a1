"""The workers that a sweep keeps on a Ray cluster: hired when work waits, dismissed when worn out or in the way."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from search.errors import SweepError
from search.executors.base import Event
from search.executors.ray.connection import RayConnection
from search.executors.ray.node import Whereabouts, Worker
from search.executors.ray.transfer import Blob
from search.study import config
from search.trial.provenance import code_digest

MEASURE = "measure"  # the kind of workers that measure; the others serve the trainer that they are called by
POLL_S = 0.2
STILLBORN = 10  # workers in a row that die before they serve: it is the cluster, not chance
PATIENCE_S = 30.0  # that work waits in silence for a node to measure on


@dataclass(eq=False)
class PooledWorker:
    """A worker; `coming` is answered once it runs. `host`, `node`: where; `served`: pieces of work so far."""

    kind: str
    actor: Any
    coming: Any
    host: str = ""
    node: str = ""
    served: int = 0


class WorkerPool:
    """Hands workers out, one to one piece of work at a time. Its methods may be called by many threads."""

    def __init__(
        self, connection: RayConnection, settings: config.Executor, target: str, owner: str, inputs: Sequence[Blob]
    ):
        self._connection, self._settings, self._target = connection, settings, target
        self._owner, self._inputs = owner, tuple(inputs)
        self._lock = threading.Lock()
        self._idle: list[PooledWorker] = []
        self._coming: list[PooledWorker] = []
        self._busy: list[PooledWorker] = []
        self._wanted: Counter[str] = Counter()
        self._warned = False
        self._stillborn = 0
        self._warnings: list[Event] = []
        self.closed = False

    def take(self, kind: str, waiting: Callable[[str], None]) -> PooledWorker:
        """A worker of that kind, as soon as one is free; `waiting` is told meanwhile what for.

        Raises CancelledError once the crew is closed, SweepError when a node cannot run our work.
        """
        since = time.monotonic()
        with self._lock:
            self._wanted[kind] += 1
        try:
            while not self.closed:
                if (worker := self._free(kind)) is not None:
                    return worker
                if time.monotonic() - since > 1:
                    waiting(
                        "waiting for a node to measure on" if kind == MEASURE else "waiting for room on the cluster"
                    )
                self._await(kind, time.monotonic() - since)
        finally:
            with self._lock:
                self._wanted[kind] -= 1
        raise CancelledError

    def _free(self, kind: str) -> PooledWorker | None:
        with self._lock:
            found = next((worker for worker in self._idle if worker.kind == kind), None)
            if found is not None:
                self._idle.remove(found)
                self._busy.append(found)
            return found

    def _await(self, kind: str, waited: float) -> None:
        """Hire if that is allowed, then wait a moment for one that comes."""
        with self._lock:
            coming = [worker for worker in self._coming if worker.kind == kind]
            if len(coming) < self._wanted[kind] and self._room(kind, waited):
                coming.append(self._hire(kind))
        if not coming:
            time.sleep(POLL_S)
            return
        for ready in self._connection.ray.wait([worker.coming for worker in coming], timeout=POLL_S)[0]:
            self._welcome(next(worker for worker in coming if worker.coming == ready))

    def _room(self, kind: str, waited: float) -> bool:
        """Whether one more of the kind may be hired; idle ones of other kinds make room for it."""
        there = [*self._idle, *self._coming, *self._busy]
        if kind == MEASURE:
            capacity = int(self._connection.resources().get(self._target, 0.0))
            if not capacity and waited > PATIENCE_S and not self._warned:
                self._warned = True
                text = f"warning: no node with the resource {self._target!r} is left; the sweep waits for one"
                self._warnings.append((None, text, 0.0))
            return sum(worker.kind == MEASURE for worker in there) < max(1, capacity)
        training = [worker for worker in there if worker.kind != MEASURE]
        if len(training) < self._connection.slots():
            return True
        spare = next((worker for worker in self._idle if worker.kind not in (kind, MEASURE)), None)
        if spare is not None:
            self._idle.remove(spare)
            self._end(spare)
        return spare is not None

    def _hire(self, kind: str) -> PooledWorker:
        wanted = {"num_cpus": self._settings.num_cpus, "num_gpus": self._settings.num_gpus}
        # While it measures, the trainings of its host pause: it takes no processor away from them.
        measure = {"num_cpus": 0, "num_gpus": 0, "resources": {self._target: 1}}
        options = {"max_restarts": 0, "max_task_retries": 0, "concurrency_groups": {"say": 1}}
        hired = self._connection.ray.remote(**options, **(measure if kind == MEASURE else wanted))(Worker)
        actor = hired.remote(self._owner, self._inputs)
        self._coming.append(PooledWorker(kind, actor, actor.ready.remote()))
        return self._coming[-1]

    def _welcome(self, worker: PooledWorker) -> None:
        """A worker has come, or could not."""
        ray = self._connection.ray
        with self._lock:
            if worker not in self._coming:
                return  # another thread was faster
            self._coming.remove(worker)
            try:
                found: Whereabouts = ray.get(worker.coming)
            except ray.exceptions.RayError as error:
                self._end(worker)
                if getattr(error, "_actor_init_failed", False) or isinstance(error, ray.exceptions.RayTaskError):
                    last = str(error).strip().splitlines()[-1]
                    raise SweepError(
                        f"executor: a node of the cluster cannot run Pare ({last}); install the same Pare on every node"
                    ) from None
                self._stillborn += 1  # its node was lost, or there was no memory: the next one may have more luck
                if self._stillborn >= STILLBORN:
                    reason = str(error).strip().splitlines()[-1]
                    raise SweepError(
                        f"executor: {STILLBORN} workers in a row died while they started: {reason}"
                    ) from None
                return
            self._stillborn = 0
            if found.code != code_digest():
                self._end(worker)
                raise SweepError(
                    f"executor: {found.host} runs other code (digest {found.code}) than the driver ({code_digest()}); "
                    "install the same Pare on every node"
                )
            worker.host, worker.node = found.host, found.node
            self._idle.append(worker)

    def give(self, worker: PooledWorker) -> None:
        """The worker has done its piece of work."""
        worker.served += 1
        with self._lock:
            self._busy.remove(worker)
            if worker.served < self._settings.trials_per_worker and not self.closed:
                self._idle.append(worker)
                return
        self._end(worker)

    def dismiss(self, worker: PooledWorker) -> None:
        """The worker is dead, or must be."""
        with self._lock:
            self._busy.remove(worker)
        self._end(worker)

    def lost(self, worker: PooledWorker) -> None:
        """The worker's node is gone, and with it those that idled there."""
        self.dismiss(worker)
        with self._lock:
            gone = [other for other in self._idle if other.node == worker.node]
            self._idle = [other for other in self._idle if other.node != worker.node]
        for other in gone:
            self._end(other)

    def warnings(self) -> list[Event]:
        """What a person should know, since the last call."""
        with self._lock:
            said, self._warnings = self._warnings, []
        return said

    def close(self) -> None:
        """End every worker."""
        with self._lock:
            self.closed = True
            everyone = [*self._idle, *self._coming, *self._busy]
        for worker in everyone:
            self._end(worker)

    def _end(self, worker: PooledWorker) -> None:
        with contextlib.suppress(Exception):  # it may be gone with its node, or the connection with the cluster
            self._connection.ray.kill(worker.actor)
