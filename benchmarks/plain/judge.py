"""Files of both searches judged alike: one scorer, size as downloaded, latency interleaved in one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.plain import figures
from benchmarks.plain.figures import Settled
from benchmarks.plain.runs import Setup
from runtimes import latency
from runtimes.architecture import architecture_of
from runtimes.base import Artifact
from search.trial.evaluate import score
from search.trial.measure import latency_spec
from search.trial.results import Baseline
from tasks.load import load

RUNTIME = "onnxruntime"


def judge(setup: Setup, stored: dict[str, Any], searches: dict[str, list[Settled]]) -> dict[str, Any]:
    """What each search announced, judged: its curve on validation, its last front on the test split.

    Only files that stood on a search's own front when they were settled are judged; latency is measured once per
    architecture, all of both searches interleaved.
    """
    config = setup.config()
    baseline = Baseline.restore(stored)
    if baseline is None:
        raise RuntimeError(f"{setup.root}: the dense model's files are gone; remove the folder and start again")
    limit = max((each.bound for each in config.study.limits if each.metric == "accuracy_drop"), default=1.0)
    least = baseline.metrics["accuracy"] - limit
    shown = {name: figures.announced(trials, least) for name, trials in searches.items()}
    files = sorted({searches[name][i].file for name, indices in shown.items() for i in indices})
    timed = _timed([baseline.artifact.path, *map(Path, files)], baseline, config)
    task = load(config.task, setup.root / "cache", lambda stage, share: None)
    judged = {file: _scored(Path(file), task, timed[str(file)], baseline) for file in files}
    dense_test = score(RUNTIME, baseline.artifact, task, task.data("test"))[0]["accuracy"]
    found: dict[str, Any] = {
        "dense": {"accuracy": baseline.metrics["accuracy"], "test_accuracy": dense_test, "least": least}
    }
    for name, trials in searches.items():
        front = [judged[trials[i].file] for i in figures.last_front(trials, least)]
        at, points = [trials[i].at for i in shown[name]], [_point(judged[trials[i].file]) for i in shown[name]]
        tested = [(each["test_accuracy"], each["latency_ratio"], each["size_ratio"]) for each in front]
        found[name] = {
            "counts": figures.counted(trials),
            "curve": figures.curve(at, points, least),
            "test_share": figures.share(tested, dense_test - limit),
            "front": front,
        }
    return found


def _point(figure: dict[str, Any]) -> tuple[float, float, float]:
    return figure["accuracy"], figure["latency_ratio"], figure["size_ratio"]


def _timed(files: Sequence[Path], baseline: Baseline, config: Any) -> dict[str, tuple[float, float, float]]:
    """File -> ratio to the dense file with its 95 % interval."""
    artifacts = {str(file): Artifact.of(file) for file in files}
    kinds = {name: architecture_of(artifact, RUNTIME) for name, artifact in artifacts.items()}
    first = {kind: artifacts[name] for name, kind in reversed(kinds.items())}
    found = latency.measure_many(
        RUNTIME, list(first.values()), baseline.artifact, latency_spec(config.study), baseline.examples
    )
    by_kind = dict(zip(first, (each.comparisons[0] for each in found), strict=True))
    return {
        name: (by_kind[kind].ratio, by_kind[kind].ratio_low, by_kind[kind].ratio_high) for name, kind in kinds.items()
    }


def _scored(file: Path, task: Any, ratio: tuple[float, float, float], baseline: Baseline) -> dict[str, Any]:
    artifact, test = Artifact.of(file), task.data("test")
    tested = score(RUNTIME, artifact, task, test)[0]["accuracy"]
    return {
        "file": str(file),
        "accuracy": score(RUNTIME, artifact, task, task.data("validation"))[0]["accuracy"],
        "test_accuracy": tested,
        "test_interval": figures.wilson(tested, len(test)),
        "latency_ratio": ratio[0],
        "latency_interval": ratio[1:],
        "size_ratio": artifact.size_bytes() / baseline.size_bytes,
    }
