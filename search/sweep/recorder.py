"""Keeps MLflow in step with the sweep: what Optuna was told is logged, once, whatever happened in between."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.study.config import Config
from search.sweep.confirmed import Confirmed
from search.sweep.reference import reference_point
from search.sweep.sweep import Sweep
from search.tracking import writer
from search.trial.provenance import git_commit
from search.trial.record import TrialRecord
from search.trial.results import Baseline

if TYPE_CHECKING:
    from search.front.summary import Summary
    from search.tracking.tracking import Tracking

TABLE = "table"  # the front as the terminal shows it: a finished sweep shows it again without reading its record


class Log:
    """The record of one sweep. Opening it logs the trials that a killed driver had told Optuna but not MLflow.

    Trials are written by a process of its own (tracking/writer.py), or by this one where the search has but one.
    """

    def __init__(self, config: Config, sweep: Sweep):
        self._config = config
        self._sweep = sweep
        self._tensorboard = config.tracking.tensorboard
        start: dict[str, Any] = {
            "config": config.study.model_dump(mode="json"),
            "tags": {"pare.git_commit": git_commit(), "pare.description": config.study.description},
            "objectives": config.study.objectives,
            "metrics": sweep.metrics,
        }
        self._start: dict[str, Any] | None = start
        self._writer: writer.Writer | None = None
        for record in sweep.records():
            self.trial(record)

    def begin(self) -> None:
        """Open the record, if it is not open: MLflow takes seconds to import, which the first trials need not share."""
        if self._start is None:
            return
        start, self._start = self._start, None
        if self._config.executor.name == "inline":
            self._opened().start_sweep(self._sweep.name, **start)
        else:
            root, study = self._config.root, self._config.study.name
            self._writer = writer.Writer(root, study, self._sweep.name, self._tensorboard, start)

    @functools.cache  # noqa: B019 — one per sweep, kept as long as the process
    def _opened(self) -> Tracking:
        from search.tracking.tracking import Tracking  # MLflow takes seconds, in which the first trials run

        return Tracking(self._config.root, self._config.study.name)

    def trial(self, record: TrialRecord) -> None:
        """Log one finished trial; a second time changes nothing."""
        self.begin()
        if self._writer is not None:
            self._writer.log(record)
        else:
            writer.write(self._opened(), self._config.root, self._sweep.name, record, self._tensorboard)

    def check(self) -> None:
        """Raise TrackingError when the record cannot be written."""
        if self._writer is not None:
            self._writer.check()

    def close(self) -> None:
        """Until every trial is written; raises TrackingError when that cannot be done."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def finish(self, status: str, baselines: Sequence[Baseline], confirmed: Sequence[Confirmed]) -> None:
        """Log the front, its confirmation, pictures and report. `status`: finished, interrupted or failed."""
        from search.front import publish
        from search.front.tables import listing

        self.begin()
        self.close()
        tracking = self._opened()
        if task := self._sweep.get("task"):
            tracking.log_task(self._sweep.name, task, self._config.root / "cache")
        if baselines:
            point = reference_point(self._config.study, self._sweep.metrics, baselines)
            tracking.tag_sweep(self._sweep.name, {"pare.reference_point": json.dumps(self._as_first(tracking, point))})
        tracking.log_confirmed(self._sweep.name, [point.to_dict() for point in confirmed])
        layers = functools.partial(self._layers, baselines, confirmed) if baselines else None
        summary = publish.finish(self._config.root, tracking, self._sweep.name, status, layers)
        self._sweep.put(TABLE, listing(summary).to_dict())

    def _layers(
        self, baselines: Sequence[Baseline], confirmed: Sequence[Confirmed], summary: Summary, into: Path
    ) -> None:
        from search.sweep import layers

        if not self._config.tracking.layers or self._config.executor.name == "ray":
            return
        chosen = {point.number: point.chosen for point in confirmed if point.on_front}
        front = set(map(int, summary.front["number"]))
        found = {
            record.number: (f"{record.recipe['trainer']}/{record.recipe['model']}", Path(path))
            for record in self._sweep.records()
            if record.number in front and (path := chosen.get(record.number) or record.artifact)
        }
        layers.measure(self._config, baselines, found, into)

    def _as_first(self, tracking: Tracking, point: list[float]) -> list[float]:
        """The study's first sweep's reference point, so that volumes compare; of latency in ms this sweep's own.

        A machine's speed drifts from sweep to sweep, the ratio to its dense baseline does not.
        """
        first = tracking.about(tracking.sweeps()[0])
        names, metrics = self._config.study.objectives, self._sweep.metrics
        alike = first["objectives"] == names and first["metrics"].directions(names) == metrics.directions(names)
        if not alike or first["reference"] is None:
            return point
        own = zip(names, point, first["reference"], strict=True)
        return [now if name == "latency_ms" else was for name, now, was in own]
