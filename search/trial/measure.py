"""How a study measures latency, what the figures are called, and which of them compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packing import measure
from runtimes import latency
from runtimes.base import Artifact
from runtimes.latency import LatencyError
from search.study.config import Study

# Of the environment a latency was measured in: figures of other hardware, or another runtime, do not compare.
HARDWARE = ("cpu", "cores", "gpu", "runtime", "runtime_version")


def same_hardware(here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Raise LatencyError when figures of `here` do not compare with the baseline's, which was measured `there`."""
    # What was measured before there was a word for the GPU was measured without one.
    if differing := [key for key in HARDWARE if (here.get(key) or None) != (there.get(key) or None)]:
        said = "; ".join(f"{key} {here.get(key)!r}, the baseline's {there.get(key)!r}" for key in differing)
        raise LatencyError(
            f"latency: measured on {here.get('host')}, which is not like {there.get('host')}, where the baseline was "
            f"measured: {said}; use identical hosts, or start a new sweep with fresh=true"
        )


def latency_spec(study: Study) -> latency.LatencySpec:
    """How the study measures latency."""
    said = study.latency
    return latency.LatencySpec(
        batch=tuple(said.batch),
        threads=tuple(said.threads),
        target_rel_ci=said.target_rel_ci,
        max_seconds=said.max_seconds,
        seed=study.seed,
    )


def counted(artifact: Artifact, study: Study) -> dict[str, float]:
    """The file's bytes and nonzero weights; bytes to download where the study asks for them, since packing takes time.

    Raises ArtifactError when the file is no longer what was made.
    """
    file = artifact.read()
    found = {"unpacked_bytes": float(len(file))}
    if (weights := measure.nonzeros(file)) is not None:
        found["nonzeros"] = float(weights)
    if study.packed:
        found["download_bytes"] = float(measure.download_bytes(file, study.coder))
    return found


def latencies(found: latency.LatencyResult, baseline_ms: float) -> dict[str, float]:
    """The study's latency figures with their 95 % intervals, then those of further batch sizes and threads."""
    metrics: dict[str, float] = {}
    for index, each in enumerate(found.comparisons):
        suffix = f"/batch{each.batch}_threads{each.threads}" if index else ""
        ends = {"": each.ratio, "_low": each.ratio_low, "_high": each.ratio_high}
        metrics |= {f"latency_ratio{suffix}{end}": ratio for end, ratio in ends.items()}
        if not index:
            metrics |= {f"latency_ms{end}": ratio * baseline_ms for end, ratio in ends.items()}
        metrics |= {
            f"latency_p50_ms{suffix}": each.candidate.p50_ms,
            f"latency_p95_ms{suffix}": each.candidate.p95_ms,
            f"latency_iqr_ms{suffix}": each.candidate.iqr_ms,
            f"throughput{suffix}": each.candidate.throughput,
        }
    return metrics
