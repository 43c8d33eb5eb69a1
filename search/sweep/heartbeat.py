"""What a sweep is doing right now, stored with it every few seconds: `python -m search.status` reads it elsewhere."""

from __future__ import annotations

import os
import socket
import threading
import time
from types import TracebackType

from search.study.config import Config
from search.sweep.display import Display
from search.sweep.sweep import Sweep

KEY = "live"
EVERY = 5.0  # seconds
TYPICAL = 8  # candidates to confirm, as long as the front is not known: for the time that is left


class Heartbeat:
    """While entered, says every few seconds that the driver is alive and what its workers do."""

    def __init__(self, config: Config, sweep: Sweep, display: Display, slots: int):
        self._config, self._sweep, self._display, self._slots = config, sweep, display, slots
        self._started_ms = int(time.time() * 1000)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(timeout=EVERY)

    def say(self, status: str) -> None:
        """Store it now. `status`: running, finished, interrupted or failed."""
        study = self._config.study
        state = {
            "status": status,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_ms": self._started_ms,
            "at_ms": int(time.time() * 1000),
            "executor": self._config.executor.name,
            "slots": self._slots,
            "root": str(self._config.root),
            "trials": study.budget.trials,
            "confirm": study.confirm.seeds * (study.confirm.candidates or TYPICAL),
            **self._display.state(),
        }
        self._sweep.note(KEY, state)

    def _beat(self) -> None:
        while not self._ended.is_set():
            self.say("running")
            self._ended.wait(EVERY)
