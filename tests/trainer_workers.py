"""One long-lived process per trainer for the tests: the frameworks must never meet, and take seconds to import."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_worker(trainer: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work(...)` gives in the process that belongs to `trainer`; raises what it raises."""
    return _pool(trainer).submit(work, *args, **kwargs).result()


@functools.cache
def _pool(trainer: str) -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    atexit.register(pool.shutdown)
    return pool
