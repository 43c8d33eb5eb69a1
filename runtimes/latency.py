"""How fast an exported file is beside its baseline: measured in a process of its own, both interleaved.

The process imports the runtime and nothing of a training framework (`runtimes/interleave.py`); the host is quiet
meanwhile (`runtimes/quiet.py`).
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtimes import foreign, process, quiet
from runtimes.base import Artifact, ArtifactError, format_of
from runtimes.base import LatencyError as LatencyError

MODULE = "runtimes.interleave"
NARROWEST = 0.015  # a little above what BETWEEN_PROCESSES leaves of any interval
LEAST_BLOCKS = 5  # below that an interval says nothing


@dataclass(frozen=True)
class LatencySpec:
    """What to measure and when to stop.

    Every batch size is measured with every number of threads; the study's figures are those of the first of each.
    A measurement stops when the half-width of the ratio's 95 % interval is at most `target_rel_ci` of the ratio
    (from `min_blocks` blocks on), or after `max_seconds` for each candidate, batch size and number of threads.
    """

    batch: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (1,)
    target_rel_ci: float = 0.03
    max_seconds: float = 4.0
    min_blocks: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in (("batch", self.batch), ("threads", self.threads)):
            if not values or any(value < 1 for value in values):
                raise ValueError(f"latency.{name}: {list(values)} must hold whole numbers of at least 1")
        if not NARROWEST <= self.target_rel_ci < 1:
            raise ValueError(
                f"latency.target_rel_ci: {self.target_rel_ci} must lie between {NARROWEST} (two processes that run "
                f"the same file differ by that) and 1, such as 0.03"
            )
        if self.max_seconds <= 0:
            raise ValueError(f"latency.max_seconds: {self.max_seconds} must be above 0 seconds")
        if self.min_blocks < LEAST_BLOCKS:
            raise ValueError(f"latency.min_blocks: {self.min_blocks} must be at least {LEAST_BLOCKS}")


@dataclass(frozen=True)
class Timing:
    """Single calls of one file in undisturbed blocks: percentiles in ms, `throughput` in inputs per second."""

    p50_ms: float
    p95_ms: float
    iqr_ms: float
    throughput: float


@dataclass(frozen=True)
class Comparison:
    """Candidate and baseline at one batch size and number of threads.

    `ratio`: candidate over baseline with its 95 % interval. `blocks`: how many were measured; `undisturbed` of them
    count. `stopped`: tight or time. `noisy`: the warning, in words, when the machine was too noisy to tell.
    """

    batch: int
    threads: int
    candidate: Timing
    baseline: Timing
    ratio: float
    ratio_low: float
    ratio_high: float
    blocks: int
    undisturbed: int
    seconds: float
    stopped: str
    noisy: str | None


@dataclass(frozen=True)
class LatencyResult:
    """One candidate's comparisons, the study's first, and where they were measured.

    `environment` also says with how many `threads` the first was measured and why it `stopped`.
    """

    comparisons: tuple[Comparison, ...]
    environment: dict[str, Any]

    @property
    def latency_ms(self) -> float:
        """Median of one call, in ms."""
        return self.comparisons[0].candidate.p50_ms

    @property
    def latency_ratio(self) -> float:
        """Candidate over baseline: below 1 is faster."""
        return self.comparisons[0].ratio

    @property
    def noisy(self) -> list[str]:
        """Every warning."""
        return [comparison.noisy for comparison in self.comparisons if comparison.noisy]

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as JSON takes them."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> LatencyResult:
        """What `to_dict` gave -> LatencyResult."""
        comparisons = [
            Comparison(**(made | {side: Timing(**made[side]) for side in ("candidate", "baseline")}))
            for made in values["comparisons"]
        ]
        return LatencyResult(tuple(comparisons), values["environment"])


def measure(
    runtime: str,
    candidate: Artifact,
    baseline: Artifact,
    spec: LatencySpec | None = None,
    examples: Path | None = None,
) -> LatencyResult:
    """Latency of `candidate` beside `baseline`, both loaded by `runtime`; waits until the host is quiet.

    `examples`: a `.npz` of valid inputs by name, in the task's layout, that both files are timed on; rows are repeated
    where the batch has more. Without it random floats, for files that take nothing else.
    Raises ArtifactError for a file that does not load or run, LatencyError when the measuring process fails or the
    inputs do not fit.
    """
    return measure_many(runtime, [candidate], baseline, spec, examples)[0]


def measure_many(
    runtime: str,
    candidates: Sequence[Artifact],
    baseline: Artifact,
    spec: LatencySpec | None = None,
    examples: Path | None = None,
) -> list[LatencyResult]:
    """The same for several candidates, all interleaved in one run: one result each, in their order."""
    spec = spec or LatencySpec()
    wanted = format_of(runtime)
    for artifact in (*candidates, baseline):
        if artifact.format != wanted:
            raise ArtifactError(f"{artifact.path}: {runtime} loads .{wanted} files, not .{artifact.format}")
    files = [
        {"path": str(each.path.resolve()), "format": each.format, "sha256": each.sha256}
        for each in (baseline, *candidates)
    ]
    limit = 60 + 20 * spec.max_seconds * len(candidates) * len(spec.batch) * len(spec.threads)
    request = {"runtime": foreign.resolved(runtime), "files": files, "spec": asdict(spec)}
    if examples is not None:
        request["examples"] = str(examples.resolve())
    with quiet.measuring():
        answer = _ask(request, limit)
    return [
        LatencyResult.from_dict(
            {
                "comparisons": each,
                "environment": answer["environment"] | {k: each[0][k] for k in ("threads", "stopped")},
            }
        )
        for each in answer["comparisons"]
    ]


_warmed: subprocess.Popen[str] | None = None  # has imported its runtime and waits for a request


def warm(runtime: str) -> None:
    """Start the process of the next measurement; returns when it has imported the runtime.

    To be called inside `quiet.training()`: its imports then disturb no measurement and keep nobody from training.
    """
    global _warmed
    if _warmed is None or _warmed.poll() is not None:
        _warmed = process.start(MODULE, foreign.resolved(runtime))
        assert _warmed.stdout is not None
        _warmed.stdout.readline()


def _ask(request: dict[str, Any], limit: float) -> dict[str, Any]:
    """Have a measuring process carry out the request within `limit` seconds."""
    global _warmed
    measuring, _warmed = _warmed, None
    if measuring is None or measuring.poll() is not None:
        measuring = process.start(MODULE)
    return process.ask(measuring, request, limit)
