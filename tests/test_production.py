"""docs/production.md does what it says: its Python is run as it stands, its commands are MLflow's."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from search import pick
from search.tracking.uri import store_uri
from tasks.mnist import data
from tests.linear import LinearTrainer, config, fitted, searched
from tests.test_served import labels_of, write_tflite

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "production.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
BASH = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def place(planted: LinearTrainer, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picked model and images, the record reached as the page says."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    searched(config(root))
    assert pick.main(["study=lucky", f"root={root}"]) == 0
    folder = root / "picked" / "lucky"
    np.save(folder / "images.npy", data.open_test("mnist", root / "cache").images[:200])
    write_tflite(fitted(data.load("mnist", root / "cache", train_size=3000).train), folder / "model.tflite")
    return folder


def run(place: Path, *command: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "MLFLOW_TRACKING_URI": store_uri(place.parent.parent), "PATH": path}
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_python_gives_the_labels_of_the_file(place: Path) -> None:
    assert len(PYTHON) == 3
    images = np.load(place / "images.npy")
    for code in PYTHON:
        said = run(place, sys.executable, "-c", code.replace("mnist_prune", "lucky"))
        file = place / ("model.tflite" if "litert" in code else "model.onnx")
        assert said.split() == [str(label) for label in labels_of(file, images)], code


def test_the_dockerfile_is_written_without_docker(place: Path) -> None:
    (line,) = [line for line in BASH if "generate-dockerfile" in line]
    run(place, *shlex.split(line.replace("mnist_prune", "lucky")))
    assert "FROM" in (place / "image" / "Dockerfile").read_text()
    needs = next((place / "image").rglob("requirements.txt")).read_text()
    assert "onnxruntime==" in needs


def test_the_commands_have_the_options_they_are_given() -> None:
    (line,) = [line for line in BASH if "models serve" in line]
    said = subprocess.run(
        [sys.executable, "-m", "mlflow", "models", "serve", "--help"], capture_output=True, text=True, check=True
    )
    assert [option for option in re.findall(r"--[\w-]+", line) if option not in said.stdout] == []
