"""A sweep on disk: created, resumed, agreed with; nothing told twice, nothing lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from search.errors import SettingsError, SweepError
from search.sampling.tpe import TPESampler
from search.study.config import Study, check
from search.sweep.lock import driver_lock
from search.sweep.sweep import PendingTrial, Sweep, sweep_names
from search.trial.record import TrialRecord

RAW: dict[str, Any] = {
    "name": "tiny",
    "objectives": ["accuracy", "latency_ms"],
    "constraints": ["accuracy_drop <= 0.1"],
    "runtime": "onnxruntime",
    "task": {"name": "mnist"},
    "recipe": {
        "model": "lenet300",
        "pruning": {"granularity": {"choices": ["none", "unstructured"]}, "sparsity": {"low": 0.1, "high": 0.9}},
    },
    "references": {"dense": {}, "half": {"pruning": {"granularity": "unstructured", "sparsity": 0.5}}},
    "budget": {"trials": 8},
}


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/optuna.db"


def study(**changes: Any) -> Study:
    return check({"study": {**RAW, **changes}}).study


def record(asked: PendingTrial, accuracy: float = 0.9, drop: float = 0.05) -> TrialRecord:
    metrics = {"accuracy": accuracy, "latency_ms": 1.0, "accuracy_drop": drop}
    plain = asked.recipe.to_dict()
    return TrialRecord(asked.number, "complete", asked.start_ms, asked.start_ms + 1, recipe=plain, metrics=metrics)


def test_references_come_first_and_once(storage: str) -> None:
    sweep = Sweep.open(study(), storage)
    again = Sweep.open(study(), storage)
    assert again.name == sweep.name == "tiny-001"
    first = [again.ask() for _ in range(4)]
    assert [a.reference for a in first] == ["dense", "half", None, None]
    assert [a.recipe.describe() for a in first[:2]] == ["dense fp32", "half the weights removed"]


def test_a_sweep_goes_on_with_its_own_settings_only(storage: str) -> None:
    sweep = Sweep.open(study(), storage)
    Sweep.open(study(budget={"trials": 80}, confirm={"seeds": 0}, description="more"), storage)
    with pytest.raises(
        SettingsError, match=r"tiny-001 was started with other settings:\n  dense.epochs: was 8, now 9\n"
    ):
        Sweep.open(study(dense={"epochs": 9}), storage)
    # As an earlier version stored it, which knew no such field: it had the default.
    stored = sweep.study.user_attrs["settings"]
    del stored["dense"]["epochs"]
    sweep.study.set_user_attr("settings", stored)
    Sweep.open(study(), storage)


def test_a_killed_driver_loses_nothing_and_repeats_only_what_was_running(storage: str) -> None:
    sweep = Sweep.open(study(), storage)
    told, recorded, running = sweep.ask(), sweep.ask(), sweep.ask()
    sweep.tell(told, record(told))
    recorded.trial.set_user_attr("record", record(recorded, 0.8).to_json())  # killed between record and tell
    resumed = Sweep.open(study(), storage)
    assert [r.metrics["accuracy"] for r in resumed.records()] == [0.9, 0.8]
    again = resumed.ask()
    assert again.recipe == running.recipe
    states = [t.state for t in resumed.study.get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING]


def test_recovering_twice_enqueues_once(storage: str) -> None:
    Sweep.open(study(), storage).ask()
    for _ in range(3):
        sweep = Sweep.open(study(), storage)
    waiting = [t for t in sweep.study.get_trials() if t.state == TrialState.WAITING]
    assert [t.user_attrs.get("reference") for t in waiting] == ["half", "dense"]


def test_a_resumed_sampler_does_not_repeat_its_random_numbers(storage: str) -> None:
    seen = set()
    for _ in range(4):
        sweep = Sweep.open(study(references={}, sampler={"name": "random"}), storage)
        asked = sweep.ask()
        sweep.tell(asked, record(asked))
        seen.add(str(asked.trial.params))
    assert len(seen) > 1


def test_constraints_reach_optuna(storage: str) -> None:
    sweep = Sweep.open(study(), storage)
    for drop in (0.05, 0.2):
        asked = sweep.ask()
        sweep.tell(asked, record(asked, 0.9 + drop, drop))
    assert [t.number for t in sweep.study.best_trials] == [0]
    assert sweep.violations({"accuracy_drop": 0.2}) == {"accuracy_drop <= 0.1": pytest.approx(0.1)}


def test_other_settings_are_refused_naming_what_changed_and_the_budget_may_grow(storage: str) -> None:
    Sweep.open(study(), storage)
    assert Sweep.open(study(budget={"trials": 80}), storage).name == "tiny-001"
    with pytest.raises(SweepError, match=r"objectives.*(?s:.)*fresh=true"):
        Sweep.open(study(objectives=["accuracy", "size_bytes"]), storage)
    fresh = Sweep.open(study(objectives=["accuracy", "size_bytes"]), storage, fresh=True)
    assert fresh.name == "tiny-002"
    assert sweep_names("tiny", storage) == ["tiny-001", "tiny-002"]


def test_a_broken_database_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "optuna.db").write_bytes(b"not a database at all, but long enough to be read as one" * 50)
    with pytest.raises(SweepError, match="cannot be opened"):
        Sweep.open(study(), f"sqlite:///{tmp_path}/optuna.db")


def test_one_driver_per_study(tmp_path: Path) -> None:
    with driver_lock(tmp_path, "tiny"):
        with pytest.raises(SweepError, match="another process is running it"), driver_lock(tmp_path, "tiny"):
            pass
        with driver_lock(tmp_path, "other"):
            pass
    with driver_lock(tmp_path, "tiny"):
        pass


@pytest.mark.parametrize("name", ["auto", "ehvi", "tpe", "tpe_grouped", "gp", "nsga2", "random"])
def test_every_sampler_gets_past_its_startup(storage: str, name: str) -> None:
    sweep = Sweep.open(study(sampler={"name": name, "startup_trials": 3}), storage)
    for i in range(6):
        asked = sweep.ask()
        sweep.tell(asked, record(asked, 0.8 + 0.01 * i))
    assert len(sweep.records()) == 6


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("objectives", [["accuracy"], ["accuracy", "latency_ms"]])
def test_our_tpe_proposes_what_optunas_own_proposes(objectives: list[str], grouped: bool) -> None:
    proposed = []
    for kind in (TPESampler, optuna.samplers.TPESampler):
        sampler = kind(seed=3, n_startup_trials=5, constant_liar=True, multivariate=grouped, group=grouped)
        asked = optuna.create_study(directions=["maximize"] * len(objectives), sampler=sampler)
        space, running, params = study(objectives=objectives).space, [], []
        for _ in range(40):
            trial = asked.ask()
            space.suggest(trial)
            params.append(trial.params)
            running.append(trial)
            # So that some are under way; grouped, Optuna counts of those what was sampled and had no effect as well.
            if len(running) == (1 if grouped else 4):
                told = running.pop(0)
                sparsity = float(told.params.get("pruning.sparsity", 0.0))
                told.set_constraint("drop", sparsity - 0.7)
                asked.tell(told, [1 - sparsity**2, sparsity][: len(objectives)])
        proposed.append(params)
    assert proposed[0] == proposed[1]
    assert len({str(params) for params in proposed[0]}) >= 10


def test_what_the_driver_remembers_is_what_optuna_reads_from_the_database(storage: str) -> None:
    sweep = Sweep.open(study(), storage)
    for number in range(8):
        asked = sweep.ask()
        told = record(asked, 0.8 + number / 100)
        if number == 5:
            told = replace(told, state="failed", reason="the loss is NaN", metrics={})
        sweep.tell(asked, told)
    sweep.ask()
    remembered = sweep.study.get_trials(deepcopy=False)
    read = optuna.load_study(study_name=sweep.name, storage=storage).get_trials()
    assert [t.state for t in read] == [TrialState.COMPLETE] * 5 + [TrialState.FAIL] + [TrialState.COMPLETE] * 2 + [
        TrialState.RUNNING
    ]
    for ours, theirs in zip(remembered, read, strict=True):
        for name in ("number", "state", "values", "params", "distributions", "user_attrs", "system_attrs"):
            assert getattr(ours, name) == getattr(theirs, name)


def test_a_tell_that_the_disk_refuses_leaves_the_trial_running(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep.open(study(), storage)
    asked = sweep.ask()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(RDBStorage, "set_trial_state_values", full)
        with pytest.raises(OSError, match="No space"):
            sweep.tell(asked, record(asked))
    (trial, *_) = optuna.load_study(study_name=sweep.name, storage=storage).get_trials(states=[TrialState.RUNNING])
    assert "record" not in trial.user_attrs
    sweep.tell(asked, record(asked))
    assert [r.number for r in sweep.records()] == [asked.number]


def test_an_older_sweep_can_be_gone_on_with_by_its_name(storage: str) -> None:
    Sweep.open(study(), storage)
    assert Sweep.open(study(), storage, fresh=True).name == "tiny-002"
    assert Sweep.open(study(), storage, named="tiny-001").name == "tiny-001"
    with pytest.raises(SettingsError, match=r"sweep: tiny has no sweep 'tiny-003'; choose from tiny-001, tiny-002"):
        Sweep.open(study(), storage, named="tiny-003")
    assert sweep_names("tiny", storage) == ["tiny-001", "tiny-002"]
