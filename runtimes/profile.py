"""Where the time of one call goes, operator by operator: `profile("onnxruntime", artifact, inputs)`.

Measured in a process of its own while the host is quiet, with the runtime's own profiler. That takes time itself, some
microseconds an operator, so the sum is above the latency that `latency.measure` gives: it says where, not how much.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtimes import foreign, process, quiet
from runtimes.base import Artifact, ArtifactError, format_of, load
from tasks.base import Arrays

MODULE = "runtimes.profile"
MAX_SECONDS, LEAST_RUNS = 20.0, 3


@dataclass(frozen=True)
class OperatorTime:
    """One operator of the graph as the runtime runs it, after its own fusions.

    `name`: the file's, where the runtime kept it. `weights`: name of the stored tensor that it multiplies with, ""
    where there is none or it was renamed. `kernel`: execution provider or implementation. `ms` per call, `share` of the
    whole call in [0, 1]. `integer`: whether it computes on integers; what converts to and from them does not.
    """

    name: str
    type: str
    kernel: str
    ms: float
    share: float
    integer: bool
    weights: str = ""


def profile(runtime: str, artifact: Artifact, inputs: Arrays, threads: int = 1, runs: int = 50) -> list[OperatorTime]:
    """The operators in the order in which they run, over at most `runs` calls or 20 seconds.

    `inputs`: valid ones, by the task's names and in its layout; their rows are the batch. Raises ValueError for a
    runtime that has no profiler, ArtifactError for a file that does not load or run, LatencyError when the process
    fails or the inputs do not fit.
    """
    wanted = format_of(runtime)
    if artifact.format != wanted:
        raise ArtifactError(f"{artifact.path}: {runtime} loads .{wanted} files, not .{artifact.format}")
    if runs < 1 or threads < 1:
        raise ValueError(f"profile: runs {runs} and threads {threads} must be at least 1")
    file = {"path": str(artifact.path.resolve()), "format": artifact.format, "sha256": artifact.sha256}
    with tempfile.TemporaryDirectory() as folder:
        examples = Path(folder, "inputs.npz")
        arrays: dict[str, Any] = dict(inputs)
        np.savez(examples, **arrays)
        request = {
            "runtime": foreign.resolved(runtime),
            "file": file,
            "inputs": str(examples),
            "threads": threads,
            "runs": runs,
        }
        with quiet.measuring():
            found = process.ask(process.start(MODULE), request | {"folder": folder}, 60 + 10 * MAX_SECONDS, "profile")
    if found["operators"] is None:
        raise ValueError(f"runtime: {runtime!r} has no profiler; choose one that has, such as onnxruntime or openvino")
    return [OperatorTime(**each) for each in found["operators"]]


def integer_share(times: Iterable[OperatorTime]) -> float:
    """The part of the time, in [0, 1], that operators on integers take; NaN for none."""
    listed = list(times)
    whole = sum(each.ms for each in listed)
    return sum(each.ms for each in listed if each.integer) / whole if whole else float("nan")


def by_type(times: Iterable[OperatorTime]) -> dict[str, float]:
    """Milliseconds a call by type of operator, the longest first."""
    total: dict[str, float] = {}
    for each in times:
        total[each.type] = total.get(each.type, 0.0) + each.ms
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def shared(times: Sequence[OperatorTime]) -> list[OperatorTime]:
    """The same with each operator's share of the sum."""
    whole = sum(each.ms for each in times) or 1.0
    return [replace(each, share=each.ms / whole) for each in times]


def repeat(call: Callable[[], object], runs: int) -> None:
    """At most `runs` calls, fewer when they take long."""
    until = time.perf_counter() + MAX_SECONDS
    for count in range(runs):
        if count >= LEAST_RUNS and time.perf_counter() > until:
            return
        call()


def typical_ms(taken: Sequence[float]) -> float:
    """Mean of the faster three quarters of an operator's times: profilers count in whole microseconds."""
    kept = sorted(taken)[: max(1, round(0.75 * len(taken)))]
    return float(np.mean(kept))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """In the process: the operators of the request's file, none where the runtime has no profiler."""
    from runtimes import examples
    from runtimes.interleave import pin

    runtime, file = load(request["runtime"]), request["file"]
    if not hasattr(runtime, "operators"):
        return {"operators": None}
    artifact = Artifact(Path(file["path"]), file["format"], file["sha256"])
    threads, runs = request["threads"], request["runs"]
    pin(threads)
    session = runtime.load(artifact, threads)
    given = examples.whole(session.inputs, examples.read(Path(request["inputs"])))
    found = runtime.operators(artifact, given, threads, runs, Path(request["folder"]))
    return {"operators": [asdict(each) for each in shared(found)]}


if __name__ == "__main__":
    process.serve(answer)
