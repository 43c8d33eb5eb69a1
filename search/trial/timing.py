"""How fast exported files are on the study's runtime, roughly and at once: what a trainer decides placement by.

What is reported is measured otherwise, in quiet and with intervals (runtimes/latency.py); here the fastest of many
short bursts says which of two files is slower, on a host that trains beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import runtimes.base
from runtimes import cpu, examples
from runtimes.base import Artifact
from tasks.base import Task

SECONDS, BURST_S, LEAST = 0.5, 0.004, 15


class FileTimer:
    """See `trainers.base.Timer`: one thread, one sample at a time, valid inputs of the task; CPU time."""

    def __init__(self, runtime: str, task: Task) -> None:
        self.target = f"{runtime} on {cpu.name()}"
        self._runtime, self._task = runtime, task

    def __call__(self, files: Sequence[Path]) -> list[float]:
        """Seconds per call of each file, in turns for about SECONDS in all."""
        given = self._task.data("validation").batch(np.arange(1)).inputs
        calls = [self._bound(file, {name: np.asarray(array) for name, array in given.items()}) for file in files]
        counts = [max(1, round(BURST_S / max(1e-7, _burst(call, 1)))) for call in calls]
        best = [np.inf] * len(calls)
        until, rounds = time.perf_counter() + SECONDS, 0
        while rounds < LEAST or time.perf_counter() < until:
            rounds += 1
            for index, call in enumerate(calls):
                best[index] = min(best[index], _burst(call, counts[index]))
        return best

    def _bound(self, file: Path, given: dict[str, np.ndarray]) -> Callable[[], object]:
        session = runtimes.base.load(self._runtime).load(Artifact.of(file), 1)
        return session.bind(examples.whole(session.inputs, given))


def _burst(call: Callable[[], object], count: int) -> float:
    """Seconds of this process's own CPU time per call: by the clock, trials beside it would decide.

    On a host with ten trainings a narrow ResNet-18 seemed slower in integers, which it is not.
    """
    start = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - start) / count
