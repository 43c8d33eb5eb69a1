"""Trials stopped before they are trained: why, what the sampler hears, what people see, in a sweep and after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from optuna.trial import TrialState

import trainers.base
from search import status
from search.front import tables
from search.front.summary import read
from search.storage.database import address
from search.study.config import Config, ConfigError, check
from search.study.metrics import Metrics
from search.sweep import driver
from search.sweep.early import EarlyStopping
from search.sweep.sweep import Sweep
from search.trial.record import TrialRecord
from tests import linear
from trainers.base import Dense, Job
from trainers.recipe import Pruning, Recipe

RAW: dict[str, Any] = {
    "name": "early",
    "objectives": ["accuracy", "latency_ms", "size_bytes"],
    "constraints": ["accuracy_drop <= 0.1", "latency_ms <= 0.1", "compression_ratio >= 2"],
    "runtime": "onnxruntime",
    "task": {"name": "mnist"},
    "recipe": {
        "model": "lenet300",
        "pruning": {
            "granularity": {"choices": ["none", "channel"]},
            "sparsity": {"low": 0.1, "high": 0.9},
        },
    },
    "early_stopping": "gain",
    "budget": {"trials": 8},
}
REFERENCE = [0.9, 0.11, 110_000.0]
# Latency with the ends of its interval, and sizes.
CHEAP = {"latency_ms": 0.02, "latency_ms_low": 0.019, "latency_ms_high": 0.021, "size_bytes": 9e3}
CHEAP |= {"compression_ratio": 10.0}


def config(**changes: Any) -> Config:
    return check({"study": {**RAW, **changes}})


def early(**changes: Any) -> EarlyStopping:
    return EarlyStopping(config(**changes).study, Metrics(), REFERENCE)


def recipe(sparsity: float) -> Recipe:
    return Recipe("lenet300", pruning=Pruning("channel", sparsity))


def trained(count: int = 12) -> list[TrialRecord]:
    """A surface: what is pruned more is faster, smaller and worse."""
    found = []
    for number in range(count):
        sparsity = 0.1 + 0.7 * number / count
        metrics = {"accuracy": 0.99 - 0.08 * sparsity**3, "latency_ms": 0.1 - 0.09 * sparsity}
        metrics |= {"accuracy_drop": 0.08 * sparsity**3, "size_bytes": 1e5 * (1 - sparsity), "compression_ratio": 5.0}
        plain = recipe(sparsity).to_dict()
        found.append(TrialRecord(number, "complete", number, number + 1, recipe=plain, metrics=metrics))
    return found


@pytest.mark.parametrize(
    ("figures", "limit"),
    [
        ({"latency_ms": 0.2, "latency_ms_low": 0.15, "latency_ms_high": 0.25}, "latency_ms <= 0.1"),
        ({"compression_ratio": 1.5}, "compression_ratio >= 2"),
        ({"latency_ms": 0.12, "latency_ms_low": 0.09, "latency_ms_high": 0.15}, ""),  # it may keep it
        ({"compression_ratio": 1.95}, ""),  # the trained file may be as small
    ],
)
def test_what_surely_breaks_a_constraint_is_not_trained(figures: dict[str, float], limit: str) -> None:
    found = early().verdict(recipe(0.5), CHEAP | figures, [])
    if not limit:
        assert found is None
        return
    assert found is not None
    assert limit in found.reason
    assert list(found.violations) == [limit]
    assert found.violations[limit] > 0
    assert found.expected["expected/latency_ms"] == (CHEAP | figures)["latency_ms"]


def test_what_would_add_little_is_not_trained_and_what_may_add_much_is() -> None:
    records = trained()
    beaten = {"latency_ms": 0.09, "latency_ms_low": 0.089, "latency_ms_high": 0.091, "size_bytes": 9e4}
    found = early().verdict(recipe(0.5), CHEAP | beaten, records)
    assert found is not None
    assert "less than 0.3 %" in found.reason
    assert found.expected["expected/gain"] < 0.003
    assert 0.96 < found.expected["expected/accuracy"] < 1.0
    assert found.violations == {}
    assert early().verdict(recipe(0.5), CHEAP, records) is None


def test_nothing_is_predicted_from_few_trials_nor_by_a_share_of_zero() -> None:
    beaten = CHEAP | {"latency_ms": 0.0999, "latency_ms_low": 0.099, "latency_ms_high": 0.1001, "size_bytes": 1.09e5}
    assert early().verdict(recipe(0.5), beaten, trained(7)) is None
    assert early().verdict(recipe(0.5), beaten, trained()) is not None
    assert early(early_stopping={"name": "gain", "share": 0}).verdict(recipe(0.5), beaten, trained()) is None


def test_with_a_chance_set_what_may_be_on_the_front_is_trained_however_little_it_adds() -> None:
    records, little = trained(), {"name": "gain", "share": 0.9}
    beaten = CHEAP | {"latency_ms": 0.0999, "latency_ms_low": 0.099, "latency_ms_high": 0.1001, "size_bytes": 1.09e5}
    assert early(early_stopping=little).verdict(recipe(0.5), CHEAP, records) is not None
    assert early(early_stopping=little | {"chance": 0.1}).verdict(recipe(0.5), CHEAP, records) is None
    assert early(early_stopping=little | {"chance": 0.1}).verdict(recipe(0.5), beaten, records) is not None


def test_a_misspelt_way_of_stopping_is_answered_with_the_valid_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"early_stopping\.name: 'gains' is not valid; it should be 'none'(, '| or ')"
    ):
        config(early_stopping="gains")


@pytest.mark.parametrize("sampler", ["auto", "tpe", "nsga2", "random", pytest.param("gp", marks=pytest.mark.cluster)])
def test_every_sampler_goes_on_after_stopped_trials(tmp_path: Path, sampler: str) -> None:
    url, study = address(tmp_path), config(sampler={"name": sampler, "startup_trials": 4}).study
    sweep = Sweep.open(study, url)
    for turn in range(14):
        asked = sweep.ask()
        base = replace(trained()[turn % 8], number=asked.number, recipe=asked.recipe.to_dict())
        if turn % 3 == 2:
            broken = {"latency_ms <= 0.1": 0.05} if turn % 2 else {}
            base = replace(base, state="stopped", reason="hopeless", metrics={"expected/gain": 0.0}, violations=broken)
        sweep.tell(asked, base)
    states = [trial.state for trial in sweep.study.get_trials()]
    assert states == [TrialState.PRUNED if turn % 3 == 2 else TrialState.COMPLETE for turn in range(14)]
    again = Sweep.open(study, url)
    assert [r.state for r in again.records()] == ["stopped" if turn % 3 == 2 else "complete" for turn in range(14)]


def test_a_driver_killed_between_record_and_tell_has_stopped_the_trial(tmp_path: Path) -> None:
    url, study = address(tmp_path), config().study
    sweep = Sweep.open(study, url)
    asked = sweep.ask()
    record = TrialRecord(asked.number, "stopped", 1, 2, reason="hopeless", recipe=asked.recipe.to_dict())
    asked.trial.set_user_attr("record", record.to_json())
    resumed = Sweep.open(study, url)
    assert [(r.state, r.reason) for r in resumed.records()] == [("stopped", "hopeless")]
    assert resumed.study.get_trials()[0].state == TrialState.PRUNED


class Foreseeing(linear.LinearTrainer):
    """The planted trainer that knows its files without training; its optimist's file is far slower than the other."""

    def shape(self, recipe: Recipe, dense: Dense, job: Job) -> Path:
        detour = recipe.pruning.granularity == "unstructured"
        weights = linear.fitted(job.task.dataset.train[range(50)])  # type: ignore[attr-defined]
        onnx.save(linear.linear(weights, detour), job.folder / "model.onnx")
        return job.folder / "model.onnx"


