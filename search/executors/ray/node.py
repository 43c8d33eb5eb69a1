"""On a node of a Ray cluster: a worker that is kept, so that its framework is imported once.

It shares no disk with the driver: what it needs lies in a folder of this host, received once for all its workers.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtimes import quiet
from search.executors.base import Event
from search.executors.ray.transfer import Blob, Payload, Receiver, Sender
from search.executors.worker import listen, serve
from search.trial.provenance import code_digest

SCRATCH = "PARE_SCRATCH"


@dataclass(frozen=True)
class Whereabouts:
    """Of a worker: its host's name, Ray's id of the node, and the digest of the code it runs."""

    host: str
    node: str
    code: str


@dataclass(frozen=True)
class Reply:
    """What came of a piece of work: the packed result or the error, and the last it had to say."""

    result: Payload | None
    error: Exception | None
    events: list[Event]


class Worker:
    """An actor. `owner`: the driver's host and root, so that two drivers do not meet in one folder."""

    def __init__(self, owner: str, inputs: Sequence[Blob]):
        import ray  # not before the driver has set what it reads

        self._events: deque[Event] = deque()
        listen(self._events.append)
        home = scratch() / hashlib.sha256(owner.encode()).hexdigest()[:16]
        home.mkdir(parents=True, exist_ok=True)
        self._sender, self._receiver = Sender(home), Receiver(home, ray.get)
        self._inputs = inputs

    def ready(self) -> Whereabouts:
        """Answered once the worker runs."""
        import ray

        return Whereabouts(platform.node(), ray.get_runtime_context().get_node_id(), code_digest())

    def do(self, key: int, python: Path | None, work: Callable[..., Any], payloads: Sequence[Payload]) -> Reply:
        """`work(*args, progress)`; the first payload holds a tuple of arguments, each further one an argument."""
        places: set[Path] = set()
        try:
            for blobs in self._inputs:
                self._receiver.accept(blobs)
            args: list[Any] = []
            for index, payload in enumerate(payloads):
                value, named = self._receiver.unpack(payload)
                args += [value] if index else value
                places |= named
            packed = self._sender.pack(serve(key, python, work, tuple(args)))
            return Reply(packed, None, self.heard())
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                error.filename = f"{platform.node()}:{error.filename or scratch()}"
            return Reply(None, error, self.heard())
        finally:
            for place in places:  # the result has been read
                shutil.rmtree(place, ignore_errors=True)

    def heard(self) -> list[Event]:
        """Progress and warnings since the last call."""
        return [self._events.popleft() for _ in range(len(self._events))]


def scratch() -> Path:
    """Where this host keeps what it was sent: PARE_SCRATCH, or a folder beside the locks that keep the host quiet."""
    return Path(os.environ.get(SCRATCH) or quiet.default_folder() / "scratch")
