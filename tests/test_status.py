"""`python -m search.status` beside a running driver, after its death and after its end; it writes nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search import status
from search.study.config import check
from search.study.metrics import Metrics
from search.sweep import heartbeat
from search.sweep.display import Display
from search.sweep.heartbeat import Heartbeat
from search.sweep.sweep import Sweep
from tests.test_study import RAW, record, study

ROOT = Path(__file__).parent.parent


def address(root: Path) -> str:
    return f"sqlite:///{root}/optuna.db"


def beating(root: Path, sweep: Sweep) -> tuple[Heartbeat, Display]:
    display = Display(8, 0, ["accuracy"], Metrics(), Console(file=(root / "display").open("w")))
    return Heartbeat(check({"study": RAW, "root": root}), sweep, display, 2), display


def shown(root: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = status.main([f"root={root}", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def waited(condition: Any) -> bool:
    deadline = time.monotonic() + 90
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


def test_it_says_what_runs_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(heartbeat, "EVERY", 0.1)
    monkeypatch.setenv("COLUMNS", "200")
    sweep = Sweep.open(study(), address(tmp_path))
    beat, display = beating(tmp_path, sweep)
    with beat:
        for accuracy in (0.8, 0.9):
            asked = sweep.ask()
            sweep.tell(asked, replace(record(asked, accuracy), end_ms=asked.start_ms + 60_000))
        asked = sweep.ask()
        failed = replace(record(asked), state="failed", reason="the loss is NaN", metrics={}, words="half")
        sweep.tell(asked, failed)
        display.started(3, "trial 3: channel 50 %")
        display.progress(3, "fine-tune", 0.25)
        assert waited(lambda: "fine-tune" in sweep.study.user_attrs.get("live", ""))
        code, out, _ = shown(tmp_path, "study=tiny", capsys=capsys)
        assert code == 0
        for word in ("tiny-001", "running: search", "3 of 8", "1 of 2 busy", "channel 50 %", "fine-tune", "25 %"):
            assert word in out
        assert f"{os.getpid()} on {socket.gethostname()}" in out
        assert "trial 2, half: the loss is NaN" in out
        _, out, _ = shown(tmp_path, "format=json", capsys=capsys)
        one = json.loads(out)[0]
        assert (one["trials"], one["budget"], one["failed"], one["state"]) == (3, 8, 1, "running")
        assert 0 < one["seconds_left"] < 600
    beat.say("finished")
    _, out, _ = shown(tmp_path, capsys=capsys)
    assert "finished" in out
    assert "channel 50 %" not in out


def test_on_a_narrow_screen_only_the_host_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("socket.gethostname", lambda: "a-host-with-quite-a-long-name.in-some-rack.example.org")
    sweep = Sweep.open(study(), address(tmp_path))
    beat, display = beating(tmp_path, sweep)
    display.started(3, "trial 3: channel 50 %")
    beat.say("running")
    _, out, _ = shown(tmp_path, capsys=capsys)
    first = out.splitlines()[1]
    for word in ("tiny-001", "running: search", "0 of 8", "1 of 2 busy", str(os.getpid())):
        assert word in first
    assert all(len(line) <= 80 for line in out.splitlines())


def test_after_a_kill_it_says_since_when_and_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep.open(study(), address(tmp_path))
    beat, _ = beating(tmp_path, sweep)
    beat.say("running")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    said = sweep.get("live")
    sweep.put("live", said | {"pid": dead.pid})
    _, out, _ = shown(tmp_path, "study=tiny", capsys=capsys)
    assert "stopped" in out
    assert "No driver has run since" in out
    assert f"python -m search.run study=tiny root={tmp_path}" in out.replace("\n", "")
    # Of a driver on another machine only its silence is known.
    now = int(time.time() * 1000)
    assert status.alive(said | {"host": "elsewhere", "at_ms": now - 10_000})
    assert not status.alive(said | {"host": "elsewhere", "at_ms": now - 60_000})


def test_it_changes_nothing_and_reads_a_file_it_may_not_write(tmp_path: Path) -> None:
    Sweep.open(study(), address(tmp_path))
    before = (tmp_path / "optuna.db").read_bytes()
    assert [one.sweep for one in status.progress(address(tmp_path))] == ["tiny-001"]
    assert (tmp_path / "optuna.db").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["optuna.db"]


def test_the_newest_sweep_of_each_study_or_the_one_that_is_named(tmp_path: Path) -> None:
    for name, fresh in (("tiny", False), ("tiny", True), ("other", False)):
        Sweep.open(study(name=name), address(tmp_path), fresh)
    found = status.progress(address(tmp_path))
    assert [(one.sweep, one.state, one.budget) for one in found] == [
        ("other-001", "unknown", 8),
        ("tiny-002", "unknown", 8),
    ]
    assert [one.sweep for one in status.progress(address(tmp_path), "tiny", "tiny-001")] == ["tiny-001"]


def test_time_left_is_the_pace_of_the_newest_trials_over_the_workers() -> None:
    now = 1_000_000_000
    records = [{"start_ms": now - 90_000, "end_ms": now - 30_000, "duplicate_of": None}] * 4
    records += [{"start_ms": now, "end_ms": now, "duplicate_of": 1}]  # copied, so it says nothing of the pace
    said = {"phase": "search", "trials": 10, "confirm": 6, "slots": 2, "done": 0, "total": 0}
    doing = [{"key": 5, "since_ms": now - 20_000}, {"key": 6, "since_ms": now - 600_000}]
    assert status.seconds_left(said | {"doing": []}, records, now) == 11 * 60 / 2
    assert status.seconds_left(said | {"doing": doing}, records, now) == (11 * 60 - 20 - 60) / 2
    assert status.seconds_left(said | {"doing": [], "phase": "confirm", "total": 6, "done": 4}, records, now) == 60
    assert status.seconds_left(said | {"doing": []}, [], now) is None


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["study=nothing"], 2, "study: 'nothing' has no sweep in"),
        (["sweep=tiny-007"], 2, "sweep: 'tiny-007' is unknown; there are: tiny-001"),
        (["format=xml"], 2, "format: 'xml' is not valid; choose from table, json"),
        (["storage=mysql"], 2, "storage: 'mysql' is not valid; choose from sqlite, postgres"),
        (["watch=0"], 2, "watch: '0' must be a number of seconds"),
        (["storage=postgres"], 2, "PARE_STORAGE_URL is not set"),
        (["root=/nowhere/at/all"], 2, "nothing has been searched in /nowhere/at/all yet"),
    ],
)
def test_mistakes_are_one_clear_message(
    words: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PARE_STORAGE_URL", raising=False)
    Sweep.open(study(), address(tmp_path))
    ended, out, err = shown(tmp_path, *words, capsys=capsys)
    assert (ended, out) == (code, "")
    assert says in err


def test_a_file_that_is_no_database_is_one_clear_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "optuna.db").write_bytes(b"no database" * 500)
    code, _, err = shown(tmp_path, capsys=capsys)
    assert code == 1
    assert "optuna.db cannot be opened" in err


def test_it_loads_no_framework() -> None:
    code = "import sys, search.status; print(sorted({'torch', 'tensorflow', 'mlflow'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert said.stdout.strip() == "[]"
