"""A finished sweep is shown again from its table; whatever is not plainly finished is left to the driver."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trainers.base
from search.run import carry_out
from search.storage.database import address
from search.storage.finished import finished
from search.study.config import Config
from search.sweep.recorder import TABLE
from search.sweep.sweep import Sweep
from tests import linear

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished sweep of two trials."""
    config = linear.config(tmp_path_factory.mktemp("finished"), confirm={"seeds": 0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainers.base, "load", lambda name: linear.LinearTrainer())
        linear.searched(config)
    return config


def again(done: Config, **changes: Any) -> Config:
    return linear.config(done.root, **{"confirm": {"seeds": 0}} | changes)


def test_what_was_shown_at_the_end_is_shown_again(done: Config, capsys: pytest.CaptureFixture[str]) -> None:
    found = finished(done)
    assert found is not None
    name, stored = found
    assert (name, stored["finished"][0]) == ("lucky-001", 2)
    assert stored["table"] == Sweep.open(done.study, address(done.root)).get(TABLE)
    assert carry_out(done)[1].to_dict()["title"] == stored["table"]["title"]
    assert "lucky-001: already finished 2 trials; raise study.budget.trials to continue" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": {"trials": 3}},
        {"confirm": {"seeds": 1}},
        {"seed": 7},
        {"name": "another"},
        {"name": "luck_"},  # an underscore is no wildcard
    ],
)
def test_with_anything_changed_there_is_work_to_do(done: Config, changes: dict[str, Any]) -> None:
    assert finished(again(done, **changes)) is None


def test_fresh_another_sweep_and_a_server_are_left_to_the_driver(done: Config) -> None:
    for change in ({"fresh": True}, {"sweep": "lucky-009"}, {"root": done.root / "elsewhere"}):
        assert finished(done.model_copy(update=change)) is None
    server = done.storage.model_copy(update={"name": "postgres"})
    assert finished(done.model_copy(update={"storage": server})) is None


@pytest.mark.parametrize(
    "damage",
    [
        "update trials set state = 'RUNNING' where number = 1",
        "delete from trial_user_attributes where key = 'record'",
        "delete from study_user_attributes where key = 'table'",
        "update study_user_attributes set value_json = 'x' where key = 'finished'",
        "drop table trials",
    ],
)
def test_a_database_that_says_otherwise_is_left_to_the_driver(done: Config, tmp_path: Path, damage: str) -> None:
    with sqlite3.connect(done.root / "optuna.db") as source, sqlite3.connect(tmp_path / "optuna.db") as copy:
        source.backup(copy)
    moved = done.model_copy(update={"root": tmp_path})
    assert finished(moved) is not None
    with sqlite3.connect(tmp_path / "optuna.db") as copy:
        copy.execute(damage)
    assert finished(moved) is None


def test_references_beyond_the_budget_may_wait(root: Path, planted: linear.LinearTrainer) -> None:
    config = linear.config(root, confirm={"seeds": 0}, budget={"trials": 1})
    sweep = linear.searched(config)
    assert [trial.state.name for trial in sweep.study.trials] == ["COMPLETE", "WAITING"]
    found = finished(config)
    assert found is not None
    assert found[1]["finished"][0] == 1


def test_the_command_needs_no_library_of_the_search_to_say_so() -> None:
    heavy = {"optuna", "sqlalchemy", "mlflow", "pandas", "scipy", "torch", "pebble"}
    code = f"import sys, search.run; print(sorted({heavy!r} & {{name.split('.')[0] for name in sys.modules}}))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert said.stdout.strip() == "[]"
