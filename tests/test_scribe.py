"""MLflow's own process: what it is handed is written, what goes wrong there is told here, it outlives nobody."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from search.tracking.tracking import Tracking
from search.tracking.uri import TrackingError
from search.tracking.writer import Writer
from tests.sweeps import record
from tests.test_status import waited


@pytest.fixture
def store(blank_store: Path, tmp_path: Path) -> Path:
    shutil.copyfile(blank_store, tmp_path / "mlflow.db")
    Tracking(tmp_path, "study").start_sweep("a", {}, {})
    return tmp_path


def numbers(store: Path) -> list[int]:
    return [int(number) for number in Tracking(store, "study").trials("a")["number"]]


def test_all_is_written_when_it_is_closed(store: Path) -> None:
    scribe = Writer(store, "study", "a", tensorboard=True)
    for number in range(12):
        scribe.log(record(number))
    scribe.close()
    assert numbers(store) == list(range(12))
    assert len(list((store / "tensorboard" / "a").iterdir())) == 12


def test_what_mlflow_refuses_is_raised_where_the_next_trial_is_handed_over(store: Path) -> None:
    scribe = Writer(store, "study", "a", tensorboard=False)
    (store / "mlflow.db").write_text("no database")
    scribe._process.join(60)
    with pytest.raises(TrackingError, match=r"tracking: sqlite.*mlflow\.db.*run the same command again"):
        scribe.log(record(0))
    with pytest.raises(TrackingError):
        scribe.close()


def test_its_death_is_told_and_the_next_one_completes_what_it_left(store: Path) -> None:
    scribe = Writer(store, "study", "a", tensorboard=False)
    scribe.log(record(0))
    assert waited(lambda: numbers(store) == [0])
    scribe._process.kill()
    scribe._process.join()
    with pytest.raises(TrackingError, match="was killed; run the same command again"):
        scribe.log(record(1))
    again = Writer(store, "study", "a", tensorboard=False)
    for number in range(3):
        again.log(record(number))
    again.close()
    assert numbers(store) == [0, 1, 2]


DRIVER = """
import sys, time
from pathlib import Path
from search.tracking.writer import Writer
from tests.sweeps import record
if __name__ == "__main__":
    scribe = Writer(Path(sys.argv[1]), "study", "a", False)
    for number in range(60):  # more than may wait: some are written when the last is handed over
        scribe.log(record(number))
    print(scribe._process.pid, flush=True)
    time.sleep(60)
"""


def test_it_ends_with_its_driver_and_leaves_its_place_to_the_next(store: Path, tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen([sys.executable, script, store], stdout=subprocess.PIPE, env=env, text=True) as driver:
        assert driver.stdout is not None
        process = psutil.Process(int(driver.stdout.readline()))
        driver.kill()
        driver.wait()
    scribe = Writer(store, "study", "a", tensorboard=False)  # at once, as an impatient user would
    for one in range(60):
        scribe.log(record(one))
    scribe.close()
    assert numbers(store) == list(range(60))  # each once
    assert not process.is_running()
