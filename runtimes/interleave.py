"""The measuring process: `python -m runtimes.interleave [RUNTIME]` reads one JSON request, writes one JSON answer.

A block is a few milliseconds of each file in short bursts, in random order. Each block loads all files afresh, in
random order, as long as loading takes at most half of the time: two sessions of one file differ by about 1 % for
as long as they live (memory layout), and the interval must cover that.
"""

from __future__ import annotations

import gc
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from runtimes import cpu, examples, pace, process
from runtimes.base import Artifact, Runtime, load
from runtimes.interval import least_disturbed, quiet_blocks, ratio_interval, slow_phase
from runtimes.latency import LEAST_BLOCKS, Comparison, LatencySpec, Timing
from tasks.base import Arrays

BURST_NS = 2_000_000
BURSTS = 4
CHECK_EVERY = 4  # blocks


class Bench:
    """The files at one batch size and number of threads. `levels`: [blocks][files], ns of a call.

    `known`: ns that file 0 took on this host before (runtimes/pace.py), NaN if never.
    """

    def __init__(
        self,
        runtime: Runtime,
        files: list[Artifact],
        batch: int,
        threads: int,
        seed: int,
        given: Arrays | None = None,
    ) -> None:
        self.known = pace.known(files[0], _how(runtime, batch, threads))
        self.levels: list[list[float]] = []
        self.calls: list[list[np.ndarray]] = []
        self.started = time.perf_counter()
        self._runtime, self._files, self._batch, self._threads = runtime, files, batch, threads
        self._given = given
        self._rng = np.random.default_rng(seed)
        self._bound: dict[int, Callable[[], None]] = {}
        self._loading = 0.0

    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self.started

    def block(self) -> None:
        """Measure one block of every file."""
        if self._loading <= self.seconds() / 2:
            self._reload()
        bursts: list[list[np.ndarray]] = [[] for _ in self._files]
        slowest = max(float(np.median(self._burst(index))) for index in range(len(self._files)))
        for _ in range(int(np.clip(BURSTS * BURST_NS / slowest, 1, BURSTS))):
            for index in self._rng.permutation(len(self._files)):
                bursts[index].append(self._burst(index))
        # The faster half of the bursts: a level that a disturbance within the block leaves alone.
        self.levels.append([float(np.quantile([np.median(burst) for burst in each], 0.25)) for each in bursts])
        self.calls.append([np.concatenate(each) for each in bursts])

    def _reload(self) -> None:
        began = time.perf_counter()
        self._bound.clear()
        for index in map(int, self._rng.permutation(len(self._files))):
            session = self._runtime.load(self._files[index], self._threads, self._batch)
            wanted = examples.inputs(session.inputs, self._given, self._batch)
            inputs = {name: self._placed(array) for name, array in wanted.items()}
            session.run(inputs)
            self._bound[index] = session.bind(inputs)
        self._loading += time.perf_counter() - began

    def _placed(self, array: np.ndarray) -> np.ndarray:
        """The same at a random place within a page: how it lies in cache lines matters too."""
        offset = 16 * int(self._rng.integers(256))
        room = np.empty(array.nbytes + 4096, dtype=np.uint8)[offset : offset + array.nbytes].view(array.dtype)
        room[:] = array.ravel()
        return room.reshape(array.shape)

    def _burst(self, index: int) -> np.ndarray:
        """Nanoseconds of single calls, one after the other for at least BURST_NS."""
        call, clock = self._bound[index], time.perf_counter_ns
        taken, until, now = [], clock() + BURST_NS, 0
        while now < until:
            before = clock()
            call()
            now = clock()
            taken.append(now - before)
        return np.array(taken, dtype=np.float64)


@dataclass(frozen=True)
class Estimate:
    """The ratio to file 0 as it stands; `quiet`: bool [blocks], those that count."""

    ratio: float
    low: float
    high: float
    quiet: np.ndarray
    undisturbed: int

    def narrow(self, spec: LatencySpec) -> bool:
        """Whether the interval is as narrow as asked."""
        return self.undisturbed >= LEAST_BLOCKS and self.high - self.low <= 2 * spec.target_rel_ci * self.ratio

    def tight(self, spec: LatencySpec) -> bool:
        """Whether measuring may stop: a narrow interval from few blocks can be luck."""
        return self.undisturbed >= spec.min_blocks and self.narrow(spec)


def estimate(bench: Bench, candidate: int, seed: int) -> Estimate:
    """The candidate's ratio to file 0 from its undisturbed blocks, or the best if there are hardly any."""
    times = np.array(bench.levels)[:, [candidate, 0]]
    quiet = quiet_blocks(times, np.array([np.nan, bench.known]))
    undisturbed = int(quiet.sum())
    if undisturbed < LEAST_BLOCKS:
        quiet = least_disturbed(times, LEAST_BLOCKS)
    ratio, _, high = ratio_interval(times[quiet], np.random.default_rng(seed))
    wide = float(np.exp(np.hypot(np.log(high / ratio), slow_phase(times[quiet, 1], bench.known))))
    return Estimate(ratio, ratio / wide, ratio * wide, quiet, undisturbed)


