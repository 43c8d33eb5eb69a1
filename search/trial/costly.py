"""Why a compressed file is slower than the dense one: the operators that cost it, by the runtime's own profiler."""

from __future__ import annotations

from pathlib import Path

from runtimes import examples, profile
from runtimes.base import Artifact, ArtifactError, LatencyError, load
from runtimes.latency import LatencyResult

RUNS, SHOWN = 20, 3


def not_faster(runtime: str, file: Artifact, dense: Artifact, inputs: Path, measured: LatencyResult) -> str:
    """ "" unless the whole interval of the file's latency lies above the dense one's; else how slow, and what costs it.

    `inputs`: the `.npz` that latency is measured on. The operators are listed with the milliseconds that each kind
    takes more in this file; a runtime without a profiler gives none.
    """
    first = measured.comparisons[0]
    if first.ratio_low <= 1.0:
        return ""
    found = f"{first.ratio:.2f} times the time of the dense fp32 file"
    costs = _costs(runtime, file, dense, inputs)
    return f"{found}: {', '.join(costs)}" if costs else found


def _costs(runtime: str, file: Artifact, dense: Artifact, inputs: Path) -> list[str]:
    try:
        session = load(runtime).load(dense, 1)
        given = examples.inputs(session.inputs, examples.read(inputs), 1)
        times = [profile.by_type(profile.profile(runtime, each, given, runs=RUNS)) for each in (file, dense)]
    except (ValueError, ArtifactError, LatencyError):  # no profiler, or one that cannot take this file
        return []
    more = {kind: ms - times[1].get(kind, 0.0) for kind, ms in times[0].items()}
    largest = sorted((kind for kind in more if more[kind] > 0), key=lambda kind: -more[kind])[:SHOWN]
    return [f"{kind} +{more[kind]:.3f} ms" for kind in largest]
