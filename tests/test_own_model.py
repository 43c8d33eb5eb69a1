"""docs/own-model.md, every case as written, outside the repository: new, run, pick, served answers."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

import trainers.base
from search.front import summary
from serving.package import Package
from serving.protocol import NAMES
from tasks import problems
from tests import own_cases
from tests.test_serving_http import Served

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "own-model.md").read_text()
SECTIONS = {part[0]: part for part in re.split(r"^## \(", TEXT, flags=re.MULTILINE)[1:]}
# A search of seconds; its figures mean nothing.
TINY = {
    "executor.workers": "1",
    "study.budget.trials": "5",
    "study.confirm.seeds": "2",
    "study.confirm.candidates": "2",
    "study.latency.max_seconds": "0.2",
    "study.constraints": "[]",
}
TRAINING = {"study.dense.epochs": "3", "study.recipe.finetuning.epochs": "1"}
NEEDED = {"e": "tensorflow"}


def blocks(section: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def prepared(letter: str, folder: Path) -> None:
    """The data that the section's commands name."""
    if letter in "ab":
        own_cases.photos(folder, {"train": 20, "val": 10})
    elif letter == "c":
        own_cases.text(folder)
    elif letter == "f":
        own_cases.onnx(folder)
    for text in blocks(SECTIONS[letter], "python"):
        name = text.splitlines()[0].removeprefix("# ")
        (folder / name).write_text(text)


def run(command: str, folder: Path, changes: Mapping[str, str]) -> str:
    """A command of the page; `changes` make a search small."""
    words = shlex.split(command)
    assert words[:2] == ["python", "-m"], command
    if words[2] == "search.run":
        words += [f"{key}={value}" for key, value in changes.items()]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run([sys.executable, *words[1:]], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


def request(letter: str, folder: Path) -> Any:
    """What somebody sends to the served model."""
    if letter in "ab":
        return (folder / "photos" / "val" / "dog" / "0.jpg").read_bytes()
    if letter == "c":
        return "a good film"
    arrays = {
        "d": np.zeros((1, 8)),
        "e": np.zeros((1, 12, 12, 1)),
        "f": np.zeros((1, 8)),
        "g": np.zeros((1, 3, 16, 16)),
        "i": np.zeros((1, 800)),
    }
    return {"user": [3], "item": [7]} if letter == "h" else arrays[letter]


def answered(letter: str, folder: Path, name: str) -> dict[str, Any]:
    """The picked model's answer to a request over HTTP; what it answers to its own example by the open protocol."""
    made = Package.read(folder / "mlruns" / "picked" / name)
    server = Served(folder / "served")
    server.use(made)
    asked = request(letter, folder)
    if isinstance(asked, bytes | str):
        status, headers, answer = server.ask("/predict", asked if isinstance(asked, bytes) else asked.encode())
    else:
        plain = asked if isinstance(asked, dict) else {"inputs": asked.tolist()}
        status, headers, answer = server.ask("/predict", json.dumps(plain).encode())
    assert (status, headers["pare-version"]) == (200, made.about.label), answer
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    assert made.example is not None
    given = []
    for port, value in made.example[0].items():
        given.append(triton.InferInput(port, list(value.shape), NAMES[value.dtype.name]))
        given[-1].set_data_from_numpy(value)
    found = client.infer("m", given)
    for port, wanted in made.example[1].items():
        np.testing.assert_allclose(found.as_numpy(port), wanted, rtol=1e-3, atol=1e-3 * max(1.0, np.abs(wanted).max()))
    server.close()
    said: dict[str, Any] = json.loads(answer)
    return said


ANSWERS = {
    "a": set(own_cases.CLASSES),
    "b": set(own_cases.CLASSES),
    "c": {"neg", "pos"},
    "d": set("0123"),
    "e": set("012"),
    "f": set("0123"),
    "i": {"yes", "no", "up", "down"},
}


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize("letter", sorted(SECTIONS))
def test_a_case_as_written(letter: str, tmp_path: Path) -> None:
    if NEEDED.get(letter, "pytorch") not in trainers.base.names():
        pytest.skip(f"no {NEEDED[letter]} trainer")
    prepared(letter, tmp_path)
    commands = [line for text in blocks(SECTIONS[letter], "sh") for line in text.splitlines()]
    assert [word.split()[2] for word in commands] == ["search.new", "search.run", "search.pick"]
    name = commands[0].split()[3]
    changes = TINY if letter == "f" else TINY | TRAINING
    for command in commands:
        run(command, tmp_path, changes)
        if letter == "f" and command is commands[0]:
            said = run(f"python -m search.doctor --config-dir . study={name}", tmp_path, {})
            assert "agreement" in said
    found = summary.read(tmp_path / "mlruns", name)
    assert len(found.complete) == 5
    assert not found.front.empty
    assert found.front["confirmed"].any()
    answer = answered(letter, tmp_path, name)
    if letter in ANSWERS:
        assert answer["label"] in ANSWERS[letter]
    elif letter == "g":
        assert np.shape(answer["mask"]) == (16, 16)
    else:
        (value,) = (value for key, value in answer.items() if key not in ("model", "version"))
        assert np.isfinite(value)
    assert {path.name for path in tmp_path.iterdir()} >= {"study", "mlruns"}


def test_the_page_has_all_nine_cases() -> None:
    assert sorted(SECTIONS) == list("abcdefghi")


@pytest.mark.parametrize("letter", sorted(SECTIONS))
def test_the_first_command_of_a_case_writes_a_valid_study(
    letter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from search import new
    from search.run import EXPERIMENTS
    from search.study import compose

    prepared(letter, tmp_path)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(blocks(SECTIONS[letter], "sh")[0].splitlines()[0])[3:]
    assert new.main(words) == 0
    config = compose.composed([f"study={words[0]}", "--config-dir=."], EXPERIMENTS)
    assert problems.problems(config.task) == []


def test_the_table_of_optional_names_is_what_is_read() -> None:
    from tasks.own import OPTIONAL

    table = TEXT.split("## What a plain file may hold")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)", table, re.MULTILINE)) | set(re.findall(r"`(MODELS|postprocess)", table))
    assert named - {"model", "data"} == set(OPTIONAL)
    for word in ("accuracy", "top5", "f1", "miou", "mse", "rmse", "mae", "ndcg", "agreement"):
        assert word in table