def timing(bench: Bench, index: int, quiet: np.ndarray, batch: int) -> Timing:
    """Percentiles over the calls of one file in the quiet blocks."""
    calls = np.concatenate([block[index] for block, counts in zip(bench.calls, quiet, strict=True) if counts]) / 1e6
    p25, p50, p75, p95 = np.percentile(calls, [25, 50, 75, 95])
    return Timing(float(p50), float(p95), float(p75 - p25), float(1000 * batch / calls.mean()))


def warning(found: Estimate, spec: LatencySpec, seconds: float) -> str | None:
    """In words, why figures with a wide interval or from a disturbed machine are not to be trusted."""
    if found.narrow(spec):
        return None
    return (
        f"the machine is too noisy to tell: ratio {found.ratio:.3f}, 95 % interval {found.low:.3f} to "
        f"{found.high:.3f} after {seconds:.1f} s, {found.undisturbed} of {len(found.quiet)} blocks undisturbed "
        f"(asked: ±{100 * spec.target_rel_ci:g} %); end other programs or raise "
        f"latency.max_seconds"
    )


def compare_all(
    runtime: Runtime,
    files: list[Artifact],
    batch: int,
    threads: int,
    spec: LatencySpec,
    given: Arrays | None = None,
) -> list[Comparison]:
    """Measure every file beside file 0 until all intervals are tight or time is up; one Comparison per candidate."""
    pin(threads)
    bench = Bench(runtime, files, batch, threads, spec.seed, given)
    candidates, stopped = range(1, len(files)), ""
    while not stopped:
        bench.block()
        count, late = len(bench.levels), bench.seconds() > spec.max_seconds * len(candidates)
        if count < LEAST_BLOCKS or not (late or (count >= spec.min_blocks and count % CHECK_EVERY == 0)):
            continue
        found = [estimate(bench, candidate, spec.seed) for candidate in candidates]
        stopped = "tight" if all(each.tight(spec) for each in found) else "time" if late else ""
    seconds = bench.seconds()
    pace.note(files[0], _how(runtime, batch, threads), float(np.quantile(np.array(bench.levels)[:, 0], 0.1)))
    return [
        Comparison(
            batch=batch,
            threads=threads,
            candidate=timing(bench, candidate, each.quiet, batch),
            baseline=timing(bench, 0, each.quiet, batch),
            ratio=each.ratio,
            ratio_low=each.low,
            ratio_high=each.high,
            blocks=len(each.quiet),
            undisturbed=each.undisturbed,
            seconds=seconds,
            stopped=stopped,
            noisy=warning(each, spec, seconds),
        )
        for candidate, each in zip(candidates, found, strict=True)
    ]


def _how(runtime: Runtime, batch: int, threads: int) -> str:
    return f"{runtime.version()} batch {batch} threads {threads}"


ALLOWED = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def pin(threads: int) -> None:
    """Stay on the `threads` least busy cores, where the system allows it."""
    if not ALLOWED:
        return
    os.sched_setaffinity(0, ALLOWED)
    busy = dict(enumerate(psutil.cpu_percent(interval=0.1, percpu=True)))
    # In some containers the cores that /proc/stat lists have other numbers. Interrupts are mostly served by the first.
    os.sched_setaffinity(0, sorted(ALLOWED, key=lambda core: (busy.get(core, 0.0), -core))[:threads])


def environment(name: str, runtime: Runtime) -> dict[str, Any]:
    """Where the figures were measured, as they need it to be compared with others."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "cpu": cpu.name(),
        "cores": os.cpu_count(),
        "gpu": getattr(runtime, "gpu", str)(),
        "governor": governor.read_text().strip() if governor.exists() else "unknown",
        "load_average": os.getloadavg()[0],
        "affinity": sorted(os.sched_getaffinity(0)) if ALLOWED else None,
        "host": platform.node(),
        "runtime": Path(name).name if name.endswith(".py") else name,
        "runtime_version": runtime.version(),
        "frameworks": [module for module in ("torch", "tensorflow") if module in sys.modules],
    }


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The request's comparisons, [candidates][batch sizes x threads], and the environment."""
    values = request["spec"] | {key: tuple(request["spec"][key]) for key in ("batch", "threads")}
    spec, runtime = LatencySpec(**values), load(request["runtime"])
    files = [Artifact(Path(each["path"]), each["format"], each["sha256"]) for each in request["files"]]
    given = examples.read(Path(request["examples"])) if request.get("examples") else None
    gc.disable()
    pairs = [
        compare_all(runtime, files, batch, threads, spec, given) for batch in spec.batch for threads in spec.threads
    ]
    return {
        "comparisons": [[asdict(comparison) for comparison in each] for each in zip(*pairs, strict=True)],
        "environment": environment(request["runtime"], runtime),
    }


if __name__ == "__main__":
    process.serve(answer)
