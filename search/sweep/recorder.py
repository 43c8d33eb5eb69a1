"""Keeps MLflow in step with the sweep: what Optuna was told is logged, once, whatever happened in between."""

from __future__ import annotations

import json
from collections.abc import Sequence

from search.front import publish
from search.study.config import Config, Study
from search.study.metrics import Metrics
from search.sweep.confirmed import Confirmed
from search.sweep.sweep import Sweep
from search.tracking import writer
from search.tracking.tracking import Tracking
from search.trial.provenance import git_commit
from search.trial.record import TrialRecord
from search.trial.results import Baseline


class Log:
    """The record of one sweep. Opening it logs the trials that a killed driver had told Optuna but not MLflow.

    Trials are written by a process of its own (scribe.py), or by this one where the search has but one.
    """

    def __init__(self, config: Config, sweep: Sweep):
        self._config = config
        self._sweep = sweep
        self._tracking = Tracking(config.root, config.study.name)
        plain = config.study.model_dump(mode="json")
        self._tracking.start_sweep(
            sweep.name,
            plain,
            {"pare.git_commit": git_commit(), "pare.description": config.study.description},
            config.study.objectives,
            metrics=sweep.metrics,
        )
        self._tensorboard = config.tracking.tensorboard
        self._scribe = None
        if config.executor.name != "inline":
            self._scribe = writer.Writer(config.root, config.study.name, sweep.name, self._tensorboard)
        for record in sweep.records():
            self.trial(record)

    def trial(self, record: TrialRecord) -> None:
        """Log one finished trial; a second time changes nothing."""
        if self._scribe is not None:
            self._scribe.log(record)
        else:
            writer.write(self._tracking, self._config.root, self._sweep.name, record, self._tensorboard)

    def close(self) -> None:
        """Until every trial is written; raises TrackingError when that cannot be done."""
        if self._scribe is not None:
            self._scribe.close()
            self._scribe = None

    def finish(self, status: str, baselines: Sequence[Baseline], confirmed: Sequence[Confirmed]) -> None:
        """Log the front, its confirmation, pictures and report. `status`: finished, interrupted or failed."""
        self.close()
        if task := self._sweep.get("task"):
            self._tracking.log_task(self._sweep.name, task, self._config.root / "cache")
        if baselines:
            point = reference_point(self._config.study, self._sweep.metrics, baselines)
            self._tracking.tag_sweep(self._sweep.name, {"pare.reference_point": json.dumps(self._as_first(point))})
        self._tracking.log_confirmed(self._sweep.name, [point.to_dict() for point in confirmed])
        publish.finish(self._config.root, self._tracking, self._sweep.name, status)

    def _as_first(self, point: list[float]) -> list[float]:
        """The study's first sweep's reference point, so that volumes compare; of latency in ms this sweep's own.

        A machine's speed drifts from sweep to sweep, the ratio to its dense baseline does not.
        """
        first = self._tracking.about(self._tracking.sweeps()[0])
        names, metrics = self._config.study.objectives, self._sweep.metrics
        alike = first["objectives"] == names and first["metrics"].directions(names) == metrics.directions(names)
        if not alike or first["reference"] is None:
            return point
        own = zip(names, point, first["reference"], strict=True)
        return [now if name == "latency_ms" else was for name, now, was in own]


def reference_point(study: Study, metrics: Metrics, baselines: Sequence[Baseline]) -> list[float]:
    """The hypervolume's reference point, one value per objective: what nobody would deploy.

    A tenth worse than the largest dense fp32 file in latency and size; in each of the task's metrics worse than the
    best dense model by the `NAME_drop` that the study allows, or by the metric's tolerance if it sets no bound.
    """
    worst = {
        "latency_ms": 1.1 * max(b.latency_ms for b in baselines),
        "latency_ratio": 1.1,
        "size_bytes": 1.1 * max(b.size_bytes for b in baselines),
        "size_ratio": 1.1,
        "compression_ratio": 0.9,
    }
    for metric in metrics.task:
        allowed = [limit.bound for limit in study.limits if (limit.metric, limit.op) == (f"{metric.name}_drop", "<=")]
        values = [b.metrics[metric.name] for b in baselines]
        best = min(values) if metric.direction == "minimize" else max(values)
        drop = min(allowed, default=metric.tolerated(best))
        worst[metric.name] = best + drop if metric.direction == "minimize" else best - drop
        worst[f"{metric.name}_drop"] = drop
    return [worst.get(name, 0.0) for name in study.objectives]
