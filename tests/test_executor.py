"""Workers are real processes: they crash, hang, report progress and end with the driver."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from search.config import Executor as Settings
from search.executor import InlineExecutor, LocalExecutor, start
from search.faults import WorkerError
from trainers.base import TrainingError

Progress = Callable[[str, float], None]


def double(value: int, progress: Progress) -> int:
    progress("doubling", 0.5)
    return 2 * value


def pid(progress: Progress) -> int:
    return os.getpid()


def die(log: Path, how: int, progress: Progress) -> None:
    with log.open("a") as file:
        file.write("x")
    os.kill(os.getpid(), how)


def die_once(log: Path, progress: Progress) -> str:
    if not log.exists():
        die(log, signal.SIGKILL, progress)
    return "well"


def hang(progress: Progress) -> None:
    time.sleep(60)


def talk(progress: Progress) -> None:
    print("a framework prints", flush=True)
    logging.getLogger("trainers.cache").warning("the cache is %s", "broken")


def fail(progress: Progress) -> None:
    raise TrainingError("the loss is NaN")


@pytest.fixture(scope="module")
def local() -> Iterator[LocalExecutor]:
    executor = LocalExecutor(Settings(workers=2, trial_timeout=6, retries=1, trials_per_worker=3))
    yield executor
    executor.close()


def test_work_is_done_in_other_processes_which_are_recycled(local: LocalExecutor) -> None:
    pids = [local.submit(i, "pytorch", pid).result(timeout=30) for i in range(10)]
    assert os.getpid() not in pids
    assert max(map(pids.count, pids)) <= 3


def test_progress_reaches_the_driver(local: LocalExecutor) -> None:
    assert local.submit(7, "pytorch", double, 21).result(timeout=30) == 42
    deadline = time.monotonic() + 10
    found = local.events()
    while (7, "doubling", 0.5) not in found and time.monotonic() < deadline:
        time.sleep(0.05)
        found += local.events()
    assert (7, "doubling", 0.5) in found


def test_a_crash_is_tried_again_then_is_the_reason(local: LocalExecutor, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="killed by SIGKILL; out of memory"):
        local.submit(0, "pytorch", die, tmp_path / "log", signal.SIGKILL).result(timeout=60)
    assert (tmp_path / "log").read_text() == "xx"
    assert local.submit(1, "pytorch", die_once, tmp_path / "once").result(timeout=60) == "well"
    assert local.submit(2, "pytorch", double, 1).result(timeout=30) == 2


def test_what_takes_too_long_is_stopped(local: LocalExecutor) -> None:
    with pytest.raises(WorkerError, match=r"longer than executor.trial_timeout \(6 s\)"):
        local.submit(0, "pytorch", hang).result(timeout=60)


def test_a_reason_of_its_own_is_not_tried_again(local: LocalExecutor) -> None:
    with pytest.raises(TrainingError, match="the loss is NaN"):
        local.submit(0, "pytorch", fail).result(timeout=30)


def test_warnings_reach_the_driver_and_prints_the_file(tmp_path: Path) -> None:
    executor = start(Settings(workers=1), tmp_path / "logs" / "output")
    try:
        executor.submit(0, "pytorch", talk).result(timeout=60)
        deadline = time.monotonic() + 10
        found = executor.events()
        while not found and time.monotonic() < deadline:
            time.sleep(0.05)
            found += executor.events()
        assert found == [(None, "warning: the cache is broken", 0.0)]
        assert "a framework prints" in (tmp_path / "logs" / "output").read_text()
    finally:
        executor.close()


def test_inline_runs_here(tmp_path: Path) -> None:
    executor = start(Settings(name="inline"), tmp_path / "log")
    assert isinstance(executor, InlineExecutor)
    assert executor.submit(0, "pytorch", pid).result() == os.getpid()
    with pytest.raises(TrainingError):
        executor.submit(0, "pytorch", fail).result()


def test_workers_end_when_the_driver_is_killed() -> None:
    code = (
        "import time\nfrom search.config import Executor\nfrom search.executor import LocalExecutor\n"
        "from tests.test_executor import hang, pid\n"
        "if __name__ == '__main__':\n"
        "    ex = LocalExecutor(Executor(workers=1))\n"
        "    print(ex.submit(0, 'pytorch', pid).result(), flush=True)\n"
        "    ex.submit(1, 'pytorch', hang)\n    time.sleep(60)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    worker = psutil.Process(int(driver.stdout.readline()))
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs([worker], timeout=10)
    assert not alive


def where(progress: Progress) -> tuple[int, str, bool]:
    progress("looking", 1.0)
    return os.getpid(), sys.executable, "pebble" in sys.modules


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another interpreter: a virtual environment of its own with what a worker needs, and nothing more."""
    folder = tmp_path_factory.mktemp("other") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    here = Path(np.__file__).parents[1]
    there = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    for name in here.iterdir():  # linked, not installed: no network, no minutes
        if not name.name.startswith(("torch", "tensorflow", "mlflow", "optuna")):
            (there / name.name).symlink_to(name)
    return folder / "bin" / "python"


def test_a_trainers_workers_may_have_an_interpreter_of_their_own(other: Path) -> None:
    executor = LocalExecutor(Settings(workers=1, python={"tensorflow": other}))
    try:
        first, second = (executor.submit(i, "tensorflow", where).result(timeout=60) for i in range(2))
        assert first == second  # the same process again: the framework is imported once
        assert first[1] == str(other)
        assert executor.submit(2, "pytorch", where).result(timeout=60)[1] == sys.executable
        with pytest.raises(TrainingError, match="the loss is NaN"):
            executor.submit(3, "tensorflow", fail).result(timeout=60)
        assert executor.submit(4, "tensorflow", double, 4).result(timeout=60) == 8
    finally:
        executor.close()


def test_an_interpreter_that_is_none_is_named(tmp_path: Path) -> None:
    executor = LocalExecutor(Settings(workers=1, retries=0, python={"tensorflow": tmp_path / "nothing"}))
    try:
        with pytest.raises(WorkerError, match=r"executor.python: .*nothing cannot be run"):
            executor.submit(0, "tensorflow", where).result(timeout=60)
    finally:
        executor.close()
