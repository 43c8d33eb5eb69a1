"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import trainers.base
from runtimes.quiet import default_folder
from search.tracking.uri import quiet
from tasks.mnist import data
from tests.linear import LinearTrainer

# A busy machine is no failure: nothing is asserted of time.
settings.register_profile("pare", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pare")

# Two files run side by side: what takes longest begins first, so that neither side waits for the other at the end.
LONGEST = (
    "recovery",
    "optimist",
    "tensorflow_trainer",
    "trainer_contract",
    "production",
    "storage",
    "compare",
)

CACHE = Path(__file__).parent.parent / "mlruns" / "cache"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of LONGEST first."""
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.hookimpl(optionalhook=True)  # of xdist, which a run may do without
def pytest_handlecrashitem(crashitem: str) -> None:
    """Name at once the test in which a worker of xdist died: who waits for the summary may wait in vain."""
    print(f"\na worker died in {crashitem}", flush=True)


@pytest.fixture(scope="session")
def fetched() -> Path:
    """The project's cache with MNIST in it, fetched if it is not there yet."""
    data.load("mnist", CACHE)
    return CACHE


@pytest.fixture(scope="session")
def blank_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without a run: its hundred migrations take seconds, so they run once."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with quiet():
        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def studied(fetched: Path, blank_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `root=` folder with two real sweeps of `smoke`: the first learns from 200 images, the second from 2,000.

    Latency is measured, but no objective: which of the two is better must not depend on a noisy machine.
    """
    made = tmp_path_factory.mktemp("studied")
    (made / "cache").mkdir()
    (made / "cache" / "data").symlink_to(fetched / "data")
    shutil.copyfile(blank_store, made / "mlflow.db")
    env = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    said = ["study.budget.trials=6", "study.confirm.seeds=3", "study.objectives=[accuracy,size_bytes]"]
    for changes in (["study.task.train_size=200"], ["fresh=true", "tracking.tensorboard=true"]):
        command = [sys.executable, "-m", "search.run", "study=smoke", f"root={made}", *said, *changes]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
    return made


@pytest.fixture(autouse=True)
def _own_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test's record is another's: MLflow writes the address it is given into the environment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Locks and memory of latency apart from those of whatever else measures or trains on this host; their folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return default_folder()


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> LinearTrainer:
    """The linear trainer in the place of every trainer of this process."""
    trainer = LinearTrainer()
    monkeypatch.setattr(trainers.base, "load", lambda name: trainer)
    return trainer


@pytest.fixture
def root(fetched: Path, blank_store: Path, tmp_path: Path) -> Path:
    """A new, empty `root=` folder that need not fetch MNIST nor migrate MLflow's database again."""
    made = tmp_path / "mlruns"
    (made / "cache").mkdir(parents=True)
    (made / "cache" / "data").symlink_to(fetched / "data")
    shutil.copyfile(blank_store, made / "mlflow.db")
    return made
