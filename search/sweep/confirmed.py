"""What confirmation found of a trial's recipe: means over fresh trainings with intervals, and the front of those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from search.front import pareto
from search.front.interval import Interval, mean_interval, pooled_interval
from search.study.constraint import Constraint
from search.study.metrics import Metrics
from search.trial.measure import latencies
from search.trial.record import TrialRecord, spelt
from search.trial.results import Baseline, Exported, Judged
from trainers.recipe import Recipe


@dataclass(frozen=True)
class Confirmed:
    """A trial's recipe after `seeds` fresh trainings.

    `metrics`: name -> (mean, low, high), the 95 % interval of the mean over seeds; `test_NAME` of the task's metrics
    among them, and `violation/CONSTRAINT`, feasible where the mean is <= 0.
    `artifacts`: the exported files, one per seed; `chosen` is the one whose first metric on validation is the median,
    to be deployed, and `own` are that file's figures.
    """

    number: int
    words: str
    seeds: int
    metrics: dict[str, Interval]
    artifacts: tuple[str, ...]
    chosen: str
    feasible: bool
    on_front: bool
    own: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as JSON takes them."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Confirmed:
        """What `to_dict` gave, or its JSON, -> Confirmed."""
        metrics = {name: (m[0], m[1], m[2]) for name, m in values["metrics"].items()}
        return Confirmed(**(values | {"metrics": metrics, "artifacts": tuple(values["artifacts"])}))


Columns = dict[str, list[float]]  # name of a figure -> its values, one per seed


def columns_of(metrics: Metrics, baseline: Baseline, built: Sequence[Exported], judged: Judged) -> Columns:
    """Every figure of one candidate's files. `judged`: of the baseline's file, then of those that were built."""
    columns: Columns = {}
    for each, test, timed in zip(built, judged.metrics[1:], judged.latencies[1:], strict=True):
        row = each.figures(baseline, metrics) | latencies(timed, baseline.latency_ms)
        row |= {f"test_{name}": value for name, value in test.items()}
        row |= metrics.drops(test, judged.metrics[0], prefix="test_")
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns


def summarize(
    limits: Sequence[Constraint],
    metrics: Metrics,
    record: TrialRecord,
    baseline: Baseline,
    built: Sequence[Exported],
    judged: Judged,
    others: Sequence[Columns] = (),
) -> Confirmed:
    """One candidate's means and intervals from its trainings and their measurements.

    `judged`: of the baseline's file, then of those that were built, one per seed. `others`: the figures of the other
    candidates that were trained with several seeds, whose spread is pooled with this one's.
    """
    columns = columns_of(metrics, baseline, built, judged)
    steps = metrics.steps(baseline.samples, judged.samples)
    seeded = Recipe.from_dict(record.recipe).seeded
    pool = [columns, *others] if seeded else []  # where nothing is trained, nothing scatters
    found = {name: _interval(metrics, name, columns[name], pool, steps.get(name, 0.0)) for name in columns}
    for name in [n for n in columns if f"{n}_low" in columns]:
        # What one measurement does not know, three that happen to agree do not know either.
        mean, low, high = found[name]
        measured_low, measured_high = (float(np.mean(columns[f"{name}_{end}"])) for end in ("low", "high"))
        found[name] = mean, min(low, measured_low), max(high, measured_high)
    found = {name: m for name, m in found.items() if not name.endswith(("_low", "_high"))}
    missed = {f"violation/{spelt(str(limit))}": _violation(limit, found[limit.metric]) for limit in limits}
    sign = -1 if metrics.minimized(metrics.first) else 1
    middle = sorted(range(len(built)), key=lambda i: sign * built[i].metrics[metrics.first])[len(built) // 2]
    return Confirmed(
        number=record.number,
        words=record.words,
        seeds=len(built),
        metrics=found | missed,
        artifacts=tuple(str(b.artifact.path) for b in built),
        chosen=str(built[middle].artifact.path),
        feasible=all(mean <= 0 for mean, _, _ in missed.values()),
        on_front=False,
        own={name: values[middle] for name, values in columns.items() if not name.endswith(("_low", "_high"))},
    )


def _interval(metrics: Metrics, name: str, values: list[float], pool: Sequence[Columns], step: float) -> Interval:
    """The mean and its interval: with the pool's spread in the metric's unit, of what is no metric of the task's as a
    share.
    """
    if not pool:
        return mean_interval(values, step)
    groups = [each[name] for each in pool if name in each]
    quality = {
        f"{prefix}{own}{suffix}" for own in metrics.quality for prefix in ("", "test_") for suffix in ("", "_drop")
    }
    relative = name not in quality and all(value > 0 for group in groups for value in group)
    return pooled_interval(values, groups, step, relative)


def _violation(limit: Constraint, interval: Interval) -> Interval:
    """How far the metric's mean is beyond the limit, and the ends of that."""
    mean, *ends = map(limit.violation, interval)
    return mean, min(ends), max(ends)


def front(points: Sequence[Confirmed], objectives: Sequence[str], metrics: Metrics) -> list[Confirmed]:
    """The points with `on_front` set: feasible and displaced by no feasible one beyond the intervals."""
    rows = [i for i, p in enumerate(points) if p.feasible]
    ends = np.array([[points[i].metrics[name] for name in objectives] for i in rows]).reshape(-1, len(objectives), 3)
    kept = pareto.noise_front(ends[:, :, 1], ends[:, :, 2], metrics.directions(objectives))
    members = {i for i, on_front in zip(rows, kept, strict=True) if on_front}
    return [replace(p, on_front=i in members) for i, p in enumerate(points)]
