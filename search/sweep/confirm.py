"""The front, confirmed: its recipes trained again with fresh seeds, measured side by side, judged on the test split.

A search picks the luckiest of many noisy trials. What is deployed must hold on the next day, so the table shows
these means with their intervals, and beside them what the search had promised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from runtimes.base import Artifact
from search.errors import SweepError, reason
from search.executors.base import Executor, Work, run_all
from search.front import pareto
from search.study.config import Config, Confirm
from search.study.constraint import Constraint
from search.study.metrics import Metrics
from search.sweep.display import Display
from search.sweep.sweep import Sweep
from search.trial import objective
from search.trial.measure import latencies
from search.trial.record import TrialRecord, spelt
from search.trial.results import Baseline, Exported, Judged
from trainers.recipe import Recipe

Interval = tuple[float, float, float]  # mean, low, high


@dataclass(frozen=True)
class Confirmed:
    """A trial's recipe after `seeds` fresh trainings.

    `metrics`: name -> (mean, low, high), the 95 % interval of the mean over seeds; `test_NAME` of the task's metrics
    among them, and `violation/CONSTRAINT`, feasible where the mean is <= 0.
    `artifacts`: the exported files, one per seed; `chosen` is the one whose first metric on validation is the median,
    to be deployed.
    """

    number: int
    words: str
    seeds: int
    metrics: dict[str, Interval]
    artifacts: tuple[str, ...]
    chosen: str
    feasible: bool
    on_front: bool

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as JSON takes them."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Confirmed:
        """What `to_dict` gave, or its JSON, -> Confirmed."""
        metrics = {name: (m[0], m[1], m[2]) for name, m in values["metrics"].items()}
        return Confirmed(**(values | {"metrics": metrics, "artifacts": tuple(values["artifacts"])}))


def mean_interval(values: Sequence[float], resolution: float = 0.0) -> Interval:
    """(mean, low, high): Student's 95 % interval of the mean, at least `resolution` to either side.

    Few seeds can agree by chance to the last digit; `resolution` is the step the figure is counted in.
    """
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, mean - resolution, mean + resolution
    half = float(stats.t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    half = max(half, resolution)
    return mean, mean - half, mean + half


def candidates(
    records: Sequence[TrialRecord], objectives: Sequence[str], settings: Confirm, metrics: Metrics
) -> list[TrialRecord]:
    """The front of the feasible trials and its nearest neighbours, as many as `settings` says, by number.

    A neighbour lies just behind the front by the sum of its distances to the nearest front point, each scaled by
    the front's extent: one that may have had bad luck. Without a feasible trial: those that miss the constraints
    least, since confirmed values decide.
    """
    measured = _distinct([r for r in records if r.state == "complete"])
    usable = [r for r in measured if r.feasible]
    if not usable:
        return _nearly_feasible(measured, min(1 + settings.neighbours, settings.candidates or len(measured)))
    values = np.array([[r.metrics[name] for name in objectives] for r in usable])
    costs = pareto.costs(values, metrics.directions(objectives))
    on_front = pareto.front(costs, ["minimize"] * len(objectives))
    extent = np.ptp(costs[on_front], axis=0)
    scaled = costs / np.where(extent > 0, extent, 1.0)
    behind = np.maximum(scaled[:, None] - scaled[on_front][None], 0.0).sum(axis=2).min(axis=1)
    most = settings.candidates or int(on_front.sum()) + settings.neighbours
    first = _spread(np.flatnonzero(on_front), scaled, most)
    rest = [i for i in np.argsort(behind, kind="stable") if not on_front[i]]
    chosen = [*first, *rest][:most]
    return [usable[i] for i in sorted(chosen)]


def _nearly_feasible(measured: list[TrialRecord], most: int) -> list[TrialRecord]:
    """`most` of them, those that miss the constraints least, by number."""
    chosen, left = list[TrialRecord](), list(measured)
    while left and len(chosen) < most:
        index = pareto.nearest_feasible(np.array([list(r.violations.values()) for r in left]))
        if index is None:
            break
        chosen.append(left.pop(index))
    return sorted(chosen, key=lambda r: r.number)


def _distinct(records: list[TrialRecord]) -> list[TrialRecord]:
    seen: dict[str, TrialRecord] = {}
    for record in records:
        seen.setdefault(Recipe.from_dict(record.recipe).digest(), record)
    return list(seen.values())


def _spread(members: np.ndarray, scaled: np.ndarray, most: int) -> list[int]:
    """`most` of the front's members: the best in each objective, the knee, then always the one farthest from those."""
    points = scaled[members]
    chosen = list(dict.fromkeys(int(i) for i in points.argmin(axis=0)))
    knee = pareto.knee(points, ["minimize"] * points.shape[1])
    if knee is not None and knee not in chosen:
        chosen.append(knee)
    while len(chosen) < min(most, len(points)):
        away = np.linalg.norm(points[:, None] - points[chosen][None], axis=2).min(axis=1)
        away[chosen] = -1.0
        chosen.append(int(away.argmax()))
    return [int(members[i]) for i in chosen[:most]]


