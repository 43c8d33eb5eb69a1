"""Work in this process: breakpoints work, and frameworks are imported here."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from search.executors.base import Event


class InlineExecutor:
    """Runs the work in this process when it is submitted."""

    slots = 1
    threads = 1

    def submit(self, key: int, trainer: str, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """Run it on a worker that serves `trainer`; the Future raises what the work raised, or WorkerError."""
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, lambda stage, fraction: None))
        except Exception as error:
            future.set_exception(error)
        return future

    def events(self) -> list[Event]:
        """Progress reported since the last call."""
        return []

    def close(self) -> None:
        """Stop at once; unfinished work is abandoned."""
