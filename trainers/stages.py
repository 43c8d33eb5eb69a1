"""What each stage of a trial costs and reaches."""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager


@contextmanager
def timed(stages: MutableMapping[str, float], name: str) -> Iterator[None]:
    """Add the wall-clock seconds that pass inside to `stages[name]`, where they pass without an error."""
    start = time.perf_counter()
    yield
    stages[name] = stages.get(name, 0.0) + time.perf_counter() - start


def numbered(curves: list[dict[str, float]], before: list[dict[str, float]]) -> list[dict[str, float]]:
    """Curves with the number of epochs trained so far as `epoch`, in place of each one's share."""
    epoch, found = before[-1]["epoch"] if before else 0.0, []
    for each in curves:
        epoch += each["epochs"]
        found.append({"epoch": epoch, **{name: value for name, value in each.items() if name != "epochs"}})
    return found
