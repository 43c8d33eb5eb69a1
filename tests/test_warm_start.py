"""Earlier sweeps as priors, and preferred values: what the sampler knows of, and what never becomes a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

import trainers.base
from search.dashboard import _View
from search.errors import SettingsError
from search.front.summary import read
from search.sampling.known_costs import PRIOR
from search.storage.database import address
from search.study.config import ConfigError, Study, check
from search.study.space import SpaceError
from search.sweep.sweep import Sweep
from search.trial.record import TrialRecord
from tests import linear
from trainers.recipe import Pruning, Recipe

RAW: dict[str, Any] = {
    "name": "warm",
    "objectives": ["accuracy", "latency_ms"],
    "constraints": ["accuracy_drop <= 0.1"],
    "runtime": "onnxruntime",
    "task": {"name": "mnist"},
    "recipe": {
        "model": "lenet300",
        "pruning": {
            "granularity": {"choices": ["none", "unstructured", "channel"]},
            "sparsity": {"unstructured": {"low": 0.5, "high": 0.9, "step": 0.1}, "channel": {"low": 0.1, "high": 0.8}},
        },
        "quantization": {"scheme": {"choices": ["none", "static_int8"]}},
    },
    "budget": {"trials": 8},
}
LATENCIES = {"pytorch/lenet300": 0.2}


def study(**changes: Any) -> Study:
    return check({"study": {**RAW, **changes}}).study


def recipe(**changes: Any) -> dict[str, Any]:
    return {"recipe": {**RAW["recipe"], **changes}}


def earlier(root: Path, trials: int = 6, **changes: Any) -> Sweep:
    """A sweep whose baseline took 0.1 ms: ratio and milliseconds as measured there."""
    sweep = Sweep.open(study(**changes), address(root), fresh=True)
    sweep.put("task", {"data_digest": "d", "code_digest": "c"})
    for turn in range(trials):
        asked = sweep.ask()
        drop, ratio = 0.02 * turn, 1.0 - 0.1 * turn
        metrics = {"accuracy": 0.99 - drop, "accuracy_drop": drop, "latency_ms": 0.1 * ratio, "latency_ratio": ratio}
        state, reason = ("failed", "x") if turn == trials - 1 else ("complete", None)
        plain = asked.recipe.to_dict()
        sweep.tell(asked, TrialRecord(asked.number, state, 1, 2, reason=reason, recipe=plain, metrics=metrics))
    return sweep


def warmed(root: Path, *names: str, digest: str = "d", **changes: Any) -> Sweep:
    sweep = Sweep.open(study(warm_start=list(names), **changes), address(root), fresh="sweep" not in changes)
    sweep.put("task", {"data_digest": digest, "code_digest": "c"})
    return sweep


def test_they_are_told_once_with_this_machines_latency_and_are_no_results(tmp_path: Path) -> None:
    before = earlier(tmp_path)
    sweep = warmed(tmp_path, "warm-001")
    assert sweep.warm(LATENCIES) == {"warm-001": 5}
    assert sweep.warm(LATENCIES) == {"warm-001": 5}
    told = sweep.study.get_trials()
    known = before.records()[:5]
    assert [t.user_attrs[PRIOR] for t in told] == [f"warm-001/{r.number}" for r in known]
    assert [t.values for t in told] == [[r.metrics["accuracy"], 0.2 * r.metrics["latency_ratio"]] for r in known]
    assert [t.params for t in told] == [t.params for t in before.study.get_trials()[:5]]
    assert all(t.distributions == b.distributions for t, b in zip(told, before.study.get_trials(), strict=False))
    drops = [t.constraints["accuracy_drop <= 0.1"] for t in told]
    assert drops == pytest.approx([r.metrics["accuracy_drop"] - 0.1 for r in known])
    assert sweep.records() == []
    again = Sweep.open(study(warm_start=["warm-001"]), address(tmp_path))
    assert (again.name, again.records(), again.warm(LATENCIES)) == ("warm-002", [], {"warm-001": 5})
    assert _View(address(tmp_path)).get_all_trials(sweep.study._study_id) == []


@pytest.mark.parametrize("sampler", ["auto", "tpe", "tpe_grouped", "nsga2", "random"])
def test_every_sampler_begins_with_them(tmp_path: Path, sampler: str) -> None:
    earlier(tmp_path, 12)
    sweep = warmed(tmp_path, "warm-001", sampler={"name": sampler, "startup_trials": 4})
    sweep.warm(LATENCIES)
    for _ in range(4):
        asked = sweep.ask()
        metrics = {"accuracy": 0.9, "accuracy_drop": 0.09, "latency_ms": 0.1}
        sweep.tell(asked, TrialRecord(asked.number, "complete", 1, 2, recipe=asked.recipe.to_dict(), metrics=metrics))
    assert len(sweep.records()) == 4


def test_the_model_knows_them_and_asks_for_none_of_them_again(tmp_path: Path) -> None:
    before = earlier(tmp_path, 12)
    recipes = []
    for warm in (["warm-001"], []):
        sweep = warmed(tmp_path, *warm, sampler={"name": "ehvi"})
        sweep.warm(LATENCIES)
        recipes.append([sweep.ask().recipe.digest() for _ in range(6)])
    there = {Recipe.from_dict(r.recipe).digest() for r in before.records() if r.state == "complete"}
    assert not there & set(recipes[0])
    assert recipes[0] != recipes[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"warm_start": ["warm-009"]}, "study.warm_start[0]: 'warm-009': no such sweep here; choose from warm-001"),
        (
            {"task": {"name": "mnist", "train_size": 999}},
            "warm-001 cannot be used, task.train_size differs: None there",
        ),
        ({"dense": {"epochs": 3}}, "warm-001 cannot be used, dense.epochs differs: 8 there, 3 here"),
        ({"latency": {"batch": [4]}}, "warm-001 cannot be used, latency.batch differs: [1] there, [4] here"),
        (
            recipe(finetuning={"epochs": 5}, pruning={"granularity": "unstructured", "sparsity": 0.55}),
            "none of its trials lies in this study's space: ",
        ),
    ],
)
def test_a_sweep_that_cannot_be_used_is_named_with_what_differs(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    earlier(tmp_path)
    with pytest.raises(SettingsError) as error:
        Sweep.open(study(**{"warm_start": ["warm-001"], **changes}), address(tmp_path), fresh=True)
    assert said in str(error.value)
    assert [s.study_name for s in _View(address(tmp_path)).get_all_studies()] == ["warm-001"]


def test_other_data_are_refused_and_other_searches_of_the_same_are_not(tmp_path: Path) -> None:
    earlier(tmp_path)
    with pytest.raises(
        SettingsError, match="warm-001 cannot be used, the task's data_digest differs: 'd' there, 'e' he"
    ):
        warmed(tmp_path, "warm-001", digest="e").warm(LATENCIES)
    other: dict[str, Any] = {
        "seed": 3,
        "sampler": {"name": "random"},
        "objectives": ["latency_ratio"],
        "constraints": [],
    }
    sweep = warmed(tmp_path, "warm-001", **other)
    assert sweep.warm(LATENCIES) == {"warm-001": 5}


def test_of_a_wider_space_those_inside_are_told(tmp_path: Path) -> None:
    before = earlier(tmp_path, 16, sampler={"name": "random"})
    narrow = recipe(pruning={"granularity": {"choices": ["none", "channel"]}, "sparsity": {"low": 0.1, "high": 0.8}})
    inside = [r for r in before.records()[:15] if r.recipe["pruning"]["granularity"] != "unstructured"]
    assert 0 < len(inside) < 15
    assert warmed(tmp_path, "warm-001", **narrow).warm(LATENCIES) == {"warm-001": len(inside)}


def test_a_recipes_parameters_make_the_recipe_again() -> None:
    space = study().space
    inside = Recipe("lenet300", pruning=Pruning("channel", 0.45)).canonical()
    params = space.params_of(inside)
    assert params == {"pruning.granularity": "channel", "pruning.sparsity@channel": 0.45, "quantization.scheme": "none"}
    assert space.made(lambda name, entry: params[name]) == inside
    assert space.asked(params).keys() == params.keys()
    for outside in (Pruning("unstructured", 0.55), Pruning("unstructured", 0.4), Pruning("channel", 0.3, "one_shot")):
        with pytest.raises(SpaceError, match=r"pruning\.(sparsity|schedule) is .* there"):
            space.params_of(Recipe("lenet300", pruning=outside))


def test_the_first_trials_take_preferred_values(tmp_path: Path) -> None:
    prefer = {"quantization.scheme": "static_int8", "pruning": {"sparsity": [0.7, 0.8]}}
    changes = {
        "prefer": prefer,
        "sampler": {"startup_trials": 6},
        "references": {"dense": {}},
        "budget": {"trials": 20},
    }
    sweep = Sweep.open(study(**changes), address(tmp_path))
    assert len(Sweep.open(study(**changes), address(tmp_path)).study.get_trials()) == 6
    first, *asked = [sweep.ask() for _ in range(10)]
    assert first.reference == "dense"
    early = [each.recipe for each in asked[:5]]
    assert {r.quantization.scheme for r in early} == {"static_int8"}
    assert {r.pruning.sparsity for r in early if r.pruning.granularity != "none"} <= {0.7, 0.8}
    assert len({(r.pruning.granularity, r.pruning.sparsity) for r in early}) > 1, "the rest is left to the sampler"
    assert not [t for t in sweep.study.get_trials() if t.state == TrialState.WAITING]


@pytest.mark.parametrize(
    ("prefer", "said"),
    [
        (
            {"quantization.sheme": "none"},
            "study.prefer.quantization.sheme: no such field (did you mean quantization.sch",
        ),
        ({"finetuning.epochs": 3}, "study.prefer.finetuning.epochs: the study fixes it at 2; leave it out, or open it"),
        (
            {"quantization.scheme": ["none", "qat_int8"]},
            "study.prefer.quantization.scheme: 'qat_int8' is outside the st",
        ),
        ({"pruning.sparsity": 0.95}, "0.95 is outside the study's range 0.5 to 0.9 and range 0.1 to 0.8"),
    ],
)
def test_preferences_that_no_trial_can_have_are_mistakes(prefer: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        study(prefer=prefer)
    assert said in str(error.value)


@pytest.mark.cluster
def test_a_warmed_sweep_runs_its_budget_and_reports_its_own_trials(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainers.base, "load", lambda name: linear.LinearTrainer())
    unconfirmed = {"confirm": {"seeds": 0}}
    linear.searched(linear.config(root, **unconfirmed))
    changed = linear.config(root, **unconfirmed, warm_start=["lucky-001"], references={}, budget={"trials": 1})
    sweep = linear.searched(changed.model_copy(update={"fresh": True}))
    assert "warm_start: the sampler knows 2 trials of lucky-001" in capsys.readouterr().out
    assert len(sweep.records()) == 1
    assert len(read(root, "lucky").trials) == 1
