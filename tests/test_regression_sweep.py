"""A whole sweep of a task that minimizes an error: searched, confirmed, reported, compared and picked by it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import trainers.base
from search import report
from search.front.choice import choose
from search.front.summary import read
from search.run import carry_out
from search.storage.database import address
from search.study.config import Config
from search.study.constraint import Constraint
from search.study.metrics import Metrics
from search.sweep.confirmed import Confirmed
from search.sweep.sweep import Sweep
from search.tracking.tracking import Tracking
from tests import linear
from tests.regression import METRICS, LeastSquares, Rows


def config(root: Path) -> Config:
    granularities = {"choices": ["none", "unstructured", "n_m"]}
    return linear.config(
        root,
        task={"name": "tests.regression:Regression"},
        objectives=["rmse", "mae"],
        constraints=["rmse_drop <= 9"],
        recipe={"model": "line", "pruning": {"granularity": granularities, "sparsity": 0.5}},
        references={name: {"pruning": {"granularity": name}} for name in granularities["choices"]},
        confirm={"seeds": 2},
        budget={"trials": 3},
    )


def test_a_sweep_that_minimizes_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainers.base, "load", lambda name: LeastSquares())
    asked = config(root)
    name, _ = carry_out(asked)
    said = capsys.readouterr().out
    assert "rmse" in said
    assert "ccuracy" not in said

    sweep = Sweep.open(asked.study, address(root), metrics=Metrics(METRICS))
    assert sweep.directions == ["minimize", "minimize"]
    honest, optimist, broken = sweep.records()
    assert optimist.metrics["rmse"] < honest.metrics["rmse"]  # by luck
    assert honest.metrics["rmse_drop"] == pytest.approx(0)
    assert honest.metrics["rmse"] == pytest.approx(1, abs=0.2)
    assert (broken.state, broken.reason) == (
        "failed",
        "rmse: is nan; the model's outputs or the task's metric are not finite",
    )

    points = {point["number"]: Confirmed.from_dict(point) for point in sweep.get("confirmed")["points"]}
    assert [points[number].on_front for number in (0, 1)] == [True, False]
    held = Rows("test")
    errors = held.features @ np.linalg.lstsq(Rows("train").features, Rows("train").targets, rcond=None)[0]
    expected = float(np.sqrt(np.mean((errors - held.targets) ** 2)))
    assert points[0].metrics["test_rmse"][0] == pytest.approx(expected, abs=1e-3)
    assert points[0].metrics["test_rmse_drop"][0] == pytest.approx(0, abs=1e-5)
    assert points[1].metrics["test_mae_drop"][0] > 0

    summary = read(root, asked.study.name, name)
    assert summary.metrics == Metrics(METRICS)
    assert summary.front["number"].tolist() == [0]
    dense = sweep.get("baseline pytorch/line")["metrics"]
    reference = Tracking(root, asked.study.name).about(name)["reference"]
    assert reference[0] == pytest.approx(dense["rmse"] + 9)  # what the study allows
    assert reference[1] == pytest.approx(1.05 * dense["mae"])  # what is tolerated without a word
    assert report.main([f"study={asked.study.name}", f"root={root}", "format=json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["test_rmse"] == pytest.approx(expected, abs=1e-3)
    assert not [key for key in row if "accuracy" in key]
    assert choose(summary, [Constraint.parse("rmse<=2")], by="mae")["number"] == 0
