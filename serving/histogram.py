"""Counts of durations in fixed classes, which add up over processes; percentiles of them, and Prometheus' text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Upper ends of the classes in milliseconds: a fifth of a decade each, fine enough for a p99 to some 25 %.
EDGES = tuple(round(10 ** (i / 10 - 2), 4) for i in range(61))  # 0.01 ms to 10 s
EXPOSED = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 10000)


class Histogram:
    """Durations in milliseconds."""

    def __init__(self) -> None:
        self.counts = [0] * (len(EDGES) + 1)
        self.total_ms = 0.0

    def add(self, ms: float) -> None:
        """Count one."""
        self.counts[bisect_left(EDGES, ms)] += 1
        self.total_ms += ms

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {"counts": list(self.counts), "total_ms": self.total_ms}


def percentile(counts: Sequence[int], share: float) -> float:
    """Milliseconds below which the share of the durations lies: the upper end of its class; 0 for none."""
    wanted = share * sum(counts)
    if not wanted:
        return 0.0
    seen = 0
    for count, edge in zip(counts, (*EDGES, EDGES[-1]), strict=True):
        seen += count
        if seen >= wanted:
            return edge
    return EDGES[-1]


def exposed(name: str, labels: str, plain: Mapping[str, Any]) -> Iterable[str]:
    """Lines of Prometheus' text format, in seconds."""
    counts = plain["counts"]
    for edge in EXPOSED:
        below = sum(count for count, end in zip(counts, EDGES, strict=False) if end <= edge * 1.0001)
        yield f'{name}_bucket{{{labels},le="{edge / 1000:g}"}} {below}'
    yield f'{name}_bucket{{{labels},le="+Inf"}} {sum(counts)}'
    yield f"{name}_sum{{{labels}}} {plain['total_ms'] / 1000:.6f}"
    yield f"{name}_count{{{labels}}} {sum(counts)}"
