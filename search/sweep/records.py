"""What is recorded of a trial that has ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from search.sweep.sweep import PendingTrial
from search.trial.provenance import git_commit
from search.trial.record import SHORT, TrialRecord
from search.trial.results import Baseline, Outcome

SECONDS = "short schedule"  # the stage that all its time is recorded as


def failed(asked: PendingTrial, baseline: Baseline, words: str, reason: str = "unknown") -> TrialRecord:
    """Of a trial that gave nothing; the others are made of it."""
    recipe = asked.recipe
    return TrialRecord(
        number=asked.number,
        state="failed",
        reason=reason,
        start_ms=asked.start_ms,
        end_ms=_end(asked),
        words=words,
        recipe=recipe.to_dict(),
        params=recipe.flat(),
        metrics={f"{SHORT}{name}": value for name, value in (asked.short or {}).items()},
        stages={SECONDS: asked.short_seconds} if asked.short_seconds else {},
        feasible=False,
        reference=asked.reference,
        versions=baseline.versions,
        git_commit=git_commit(),
        data_digest=baseline.data_digest,
    )


def complete(base: TrialRecord, outcome: Outcome, violations: Mapping[str, float]) -> TrialRecord:
    """Of a trial that was trained and measured. What its time was spent on besides the worker's stages: `platform`."""
    stages = {**base.stages, **outcome.stages}
    seconds = (base.end_ms - base.start_ms) / 1000
    return replace(
        base,
        state="complete",
        reason=None,
        metrics={**outcome.metrics, **base.metrics},
        feasible=all(v <= 0 for v in violations.values()),
        violations=dict(violations),
        stages={**stages, "platform": max(0.0, seconds - sum(stages.values()))},
        system=outcome.system,
        curves=outcome.curves,
        artifact=str(outcome.artifact.path),
        environment=outcome.environment,
    )


def copied(known: TrialRecord, asked: PendingTrial) -> TrialRecord:
    """Of a trial whose recipe was run before: equal recipes give equal files."""
    return replace(
        known,
        number=asked.number,
        reference=asked.reference,
        duplicate_of=known.number if known.duplicate_of is None else known.duplicate_of,
        start_ms=asked.start_ms,
        end_ms=_end(asked),
        stages={},
        system={},
        curves=[],
    )


def _end(asked: PendingTrial) -> int:
    return max(int(time.time() * 1000), asked.start_ms)