def reseeded(record: TrialRecord, seed: int) -> Recipe:
    """The trial's recipe with another seed."""
    return replace(Recipe.from_dict(record.recipe), seed=seed)


def summarize(
    limits: Sequence[Constraint],
    metrics: Metrics,
    record: TrialRecord,
    baseline: Baseline,
    built: Sequence[Exported],
    judged: Judged,
) -> Confirmed:
    """One candidate's means and intervals from its trainings and their measurements.

    `judged`: of the baseline's file, then of those that were built, one per seed.
    """
    columns: dict[str, list[float]] = {}
    for each, test, timed in zip(built, judged.metrics[1:], judged.latencies[1:], strict=True):
        row = each.figures(baseline, metrics) | latencies(timed, baseline.latency_ms)
        row |= {f"test_{name}": value for name, value in test.items()}
        row |= metrics.drops(test, judged.metrics[0], prefix="test_")
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    steps = metrics.steps(baseline.samples, judged.samples)
    found = {name: mean_interval(values, steps.get(name, 0.0)) for name, values in columns.items()}
    for name in [n for n in columns if f"{n}_low" in columns]:
        # What one measurement does not know, three that happen to agree do not know either.
        mean, low, high = found[name]
        measured_low, measured_high = (float(np.mean(columns[f"{name}_{end}"])) for end in ("low", "high"))
        found[name] = mean, min(low, measured_low), max(high, measured_high)
    found = {name: m for name, m in found.items() if not name.endswith(("_low", "_high"))}
    missed = {f"violation/{spelt(str(limit))}": _violation(limit, found[limit.metric]) for limit in limits}
    sign = -1 if metrics.minimized(metrics.first) else 1
    middle = sorted(built, key=lambda b: sign * b.metrics[metrics.first])[len(built) // 2]
    return Confirmed(
        number=record.number,
        words=record.words,
        seeds=len(built),
        metrics=found | missed,
        artifacts=tuple(str(b.artifact.path) for b in built),
        chosen=str(middle.artifact.path),
        feasible=all(mean <= 0 for mean, _, _ in missed.values()),
        on_front=False,
    )


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


class Confirmation:
    """Confirms a sweep's front through its executor. What is trained is stored with the sweep: a kill costs little."""

    def __init__(
        self, config: Config, sweep: Sweep, executor: Executor, display: Display, baselines: dict[str, Baseline]
    ):
        self._config = config
        self._sweep = sweep
        self._executor = executor
        self._display = display
        self._baselines = baselines
        self._built: dict[int, Exported] = {}

    def run(self, records: Sequence[TrialRecord]) -> list[Confirmed]:
        """Confirm the front of `records` and its neighbours. Raises SweepError when the machine is at fault."""
        study = self._config.study
        chosen = candidates(records, study.objectives, study.confirm, self._sweep.metrics)
        return self.confirm(chosen) if chosen else []

    def confirm(self, chosen: Sequence[TrialRecord]) -> list[Confirmed]:
        """Train these again, measure them side by side and judge them on the test split."""
        settings, study, metrics = self._config.study.confirm, self._config.study, self._sweep.metrics
        self._display.say(
            f"confirming {len(chosen)} candidates with {settings.seeds} fresh seeds each, then the test split"
        )
        repeats = [(record, repeat) for record in chosen for repeat in range(settings.seeds)]
        self._train(repeats)
        points = []
        for name in dict.fromkeys(_baseline_name(record) for record in chosen):
            mine = [i for i, (r, _) in enumerate(repeats) if _baseline_name(r) == name and i in self._built]
            baseline = self._baselines[name]
            judged = self._judge(name, [baseline.artifact, *(self._built[i].artifact for i in mine)], baseline)
            for record in chosen:
                own = [i for i in mine if repeats[i][0] is record]
                if own:
                    at = [0, *(1 + mine.index(i) for i in own)]
                    built = [self._built[i] for i in own]
                    points.append(summarize(study.limits, metrics, record, baseline, built, judged.of(at)))
        return front(sorted(points, key=lambda p: p.number), study.objectives, metrics)

    def _train(self, repeats: Sequence[tuple[TrialRecord, int]]) -> None:
        files = self._config.root / "trials" / self._sweep.name
        works = []
        for index, (record, repeat) in enumerate(repeats):
            recipe = reseeded(record, self._config.study.confirm.first_seed + repeat)
            kept = self._sweep.get(_stored_as(recipe))
            if kept is not None and (built := Exported.restore(kept)) is not None:
                self._built[index] = built
                continue
            baseline = self._baselines[_baseline_name(record)]
            teacher = self._baselines.get(recipe.distillation.teacher, baseline)
            folder = files / f"confirm-{record.number:04d}-{recipe.seed}"
            args = (self._config, recipe, baseline, teacher, folder)
            works.append(Work(index, recipe.trainer, objective.build, args))
        self._display.phase("confirm", len(repeats), len(self._built))
        run_all(self._executor, works, self._begin, self._end, lambda event: self._display.progress(*event))

    def _begin(self, work: Work) -> None:
        self._display.started(work.key, f"again: {work.args[1].describe()}, seed {work.args[1].seed}")

    def _end(self, work: Work, future: Future[Any]) -> None:
        self._display.finished(work.key)
        self._display.advance()
        if error := future.exception():
            self._display.say(f"  {work.args[1].describe()}: one training again FAILED: {reason(error)}")
            return
        self._built[work.key] = future.result()
        self._sweep.put(_stored_as(work.args[1]), future.result().to_dict())

    def _judge(self, name: str, files: list[Artifact], baseline: Baseline) -> Judged:
        outcome: list[Future[Any]] = []
        place = baseline.task.places.get("test")
        split = self._config.root / "cache" / place if place else None
        work = Work(-1, baseline.spec.trainer, objective.judge, (self._config, split, files, baseline))
        run_all(
            self._executor,
            [work],
            lambda w: self._display.started(w.key, f"{name}: {len(files)} files side by side"),
            lambda w, future: outcome.append(future),
            lambda event: self._display.progress(*event),
        )
        self._display.finished(work.key)
        if error := outcome[0].exception():
            raise SweepError(f"the front could not be confirmed: {reason(error)}") from error
        judged: Judged = outcome[0].result()
        if noisy := sum(bool(measured.noisy) for measured in judged.latencies):
            self._display.say(
                f"  {noisy} of {len(files)} latency intervals are wider than study.latency.target_rel_ci, since the "
                "machine is noisy; re-confirm on a quieter one with study.confirm.first_seed=N"
            )
        return judged


def _baseline_name(record: TrialRecord) -> str:
    return f"{record.recipe['trainer']}/{record.recipe['model']}"


def _stored_as(recipe: Recipe) -> str:
    return f"confirm {recipe.digest()}"
