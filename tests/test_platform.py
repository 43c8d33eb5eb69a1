"""Many short trials through the real driver, workers, storage and record: nothing lost, nothing doubled."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks import planted, platform
from search.sweep.sweep import Sweep
from search.tracking.tracking import Tracking
from search.trial import objective
from trainers.recipe import Recipe

TRIALS = 60


def test_sixty_trials_on_eight_workers_are_told_and_logged_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "evaluate", planted.evaluate)
    monkeypatch.setattr(objective, "prepare", planted.prepare)
    config = planted.config(root, TRIALS, 8)
    sweep, clock = platform.search(config)
    records = sweep.records()
    assert [record.number for record in records] == list(range(TRIALS))
    for record in records:
        assert record.metrics == planted.surface(Recipe.from_dict(record.recipe))
    logged = Tracking(root, config.study.name).trials(sweep.name)
    assert sorted(logged["number"]) == list(range(TRIALS))
    assert {name: len(spent) for name, spent in clock.spent.items()} == dict.fromkeys(("ask", "tell", "log"), TRIALS)
    again = Sweep.open(config.study, f"sqlite:///{root}/optuna.db")
    assert [dataclasses.asdict(r) for r in again.records()] == [dataclasses.asdict(r) for r in records]
