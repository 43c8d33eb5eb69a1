"""How large a batch may become and how long it waits, from what batches were measured to take. Plain arithmetic.

A request that arrives just after a batch began waits for that batch, then for its own: so the time of two batches, and
the wait, must stay within the p99 goal. Of the sizes that do, the smallest is taken that comes within a twentieth of
the best throughput: a larger one would gain nothing and cost latency.

A batch waits for a second request at most as long as that request would then save: t(1) + t(1) - t(2). And only while
requests do come together (serving/batcher.py): one client alone never waits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

OVERHEAD_MS = 1.0  # reading, writing and the kernel, per request
NEAR = 0.95  # of the best throughput
TICK_MS = 1.0  # the resolution of the event loop's clock: a shorter wait is none
INLINE_MS = 1.0  # a batch shorter than this runs in the event loop: a thread would take as long
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a batch: the median and the slow end (95 %) of some runs."""

    median_ms: float
    slow_ms: float


@dataclass(frozen=True)
class Plan:
    """How requests are batched. `inline`: batches of so many rows run in the event loop itself; `why`: for people."""

    size: int
    wait_ms: float
    inline: int
    p99_ms: float
    why: str
    timings: Mapping[int, Timing] = field(default_factory=dict)


def choose(timings: Mapping[int, Timing], p99_ms: float | None = None) -> Plan:
    """The batch size and wait for the p99 goal; without one it is five times a single input, at least 20 ms."""
    one = timings[min(timings)]
    goal = p99_ms if p99_ms is not None else max(20.0, 5 * one.slow_ms + OVERHEAD_MS)
    fitting = [size for size, t in timings.items() if 2 * t.slow_ms + OVERHEAD_MS <= goal]
    asked = f"p99_ms={goal:g}" + ("" if p99_ms is not None else " (by itself)")
    if not fitting:
        size = min(timings)
        why = f"{asked} cannot hold under load: a batch of {size} takes {one.slow_ms:.3g} ms, and a request meets two"
        return Plan(size, 0.0, _short(timings), goal, why, dict(timings))
    best = max(rate(timings, size) for size in fitting)
    size = min(size for size in fitting if rate(timings, size) >= NEAR * best)
    slack = goal - OVERHEAD_MS - 2 * timings[size].slow_ms
    wait = max(0.0, min(slack, saved(timings)))
    wait = 0.0 if wait < TICK_MS or size == 1 else math.floor(wait)
    gain = rate(timings, size) / rate(timings, min(timings))
    why = (
        f"{asked}: batches up to {size} ({timings[size].slow_ms:.3g} ms, {gain:.2g} times the throughput of single "
        f"inputs; a request may meet two), wait {wait:g} ms (a second input saves {saved(timings):.2g} ms)"
    )
    return Plan(size, wait, _short(timings), goal, why, dict(timings))


def _short(timings: Mapping[int, Timing]) -> int:
    """Rows of the largest batch that is over before a thread would be of use; 0 where none is."""
    return max((size for size, timing in timings.items() if timing.median_ms < INLINE_MS), default=0)


def rate(timings: Mapping[int, Timing], size: int) -> float:
    """Inputs per millisecond in batches of that size."""
    return size / max(timings[size].median_ms, 1e-6)


def saved(timings: Mapping[int, Timing]) -> float:
    """Milliseconds of computing that two inputs together save."""
    if not {1, 2} <= set(timings):
        return 0.0
    return max(0.0, 2 * timings[1].median_ms - timings[2].median_ms)


def measure(
    run: Callable[[int], object],
    sizes: tuple[int, ...] = SIZES,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, Timing]:
    """Run batches of each size, smallest first, within about so many seconds; sizes that would not fit are left out."""
    found: dict[int, Timing] = {}
    began = clock()
    for size in sizes:
        run(size)  # the first run of a shape lays out its memory
        spent = list[float]()
        share = seconds / len(sizes)
        while len(spent) < 5 or (sum(spent) < share and len(spent) < 200):
            start = clock()
            run(size)
            spent.append(clock() - start)
            if clock() - began > seconds and len(spent) > 1:
                break
        spent.sort()
        slow = spent[min(len(spent) - 1, math.ceil(0.95 * len(spent)))]
        found[size] = Timing(1e3 * spent[len(spent) // 2], 1e3 * slow)
        if clock() - began + 3 * spent[-1] > seconds and size != sizes[-1]:
            break
    return found
