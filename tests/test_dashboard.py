"""The studies open in optuna-dashboard, which takes no infeasible trial for a best one and marks those it draws."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest

from search import dashboard
from search.storage.database import address
from search.study.config import check
from search.sweep.sweep import Sweep
from tests.linear import RAW
from tests.sweeps import record


def answer(url: str, path: str) -> Any:
    """What the dashboard's HTTP API says."""
    pytest.importorskip("optuna_dashboard")
    environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": "GET"}
    setup_testing_defaults(environ)
    return json.loads(b"".join(dashboard.app(url)(environ, lambda *told: None)))


def swept(root: Path, **changes: Any) -> tuple[Sweep, list[int]]:
    """A sweep of six trials told as the driver tells them, and the numbers of its infeasible trials."""
    raw = RAW | {"constraints": ["accuracy_drop <= 0.004"], "references": {}} | changes
    sweep = Sweep.open(check({"study": raw}).study, address(root))
    infeasible = []
    for number in range(6):
        asked, made = sweep.ask(), record(number)
        sweep.tell(asked, made)
        if made.metrics["accuracy_drop"] > 0.004:
            infeasible.append(number)
    return sweep, infeasible


def test_infeasible_trials_are_marked_and_never_among_the_best(tmp_path: Path) -> None:
    sweep, infeasible = swept(tmp_path)
    told = answer(address(tmp_path), "/api/studies/1")
    assert infeasible
    assert len(told["trials"]) == 6
    assert told["objective_names"] == ["accuracy", "latency_ms"]
    assert [t["number"] for t in told["trials"] if any(c > 0 for c in t["constraints"])] == infeasible
    best = [t["number"] for t in told["best_trials"]]
    assert best == [t.number for t in sweep.study.best_trials]
    assert not set(best) & set(infeasible)
    # The trials that only these infeasible ones dominate are among the best: they would else be missing.
    unlimited = optuna.create_study(directions=["maximize", "minimize"])
    unlimited.add_trials([optuna.trial.create_trial(values=t.values) for t in sweep.study.trials])
    assert {t.number for t in unlimited.best_trials} & set(infeasible)


def test_a_study_with_one_objective_has_a_feasible_best(tmp_path: Path) -> None:
    sweep, infeasible = swept(tmp_path, objectives=["latency_ms"])
    (best,) = answer(address(tmp_path), "/api/studies/1")["best_trials"]
    feasible = [t for t in sweep.study.trials if t.number not in infeasible]
    assert best["number"] == min(feasible, key=lambda t: t.value or 0).number


def test_a_confirmed_front_is_the_front_with_the_confirmed_figures(tmp_path: Path) -> None:
    sweep, _ = swept(tmp_path)
    means = {"accuracy": [0.9, 0.89, 0.91], "latency_ms": [2.0, 1.9, 2.1]}
    points = [{"number": 1, "on_front": True, "metrics": means}, {"number": 3, "on_front": False, "metrics": means}]
    sweep.put("confirmed", {"state": "any", "points": points})
    told = answer(address(tmp_path), "/api/studies/1")
    assert [t["number"] for t in told["best_trials"]] == [1]
    shown = {t["number"]: t["values"] for t in told["trials"]}
    assert shown[1] == shown[3] == [0.9, 2.0]
    assert shown[2] == [record(2).metrics["accuracy"], record(2).metrics["latency_ms"]]


def test_nothing_is_written_that_counts_a_constraint_twice(tmp_path: Path) -> None:
    sweep, _ = swept(tmp_path)
    answer(address(tmp_path), "/api/studies/1")
    again = optuna.load_study(study_name=sweep.name, storage=address(tmp_path))
    assert {tuple(t.constraints) for t in again.trials} == {("accuracy_drop <= 0.004",)}


def test_the_command_prints_an_address_that_answers_and_ends_with_sigterm(tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    swept(tmp_path)
    command = [sys.executable, "-m", "search.dashboard", f"root={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as running:
        assert running.stdout is not None
        address = running.stdout.readline().split()[-1]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{address}/api/studies", timeout=60) as said:
            assert json.load(said)["study_summaries"][0]["study_name"] == "lucky-001"
        running.terminate()
        assert running.wait(30) == 0


def test_a_folder_without_studies_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dashboard.main([f"root={tmp_path}"]) == 1
    assert "holds no studies; run `python -m search.run" in capsys.readouterr().err
