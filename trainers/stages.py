"""What each stage of a trial costs."""

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