STOPPING: dict[str, Any] = {
    "constraints": ["latency_ratio <= 2"],
    "references": {"honest": {}},
    "early_stopping": "gain",
    "latency": {"max_seconds": 0.5, "target_rel_ci": 0.5},
    "confirm": {"seeds": 0},
    "budget": {"trials": 6},
}


def test_a_sweep_trains_what_is_worth_it_and_says_what_it_stopped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers.base, "load", lambda name: Foreseeing())
    sweep = linear.searched(linear.config(root, **STOPPING))
    records = sweep.records()
    stopped = [r for r in records if r.state == "stopped"]
    assert len(records) == 6
    assert {r.recipe["pruning"]["granularity"] for r in stopped} == {"unstructured"}
    assert {r.recipe["pruning"]["granularity"] for r in records if r.state == "complete"} == {"none"}
    assert all(r.reason and r.reason.startswith("known before training to break latency_ratio <= 2") for r in stopped)
    assert all(r.artifact is None and not r.stages for r in stopped)
    assert not list((root / "trials" / sweep.name).glob("*/outline"))
    shown = read(root, "lucky")
    assert shown.counts()["stopped"] == len(stopped)
    assert f"{len(stopped)} of 6 trials were stopped early" in "\n".join(tables.below(shown))
    logged = shown.trials[shown.trials["state"] == "stopped"]
    assert set(logged["reason"]) == {r.reason for r in stopped}
    assert (logged["expected/latency_ratio"] > 2).all()
    (found,) = status.progress(address(root), "lucky")
    assert (found.trials, found.stopped, found.failed) == (6, len(stopped), 0)
    (known,) = sweep._looked_up([Recipe.from_dict(stopped[0].recipe)])  # by samplers that use it
    value, low, high = known["latency_ratio"]
    assert value == stopped[0].metrics["expected/latency_ratio"]
    assert low <= value <= high
    assert known["size_bytes"][1] < known["size_bytes"][0] < known["size_bytes"][2]


def test_the_budget_may_count_what_is_trained(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers.base, "load", lambda name: Foreseeing())
    more = {"quantization": {"scheme": {"choices": ["none", "dynamic_int8", "static_int8"]}}}
    changes = {"recipe": linear.RAW["recipe"] | more, "budget": {"trials": 50, "trained": 3}}
    records = linear.searched(linear.config(root, **STOPPING | changes)).records()
    assert sum(r.state == "complete" and r.duplicate_of is None for r in records) == 3
    assert "stopped" in {r.state for r in records}
    assert len(records) < 50


def test_a_trainer_that_tells_no_costs_trains_every_trial(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainers.base, "load", lambda name: linear.LinearTrainer())
    sweep = linear.searched(linear.config(root, **STOPPING))
    assert {r.state for r in sweep.records()} == {"complete"}
    assert capsys.readouterr().out.count("the pytorch trainer tells no costs without training") == 1


def test_a_finished_sweep_of_stopped_trials_stays_finished(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers.base, "load", lambda name: Foreseeing())
    config = linear.config(root, **STOPPING)
    sweep = linear.searched(config)
    again = Sweep.open(config.study, address(root))
    driver.run(config, again)
    assert again.name == sweep.name
    assert len(again.records()) == 6
