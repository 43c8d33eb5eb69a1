"""Workers are real processes: they crash, hang, report progress and end with the driver."""

from __future__ import annotations

import logging
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from search.errors import WorkerError
from search.executors.base import Executor
from search.executors.inline import InlineExecutor
from search.executors.local import LocalExecutor
from search.executors.start import start
from search.study.config import Config, check
from search.study.config import Executor as Settings
from search.trial.steps import TrainThenMeasure
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
    logging.getLogger("tasks.cache").warning("the cache is %s", "broken")


_served = 0


def remember(progress: Progress) -> tuple[int, int]:
    global _served
    _served += 1
    return os.getpid(), _served


def write(given: Path, folder: Path, progress: Progress) -> Path:
    folder.mkdir(parents=True)
    (folder / "made").write_text(f"{given.read_text()} and made")
    return folder / "made"


def read(given: Path, folder: Path, made: Path, progress: Progress) -> tuple[Path, str, bool]:
    return made, made.read_text().replace("made", "read"), given.parent.name == "root0"


def fail(progress: Progress) -> None:
    raise TrainingError("the loss is NaN")


def configured(**settings: Any) -> Config:
    from tests.linear import RAW  # not by the workers, which import this file

    return check({"study": RAW, "executor": settings})


SETTINGS: dict[str, Any] = {"workers": 2, "trial_timeout": 6, "retries": 1, "trials_per_worker": 3}


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """On a Ray of its own; one for all tests, since it takes seconds to start."""
    from search.executors.ray.executor import RayExecutor

    settings = Settings.model_validate({"name": "ray", "address": "local", **SETTINGS})
    executor = RayExecutor(settings, tmp_path_factory.mktemp("root"))
    yield executor
    executor.close()


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.cluster)])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """Every executor that has workers must pass these tests."""
    if request.param == "ray":
        yield request.getfixturevalue("ray")
        return
    local = LocalExecutor(Settings.model_validate(SETTINGS))
    yield local
    local.close()


def test_work_is_done_in_other_processes_which_are_recycled(executor: Executor) -> None:
    pids = [executor.submit(i, "pytorch", pid).result(timeout=30) for i in range(10)]
    assert os.getpid() not in pids
    assert max(map(pids.count, pids)) <= 3


def test_progress_reaches_the_driver(executor: Executor) -> None:
    assert executor.submit(7, "pytorch", double, 21).result(timeout=30) == 42
    deadline = time.monotonic() + 60
    found = executor.events()
    # On a cluster a stage also names the host it happens on.
    stage = "doubling" if isinstance(executor, LocalExecutor) else f"doubling on {platform.node()}"
    while (7, stage, 0.5) not in found and time.monotonic() < deadline:
        time.sleep(0.05)
        found += executor.events()
    assert (7, stage, 0.5) in found


def test_a_crash_is_tried_again_then_is_the_reason(executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"killed .*; out of memory\?"):
        executor.submit(0, "pytorch", die, tmp_path / "log", signal.SIGKILL).result(timeout=60)
    assert (tmp_path / "log").read_text() == "xx"
    assert executor.submit(1, "pytorch", die_once, tmp_path / "once").result(timeout=60) == "well"
    assert executor.submit(2, "pytorch", double, 1).result(timeout=30) == 2


def test_what_takes_too_long_is_stopped(executor: Executor) -> None:
    with pytest.raises(WorkerError, match=r"longer than executor.trial_timeout \(6 s\)"):
        executor.submit(0, "pytorch", hang).result(timeout=60)


def test_a_reason_of_its_own_is_not_tried_again(executor: Executor) -> None:
    with pytest.raises(TrainingError, match="the loss is NaN"):
        executor.submit(0, "pytorch", fail).result(timeout=30)


@pytest.mark.cluster
def test_workers_are_kept_and_no_two_trainers_share_one(ray: Executor) -> None:
    first, second = (ray.submit(i, "pytorch", remember).result(timeout=60) for i in range(2))
    assert second[0] == first[0]
    assert second[1] == first[1] + 1
    assert ray.submit(2, "tensorflow", remember).result(timeout=60)[0] != first[0]


@pytest.mark.cluster
def test_files_travel_with_the_work_and_back(ray: Executor, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp() / "root0"
    (root / "given").write_text("given")
    made = ray.submit(0, "pytorch", TrainThenMeasure(write, read), root / "given", root / "trials" / "0001").result(
        timeout=60
    )
    assert made == (root / "trials" / "0001" / "made", "given and read", False)
    assert made[0].read_text() == "given and made"


def test_warnings_reach_the_driver_and_prints_the_file(tmp_path: Path) -> None:
    executor = start(configured(workers=1), tmp_path / "logs" / "output")
    try:
        executor.submit(0, "pytorch", talk).result(timeout=60)
        deadline = time.monotonic() + 60
        found = executor.events()
        while not found and time.monotonic() < deadline:
            time.sleep(0.05)
            found += executor.events()
        assert found == [(None, "warning: the cache is broken", 0.0)]
        assert "a framework prints" in (tmp_path / "logs" / "output").read_text()
    finally:
        executor.close()


def test_inline_runs_here(tmp_path: Path) -> None:
    executor = start(configured(name="inline"), tmp_path / "log")
    assert isinstance(executor, InlineExecutor)
    assert executor.submit(0, "pytorch", pid).result() == os.getpid()
    with pytest.raises(TrainingError):
        executor.submit(0, "pytorch", fail).result()


def test_workers_end_when_the_driver_is_killed() -> None:
    code = (
        "import time\nfrom search.study.config import Executor\nfrom search.executors.local import LocalExecutor\n"
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


def test_workers_that_are_stopped_while_they_start_say_nothing(tmp_path: Path) -> None:
    code = (
        "import signal, time\nfrom pathlib import Path\nfrom search.executors.local import LocalExecutor\n"
        "from search.study.config import Executor\n"
        "if __name__ == '__main__':\n"
        "    executor = LocalExecutor(Executor(workers=2), Path('output.log'))\n"
        "    executor.warm('pytorch')\n"
        "    time.sleep(0.3)\n"
        "    executor.close()\n"
        "else:  # a worker that is told to end before it has read what it is for, and is slow to do so\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    time.sleep(0.5)\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
    )
    (tmp_path / "stopped.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "stopped.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
