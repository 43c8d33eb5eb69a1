"""Short schedules first: what is trained in full, what is recorded and told, and what a kill leaves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

import trainers.base
from search import status
from search.front.summary import read
from search.sampling.known_costs import EXPECTED
from search.storage.database import address
from search.study.config import ConfigError, Study, check
from search.study.metrics import Metrics
from search.sweep.rung import Rung
from search.sweep.sweep import Sweep
from search.trial.record import TrialRecord
from tasks.mnist.task import Mnist
from tests import linear
from trainers.base import Compressed, Dense, Job, Teacher
from trainers.recipe import Distillation, Pruning, Quantization, Recipe

CHANGES: dict[str, Any] = {
    "objectives": ["accuracy", "size_bytes"],
    "constraints": [],
    "recipe": {
        "model": "lenet300",
        "pruning": {"granularity": "unstructured", "sparsity": {"low": 0.1, "high": 0.95}},
        "distillation": {"kind": "soft", "temperature": {"low": 1.0, "high": 9.0}, "alpha": 0.5},
        "finetuning": {"epochs": 4},
    },
    "references": {"mild": {"pruning": {"granularity": "unstructured", "sparsity": 0.2}}},
    "early_stopping": {"name": "rungs", "promoted": 0.5},
    "sampler": {"name": "random"},
    "latency": {"max_seconds": 0.1, "target_rel_ci": 0.9},
    "confirm": {"seeds": 0},
    "budget": {"trials": 10},
}


class Climbing(linear.LinearTrainer):
    """It learns from more samples in more epochs, and from fewer the farther the temperature is from 1."""

    def __init__(self) -> None:
        self.trained: list[Recipe] = []

    def compress(self, recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> Compressed:
        self.trained.append(recipe)
        assert isinstance(job.task, Mnist)
        given = job.task.dataset
        rows = int(100 + 2900 * recipe.finetuning.epochs / 4 / recipe.distillation.temperature)
        weights = linear.fitted(given.train[np.arange(rows)])
        weights[np.abs(weights) < np.quantile(np.abs(weights), recipe.pruning.sparsity)] = 0
        job.folder.mkdir(parents=True, exist_ok=True)
        onnx.save(linear.linear(weights, False), job.folder / "model.onnx")
        logits = linear.flat(given.validation) @ weights
        return Compressed(job.folder / "model.onnx", 0.0, 0.0, {"logits": logits}, len(logits), {"finetune": 0.01}, [])


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Climbing:
    made = Climbing()
    monkeypatch.setattr(trainers.base, "load", lambda name: made)
    return made


def test_only_the_better_ones_are_trained_in_full_and_people_see_why(root: Path, trainer: Climbing) -> None:
    sweep = linear.searched(linear.config(root, **CHANGES))
    records = sweep.records()
    stopped, complete = ([r for r in records if r.state == state] for state in ("stopped", "complete"))
    assert (len(records), len(stopped) + len(complete)) == (10, 10)
    assert 1 <= len(stopped) <= 6
    epochs = Counter(recipe.finetuning.epochs for recipe in trainer.trained if recipe.trains)
    assert epochs == {4: len(complete), 1: 9}  # the reference at once, and each promoted one from the start
    assert all(r.reason and r.reason.startswith("25 % of its epochs gave validation accuracy ") for r in stopped)
    assert all(
        r.artifact is None and r.stages.keys() == {"short schedule"} and "short/accuracy" in r.metrics for r in stopped
    )
    promoted = [r for r in complete if r.reference is None]
    assert all(r.metrics["short/accuracy"] != r.metrics["accuracy"] for r in promoted)
    assert all(r.stages["short schedule"] > 0 and r.params["finetuning.epochs"] == 4 for r in promoted)
    assert not list((root / "trials" / sweep.name).glob("*/short"))
    shown = read(root, "lucky")
    assert shown.counts()["stopped"] == len(stopped)
    logged = shown.trials[shown.trials["state"] == "stopped"]
    assert set(logged["reason"]) == {r.reason for r in stopped}
    assert logged["short/accuracy"].between(0.1, 1).all()
    (found,) = status.progress(address(root), "lucky")
    assert (found.trials, found.stopped, found.failed) == (10, len(stopped), 0)
    told = {t.number: t for t in sweep.study.get_trials()}
    assert {told[r.number].state for r in stopped} == {TrialState.PRUNED}
    expected = [told[r.number].user_attrs[EXPECTED] for r in stopped if EXPECTED in told[r.number].user_attrs]
    assert all(values.keys() == {"accuracy", "size_bytes"} for values in expected)


@pytest.mark.parametrize("sampler", ["auto", "tpe"])
def test_samplers_go_on_after_them_and_learn_from_them(tmp_path: Path, sampler: str) -> None:
    settings = study(sampler={"name": sampler, "startup_trials": 4}, references={})
    sweep = Sweep.open(settings, address(tmp_path))
    for turn in range(12):
        asked = sweep.ask()
        good = asked.recipe.distillation.temperature < 4
        given = ended(turn, 0.7, 0.98 - 0.001 * turn if good or turn < 2 else None)
        known = {"expected/accuracy": 0.6, "expected/size_bytes": 1e4} if given.state == "stopped" else {}
        metrics = given.metrics | known
        sweep.tell(asked, replace(given, number=asked.number, recipe=asked.recipe.to_dict(), metrics=metrics))
    trials = sweep.study.get_trials()
    stopped = [t for t in trials if t.state == TrialState.PRUNED]
    assert stopped
    assert all(t.user_attrs[EXPECTED] == {"accuracy": 0.6, "size_bytes": 1e4} for t in stopped)
    assert [r.state for r in Sweep.open(settings, address(tmp_path)).records()] == [
        "stopped" if t.state == TrialState.PRUNED else "complete" for t in trials
    ]


def test_a_promoted_trial_that_was_interrupted_keeps_its_promotion(root: Path, trainer: Climbing) -> None:
    config = linear.config(root, **CHANGES | {"references": {}, "budget": {"trials": 1}})
    asked = (sweep := Sweep.open(config.study, address(root))).ask()
    sweep.promoted(asked, {"accuracy": 0.5, "size_bytes": 9e3}, 1.5)  # and here the driver is killed
    (record,) = linear.searched(config).records()
    assert (record.state, record.number, record.recipe) == ("complete", 1, asked.recipe.to_dict())
    assert record.metrics["short/accuracy"] == 0.5
    assert record.stages["short schedule"] == 1.5
    assert [r.finetuning.epochs for r in trainer.trained if r.trains] == [4]
    states = [
        (t.state, t.user_attrs.get("interrupted")) for t in Sweep.open(config.study, address(root)).study.get_trials()
    ]
    assert states == [(TrialState.FAIL, True), (TrialState.COMPLETE, None)]


@pytest.mark.cluster
def test_a_short_schedule_that_fails_fails_the_trial(
    root: Path, trainer: Climbing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Climbing, recipe: Recipe, *rest: Any) -> Compressed:
        if recipe.trains:
            raise trainers.base.TrainingError("the loss became NaN")
        return Climbing.carry(self, recipe, *rest)  # type: ignore[attr-defined]

    monkeypatch.setattr(Climbing, "carry", Climbing.compress, raising=False)
    monkeypatch.setattr(Climbing, "compress", broken)
    changes = {"references": {"none": {"pruning": {"granularity": "none"}}}, "budget": {"trials": 2}}
    space = CHANGES["recipe"] | {"distillation": {}}
    space["pruning"] = {"granularity": {"choices": ["none", "unstructured"]}, "sparsity": 0.5}
    changes |= {"sampler": {"name": "auto"}, "budget": {"trials": 2}}
    records = linear.searched(linear.config(root, **CHANGES | {"recipe": space} | changes)).records()
    assert [r.state for r in records] == ["complete", "failed"]
    assert records[1].reason == "with the short schedule: the loss became NaN"


def study(**changes: Any) -> Study:
    raw = {**linear.RAW, **CHANGES, "constraints": ["accuracy_drop <= 0.1", "size_bytes <= 100000"], **changes}
    return check({"study": raw}).study


def recipe(temperature: float) -> Recipe:
    return Recipe("lenet300", pruning=Pruning("unstructured", 0.5), distillation=Distillation("soft", temperature, 0.5))


def ended(number: int, short: float, full: float | None = None, size: float = 1e4) -> TrialRecord:
    figures = {"accuracy": short, "accuracy_drop": 0.99 - short, "size_bytes": size}
    metrics = {f"short/{name}": value for name, value in figures.items()}
    if full is not None:
        metrics |= {"accuracy": full, "accuracy_drop": 0.99 - full, "size_bytes": size}
    state = "stopped" if full is None else "complete"
    plain = recipe(1.0 + number).to_dict()
    return TrialRecord(number, state, 1, 2, reason=None if full else "behind", recipe=plain, metrics=metrics)


def rung(*records: TrialRecord, **changes: Any) -> Rung:
    return Rung(study(**changes), Metrics(), records)


def verdict(found: Rung, short: float, size: float = 1e4) -> Any:
    own = recipe(77.0)
    found.add(77, own, {"accuracy": short, "accuracy_drop": 0.99 - short, "size_bytes": size})
    return found.verdict(own)


def test_the_first_results_are_all_promoted_and_then_the_best_share() -> None:
    seen = [ended(number, 0.9 + 0.01 * number, 0.98) for number in range(7)]
    assert verdict(rung(*seen[:2]), 0.5) is None
    assert verdict(rung(*seen), 0.97) is None
    stopped = verdict(rung(*seen), 0.9)
    assert stopped.reason.startswith(
        "25 % of its epochs gave validation accuracy 90.00 %, compressed size 10.0 kB: not"
    )
    assert "not among the best 4 of 8" in stopped.reason
    everything = {"name": "rungs", "promoted": 1.0}
    assert verdict(rung(*seen, early_stopping=everything), 0.9) is None


def test_what_the_full_schedule_adds_decides_of_constraints() -> None:
    """All short results break the constraint on quality; those that will keep it come before those that will not."""
    seen = [ended(number, 0.70 + 0.02 * number, 0.95 + 0.005 * number) for number in range(6)]
    found = rung(*seen)
    assert found.expected("accuracy", {"accuracy": 0.78}) == pytest.approx(0.97)
    assert verdict(found, 0.68, 9e3) is None  # smaller than all, 0.945 expected
    stopped = verdict(rung(*seen), 0.30, 9e3)  # smaller than all, 0.85 expected
    assert "expected to break accuracy_drop <= 0.1" in stopped.reason
    assert stopped.expected["expected/accuracy"] == pytest.approx(0.85)
    assert stopped.violations == {}  # that is not certain
    stopped = verdict(rung(*seen), 0.80, 2e5)
    assert stopped.violations == {"size_bytes <= 100000": 1e5}


def test_equal_work_counts_once() -> None:
    seen = [ended(number, 0.9, 0.98) for number in range(4)]
    found = rung(*seen, replace(seen[0], number=9, duplicate_of=0))
    assert found.known(recipe(1.0)) == {"accuracy": 0.9, "accuracy_drop": pytest.approx(0.09), "size_bytes": 1e4}
    assert found.known(recipe(50.0)) is None
    found.add(12, recipe(1.0), {"accuracy": 0.1})
    assert found.known(recipe(1.0)) != {"accuracy": 0.1}


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)), min_size=4, max_size=12), st.floats(0.1, 1))
def test_better_short_results_are_never_expected_to_end_worse(pairs: list[tuple[float, float]], short: float) -> None:
    found = rung(*(ended(number, *pair) for number, pair in enumerate(pairs)))
    low, high = (found.expected("accuracy", {"accuracy": value}) for value in (short, short + 0.05))
    assert low is not None
    assert high is not None
    assert low - 1e-9 <= high <= low + 0.05 + 1e-9


@pytest.mark.parametrize("scheme", ["none", "static_int8", "qat_int8"])
def test_a_short_schedule_is_a_recipe_of_its_own(scheme: str) -> None:
    made = Recipe("lenet300", pruning=Pruning("channel", 0.5), quantization=Quantization(scheme)).canonical()
    short = made.shortened(0.25)
    assert (short.finetuning.epochs, short.finetuning.qat_epochs) == (0.5, 0.25 if scheme == "qat_int8" else 1)
    assert short.digest() != made.digest()
    assert short == short.canonical()
    plain = Recipe("lenet300", quantization=Quantization("static_int8")).canonical()
    assert plain.shortened(0.25) == plain


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "rung"}, "early_stopping.name: 'rung' is not valid; it should be 'none', 'gain', 'rungs' or"),
        ({"name": "rungs", "schedule": 1}, "early_stopping.schedule: 1 is not valid; it should be less than 1"),
        ({"name": "rungs", "promoted": 0}, "early_stopping.promoted: 0 is not valid; it should be greater than 0"),
    ],
)
def test_mistakes_are_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        study(early_stopping=given)
    assert said in str(error.value)
