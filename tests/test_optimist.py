"""A trainer whose validation accuracy is luck: the search falls for it, the confirmation does not.

The search, the runtime and the test split are the real ones; only the trainer is planted (tests/linear.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import trainers.base
from search.errors import SweepError
from search.front import summary, wording
from search.storage.database import address
from search.sweep.confirmed import Confirmed
from search.sweep.recorder import Log
from search.sweep.sweep import Sweep
from search.tracking.tracking import Tracking
from search.trial.record import TrialRecord
from tasks.mnist import data
from tests.linear import RAW, LinearTrainer, config, searched
from trainers.base import Compressed, Dense, Job, Teacher, TrainingError
from trainers.recipe import Recipe


def test_the_optimist_is_on_the_raw_front_and_not_on_the_confirmed_one(planted: LinearTrainer, root: Path) -> None:
    sweep = searched(config(root))
    raw = {r.reference: r.metrics["accuracy"] for r in sweep.records()}
    assert raw["optimist"] > raw["honest"] + 0.05
    points = [Confirmed.from_dict(p) for p in sweep.get("confirmed")["points"]]
    honest, optimist = points
    assert (honest.on_front, optimist.on_front) == (True, False)
    assert optimist.metrics["test_accuracy"][2] < raw["optimist"] - 0.05
    assert abs(honest.metrics["test_accuracy"][0] - raw["honest"]) < 0.05


def test_the_test_split_is_not_opened_before_confirmation(
    planted: LinearTrainer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*args: Any, **kwargs: Any) -> data.Split:
        raise data.DataError("the test split was opened")

    monkeypatch.setattr(data, "open_test", unreadable)
    with pytest.raises(SweepError, match="the test split was opened"):
        searched(config(root))
    sweep = Sweep.open(config(root).study, address(root))
    assert [r.state for r in sweep.records()] == ["complete", "complete"]
    assert sweep.get("confirmed") is None
    monkeypatch.undo()
    monkeypatch.setattr(trainers.base, "load", lambda name: planted)
    assert len(searched(config(root)).get("confirmed")["points"]) == 2


@pytest.mark.cluster
def test_other_seeds_confirm_the_same_candidates_anew_and_feasibility_is_judged_on_them(
    planted: LinearTrainer, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The optimist alone meets this bound, and only by its luck.
    bound = {"constraints": ["accuracy_drop <= -0.02"]}
    first = searched(config(root, **bound))
    assert [r.feasible for r in first.records()] == [False, True]
    points = first.get("confirmed")["points"]
    assert [(p["number"], p["feasible"], p["on_front"]) for p in points] == [(1, False, False)]
    found = summary.read(root, "lucky")
    assert found.front.empty
    assert found.nearest == 1
    said = wording.nothing_feasible(found)
    assert "No trial meets the constraints with fresh seeds; nearest is trial 1, half the weights removed" in said
    assert said.endswith("asked: at most -0.02.")
    again = searched(config(root, **bound, confirm={**RAW["confirm"], "first_seed": 2_000_000}))
    assert again.get("confirmed")["points"][0]["metrics"]["accuracy"] != points[0]["metrics"]["accuracy"]
    assert len(again.records()) == 2


@pytest.mark.cluster
def test_every_batch_size_and_number_of_threads_is_confirmed_with_its_interval(
    planted: LinearTrainer, root: Path
) -> None:
    sweep = searched(config(root, latency={"max_seconds": 0.1, "batch": [1, 8], "threads": [1, 2]}))
    point = Confirmed.from_dict(sweep.get("confirmed")["points"][0])
    others = {f"latency_ratio/batch{b}_threads{t}" for b, t in ((1, 2), (8, 1), (8, 2))}
    ratios = {name: m for name, m in point.metrics.items() if name.startswith("latency_ratio")}
    assert set(ratios) == {"latency_ratio", *others}
    assert all(low < mean < high for mean, low, high in ratios.values())
    assert len([name for name in point.metrics if name.startswith("throughput")]) == 4
    row = summary.read(root, "lucky").confirmed.iloc[0]
    name = "latency_ratio/batch8_threads2"
    assert summary.interval(row, name) == pytest.approx(ratios[name][1:])


def test_without_seeds_nothing_is_confirmed(planted: LinearTrainer, root: Path) -> None:
    assert searched(config(root, confirm={"seeds": 0})).get("confirmed") is None


def test_five_failures_at_the_start_stop_the_study(
    planted: LinearTrainer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> Compressed:
        if not job.folder.name.isdigit():  # the baseline
            return LinearTrainer().compress(recipe, dense, teacher, job)
        raise TrainingError(f"the loss is NaN with {recipe.describe()}")

    monkeypatch.setattr(planted, "compress", fails)
    space = {"model": "lenet300", "pruning": {"granularity": "unstructured", "sparsity": {"low": 0.1, "high": 0.9}}}
    with pytest.raises(SweepError, match=r"first 5 trials all failed(?s:.)*NaN with .. % of weights removed"):
        searched(config(root, recipe=space, references={}, budget={"trials": 9}))


def test_a_failed_trial_is_recorded_with_its_reason_and_the_search_goes_on(
    planted: LinearTrainer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress = planted.compress

    def sometimes(recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> Compressed:
        if recipe.pruning.granularity == "unstructured":
            raise TrainingError("the loss is NaN")
        return compress(recipe, dense, teacher, job)

    monkeypatch.setattr(planted, "compress", sometimes)
    sweep = searched(config(root, confirm={"seeds": 0}))
    assert [(r.state, r.reason) for r in sweep.records()] == [("complete", None), ("failed", "the loss is NaN")]


def test_equal_recipes_are_trained_once(planted: LinearTrainer, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    compress = planted.compress

    def counted(recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> Compressed:
        if job.folder.name.isdigit():  # a trial, not the baseline
            trained.append(recipe.digest())
        return compress(recipe, dense, teacher, job)

    monkeypatch.setattr(planted, "compress", counted)
    sweep = searched(config(root, confirm={"seeds": 0}, budget={"trials": 7}))
    assert len(sweep.records()) == 7
    assert len(trained) == len(set(trained)) == 2
    copies = [r for r in sweep.records() if r.duplicate_of is not None]
    assert len(copies) == 5
    assert all(r.metrics == sweep.records()[r.duplicate_of].metrics for r in copies if r.duplicate_of is not None)


def test_ctrl_c_while_mlflow_is_written_stays_an_interruption(
    planted: LinearTrainer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Log, record: TrialRecord) -> None:
        raise KeyboardInterrupt

    def broken(self: Log, *args: Any) -> None:
        raise RuntimeError("a run is logged by half")

    with monkeypatch.context() as patched:
        patched.setattr(Log, "trial", interrupted)
        patched.setattr(Log, "finish", broken)
        with pytest.raises(KeyboardInterrupt):
            searched(config(root, confirm={"seeds": 0}))
    sweep = searched(config(root, confirm={"seeds": 0}))
    assert [r.number for r in sweep.records()] == [0, 1]
    assert sorted(Tracking(root, "lucky").trials("lucky-001")["number"]) == [0, 1]
