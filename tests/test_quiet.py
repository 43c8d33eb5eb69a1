"""The quiet lock between real processes, some of them killed with -9 in each role."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from runtimes import quiet

ROOT = Path(__file__).parent.parent
PATIENCE = 60.0  # seconds until a process counts as blocked for ever

CHILD = """
import os, sys, time
from pathlib import Path
from runtimes import quiet

role, folder = sys.argv[1], Path(sys.argv[2])

def say(*words):
    print(*words, flush=True)

def steps(pause):
    say("in")
    while True:
        pause()
        began = time.monotonic_ns()
        while time.monotonic_ns() < began + 2_000_000:
            pass
        say("step", began, time.monotonic_ns())

if role == "train":
    with quiet.training(folder) as pause:
        steps(pause)
elif role == "train in one long step":
    with quiet.training(folder):
        say("in")
        time.sleep(600)
elif role == "train with a forked child":
    with quiet.training(folder):
        if child := os.fork():
            say("in", child)
        time.sleep(600)
elif role == "measure":
    say("asks")
    with quiet.measuring(folder):
        say("in")
        time.sleep(600)
elif role == "measure often":
    for _ in range(5):
        with quiet.measuring(folder):
            began = time.monotonic_ns()
            time.sleep(0.02)
            say("measured", began, time.monotonic_ns())
        time.sleep(0.02)
"""


class Child:
    """A process in one role; `lines` grows with what it says."""

    def __init__(self, role: str, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, role, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        self.lines: list[list[str]] = []
        self._said = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self._said:
                self.lines.append(line.split())
                self._said.notify_all()

    def wait_for(self, word: str, count: int = 1) -> list[list[str]]:
        def found() -> list[list[str]]:
            return [line for line in self.lines if line[0] == word]

        with self._said:
            assert self._said.wait_for(lambda: len(found()) >= count, PATIENCE), f"never said {word!r} {count} times"
            return found()

    def says_nothing_new(self, word: str, seconds: float) -> bool:
        with self._said:
            before = sum(line[0] == word for line in self.lines)
            return not self._said.wait_for(lambda: sum(line[0] == word for line in self.lines) > before, seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Child]]:
    children: list[Child] = []

    def started(role: str) -> Child:
        children.append(Child(role, tmp_path / "locks"))
        return children[-1]

    yield started
    for child in children:
        child.kill()


def overlap(one: list[str], two: list[str]) -> bool:
    return int(one[1]) < int(two[2]) and int(two[1]) < int(one[2])


def test_no_training_step_runs_during_a_measurement(start: Callable[[str], Child]) -> None:
    trainers = [start("train"), start("train")]
    for trainer in trainers:
        trainer.wait_for("step", 5)
    measured = start("measure often").wait_for("measured", 5)
    for trainer in trainers:
        done = len(trainer.wait_for("step", 5))
        trainer.wait_for("step", done + 5)  # training goes on afterwards
    steps = [line for trainer in trainers for line in trainer.lines if line[0] == "step"]
    assert not [step for step in steps for each in measured if overlap(step, each)]
    between = range(int(measured[0][2]), int(measured[-1][1]))
    assert [step for step in steps if int(step[1]) in between], "no step between two measurements: proves nothing"


def test_trainers_train_side_by_side(start: Callable[[str], Child]) -> None:
    trainers = [start("train in one long step"), start("train in one long step")]
    for trainer in trainers:
        trainer.wait_for("in")


def test_measurements_take_turns(start: Callable[[str], Child]) -> None:
    both = [start("measure often"), start("measure often")]
    first, second = (each.wait_for("measured", 5) for each in both)
    assert not [one for one in first for two in second if overlap(one, two)]


def test_a_measurement_waits_for_the_running_step(start: Callable[[str], Child]) -> None:
    trainer = start("train in one long step")
    trainer.wait_for("in")
    measurer = start("measure")
    measurer.wait_for("asks")
    assert measurer.says_nothing_new("in", 0.5)
    trainer.kill()
    measurer.wait_for("in")


def test_a_killed_trainer_blocks_nobody(start: Callable[[str], Child]) -> None:
    trainer = start("train")
    trainer.wait_for("step")
    trainer.kill()
    start("measure").wait_for("in")


def test_a_killed_trainer_blocks_nobody_though_its_forked_child_lives(start: Callable[[str], Child]) -> None:
    trainer = start("train with a forked child")
    (said,) = trainer.wait_for("in")
    trainer.kill()
    try:
        start("measure").wait_for("in")
        os.kill(int(said[1]), 0)  # still there
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(said[1]), 9)


def test_a_killed_measurer_blocks_nobody(start: Callable[[str], Child]) -> None:
    measurer = start("measure")
    measurer.wait_for("in")
    trainer = start("train")
    assert trainer.says_nothing_new("in", 0.5)
    measurer.kill()
    trainer.wait_for("step")
    start("measure").wait_for("in")


def test_a_measurer_killed_while_it_waits_blocks_nobody(start: Callable[[str], Child]) -> None:
    trainer = start("train in one long step")
    trainer.wait_for("in")
    waiting = start("measure")
    waiting.wait_for("asks")
    other = start("train in one long step")
    assert other.says_nothing_new("in", 0.5)  # it queues behind the measurement
    waiting.kill()
    other.wait_for("in")


def test_a_trainer_killed_in_its_pause_blocks_nobody(start: Callable[[str], Child]) -> None:
    paused = start("train")
    paused.wait_for("step")
    measurer = start("measure")
    measurer.wait_for("in")
    assert paused.says_nothing_new("step", 0.3)
    paused.kill()
    measurer.kill()
    start("train").wait_for("step")
    start("measure").wait_for("in")


def test_measuring_after_training_and_within_itself(tmp_path: Path) -> None:
    with quiet.training(tmp_path) as pause:
        pause()
    with quiet.measuring(tmp_path), quiet.measuring(tmp_path):
        pass
    with quiet.training(tmp_path) as pause:
        pause()


def test_measuring_while_training_is_refused(tmp_path: Path) -> None:
    with quiet.training(tmp_path), pytest.raises(RuntimeError, match="leave training"), quiet.measuring(tmp_path):
        pass
    with quiet.measuring(tmp_path):
        pass


def test_threads_of_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    inside = threading.Event()

    def train() -> None:
        with quiet.training(tmp_path):
            inside.set()

    with quiet.measuring(tmp_path):
        trainer = threading.Thread(target=train)
        trainer.start()
        assert not inside.wait(0.3)
    assert inside.wait(PATIENCE)
    trainer.join()


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with (
        pytest.raises(PermissionError, match="belongs to another user; remove it or set TMPDIR"),
        quiet.measuring(tmp_path),
    ):
        pass


def test_training_within_training_lets_a_measurement_in(tmp_path: Path) -> None:
    measured = threading.Event()

    def measure() -> None:
        with quiet.measuring(tmp_path):
            measured.set()

    with quiet.training(tmp_path) as outer:
        thread = threading.Thread(target=measure, daemon=True)
        thread.start()
        with quiet.training(tmp_path) as inner:
            assert inner is outer
            for _ in range(int(PATIENCE / 0.01)):
                inner()
                if measured.wait(0.01):
                    break
        assert measured.is_set()
    thread.join(PATIENCE)
    with quiet.measuring(tmp_path):  # and nobody is left inside
        pass
