"""SIGTERM: what service managers, Kubernetes and the scheduler send before they use force."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

FOLLOW = "PARE_FOLLOW"  # environment variable: the process whose end counts as a SIGTERM


class Terminated(KeyboardInterrupt):
    """Ends a sweep as Ctrl-C does, but with exit code 0: it was asked for, and the sweep can be resumed."""


class Stop:
    """Whether SIGTERM has come. Within `noted` the first is only noted, elsewhere it raises Terminated at once.

    A second one raises KeyboardInterrupt in any case.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._noted = False

    @property
    def asked(self) -> bool:
        """Whether it has come."""
        return self._since is not None

    def overdue(self, grace: float) -> bool:
        """Whether it came more than `grace` seconds ago."""
        return self._since is not None and time.monotonic() - self._since > grace

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Work that looks at `asked` by itself; raises Terminated at its end where SIGTERM came meanwhile."""
        self._noted = True
        try:
            yield
        finally:
            self._noted = False
        if self.asked:
            raise Terminated

    def install(self) -> None:
        """From now on; in the main thread. A process that was told to follow another takes its end for a SIGTERM."""
        signal.signal(signal.SIGTERM, self._signalled)
        if followed := os.environ.pop(FOLLOW, None):
            follow(int(followed), lambda: os.kill(os.getpid(), signal.SIGTERM))

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self._since = time.monotonic()
        if not self._noted:
            raise Terminated


@contextmanager
def shielded() -> Iterator[None]:
    """What is started meanwhile never sees Ctrl-C, which is the driver's: also while it still imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow(parent: int, then: Callable[[], None] = lambda: os._exit(1)) -> None:
    """From now on: `then` is called once the parent process is gone, however that ended; by default this one ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        then()

    threading.Thread(target=watch, daemon=True).start()
