"""The doctor: every step of a study is tried on a part of its data, and a step that fails is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from search import doctor
from search.run import EXPERIMENTS
from search.study import compose
from search.study.config import Config

STUDY = """
name: mine
objectives: [metric, size_bytes]
runtime: onnxruntime
task: {name: mine.py}
dense: {epochs: 1, batch_size: 16}
recipe: {finetuning: {epochs: 1}}
budget: {trials: 2}
confirm: {seeds: 0}
"""
TASK = """
import numpy as np
import torch


def model():
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


def data(split):
    rng = np.random.default_rng({"train": 0, "validation": 1, "test": 2}[split])
    x = rng.normal(size=(96, 8)).astype(np.float32)
    return x, x[:, :3].argmax(1)


def loss(outputs, batch):
    return torch.nn.functional.cross_entropy(outputs, batch[1])


def metric(outputs, targets):
    return (outputs.argmax(1) == targets).mean()
"""


def written(folder: Path, task: str) -> Config:
    (folder / "study").mkdir()
    (folder / "study" / "mine.yaml").write_text(STUDY)
    (folder / "mine.py").write_text(task)
    words = ["study=mine", f"--config-dir={folder}", f"root={folder}/mlruns", "executor=inline"]
    return compose.composed(words, EXPERIMENTS)


def test_every_step_of_an_own_task_is_looked_at(tmp_path: Path) -> None:
    config = written(tmp_path, TASK)
    found = doctor.examined(config)
    assert found["problems"] == []
    assert found["model"]["parameters"] == 8 * 16 + 16 + 16 * 3 + 3
    assert found["data"]["counts"]["train"] == 96
    assert found["data"]["duplicates"] == 0
    names = [row["name"] for row in found["recipes"]]
    assert names[:2] == ["dense fp32", "int8"]
    assert "50 % of channels removed" in names
    assert all("problem" not in row for row in found["recipes"]), found["recipes"]
    assert all(row["latency_ms"] > 0 and row["agreement"] > 0.9 for row in found["recipes"])
    assert found["cost"]["trial_s"] > 0
    text = "\n".join(doctor.lines(config, found))
    assert "195 parameters" in text
    assert "python -m search.run study=mine --config-dir" in text
    json.dumps(found, default=float)


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("return torch.nn.functional.cross_entropy(outputs, batch[1])", "return outputs.no_such()", "mine.py:"),
        ("(96, 8)", "(96, 9)", "model"),
        ("def model():\n", "def model():\n    raise KeyError('weights')\n", "mine.py:7"),
    ],
)
def test_a_step_that_fails_is_named_with_the_users_line(tmp_path: Path, was: str, becomes: str, says: str) -> None:
    assert was in TASK
    config = written(tmp_path, TASK.replace(was, becomes))
    found = doctor.examined(config)
    assert len(found["problems"]) == 1
    shown = "\n".join(doctor.lines(config, found))
    assert "the search would stop here" in shown
    assert says in shown, shown
    assert "Traceback" not in shown


def ended(*words: str) -> Any:
    return subprocess.run([sys.executable, "-m", "search.doctor", *words], capture_output=True, text=True)


def test_mistakes_on_the_command_line_end_with_2(tmp_path: Path) -> None:
    done = ended("format=table")
    assert (done.returncode, done.stdout) == (2, "")
    assert "study: missing" in done.stderr
    done = ended("study=smoke", "format=xml", f"root={tmp_path}")
    assert done.returncode == 2
    assert "choose from table, json" in done.stderr
