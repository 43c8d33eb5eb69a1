"""The scheduler in real processes: no run is forgotten or started twice, whatever kills it."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from search.front.summary import existing
from search.schedules import scheduler
from search.schedules.history import History
from search.schedules.recurring import Schedule
from tests.recurring import DAILY, tiny

ROOT = Path(__file__).parent.parent


def test_overlap_is_skipped_or_queued_and_a_planned_time_counts_once(tmp_path: Path) -> None:
    history, now = History(tmp_path), time.time()
    daily = Schedule(**DAILY)
    first = history.ask("a", daily, [now - 2])
    assert (first.outcome, first.note) == ("waiting", "")
    assert history.ask("a", daily, [now - 2]) == first
    skipped = history.ask("a", daily, [now - 1])
    assert (skipped.outcome, skipped.note) == ("skipped", f"overlap: run {first.id} was waiting")
    assert history.ask("b", daily, [now - 1]).outcome == "waiting"
    history.update(first.id, outcome="running", started=now)
    queueing = Schedule(**DAILY, overlap="queue")
    assert [history.ask("a", queueing, [now + i]).outcome for i in (0, 1)] == ["waiting", "skipped"]


def test_missed_runs_become_one_or_none(tmp_path: Path) -> None:
    history, late = History(tmp_path), [time.time() - hours * 3600 for hours in (3, 2, 1)]
    once = history.ask("once", Schedule(**DAILY), late)
    assert (once.outcome, once.note, once.planned, once.missed) == ("waiting", "3 missed", late[-1], 2)
    none = history.ask("none", Schedule(**DAILY, missed="skip"), late)
    assert (none.outcome, none.note) == ("skipped", "3 missed")
    in_time = history.ask("late", Schedule(**DAILY, missed="skip", grace=7200), late[-1:])
    assert in_time.outcome == "waiting"


def test_times_survive_a_restart_and_a_changed_expression_takes_effect(tmp_path: Path) -> None:
    said: list[str] = []
    found: list[tuple[str, list[float]]] = []

    def clock(**schedules: Schedule) -> scheduler.Clock:
        made = scheduler.Clock(tmp_path, lambda name, times: found.append((name, times)))
        made.follow(schedules, said.append)
        made.tick()
        return made

    daily, hourly = Schedule(**DAILY), Schedule(cron="0 * * * *", study="smoke")
    first = clock(kept=daily, changed=daily, gone=daily)
    first.get_job("kept").modify(next_run_time=first.get_job("kept").next_run_time - timedelta(days=3))
    first.shutdown()
    second = clock(kept=daily, changed=hourly, gone=Schedule(**DAILY, enabled=False))
    assert [name for name, _ in found] == ["kept"]
    assert [b - a for a, b in zip(found[0][1], found[0][1][1:], strict=False)] == [86400.0, 86400.0]
    assert "gone: no longer scheduled" in said
    assert {job.id for job in second.get_jobs()} == {"kept", "changed"}
    assert second.get_job("changed").next_run_time <= datetime.now(UTC) + timedelta(hours=1)
    second.shutdown()


def test_what_was_interrupted_goes_on_unless_something_newer_has_taken_its_place(tmp_path: Path) -> None:
    history, daily = History(tmp_path), Schedule(**DAILY)
    old, new, gone, hopeless = (
        history.ask(name, daily, [time.time() + t]) for t, name in enumerate(("a", "a", "gone", "hopeless"))
    )
    for run in (old, new, gone, hopeless):
        history.update(run.id, outcome="interrupted" if run is old else "running")
    history.update(hopeless.id, attempts=5)
    scheduler.take_up(history, {"a": daily, "hopeless": daily}, lambda text: None)
    assert [history.get(run.id).outcome for run in (old, new, gone, hopeless)] == [
        "failed",
        "waiting",
        "failed",
        "failed",
    ]
    assert history.get(hopeless.id).note == "given up: the scheduler was killed 5 times while it ran"


def started(root: Path, folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "search.schedule", *(words or ("run",)), f"root={root}", f"schedules={folder}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(process: subprocess.Popen[str], words: str) -> str:
    """Its lines up to the first that holds the words."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if words in line:
            return "".join(said)
    raise AssertionError(f"ended without {words!r}:\n{''.join(said)}")


def trials(root: Path, *states: str) -> int:
    """How many of the sweeps' trials are in one of the states."""
    try:
        with sqlite3.connect(f"file:{root}/optuna.db?mode=ro", uri=True, timeout=5) as database:
            marks = ", ".join("?" * len(states))
            return int(database.execute(f"select count(*) from trials where state in ({marks})", states).fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # the database is being made


def waited(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None
        time.sleep(0.2)


@pytest.mark.timeout(900)
@pytest.mark.cluster
def test_killed_over_three_missed_runs_it_starts_exactly_one_which_sigterm_only_interrupts(
    root: Path, tmp_path: Path
) -> None:
    folder = tiny(tmp_path / "schedule")
    first = started(root, folder)
    until(first, "tiny: 0 ")
    second = started(root, folder)
    refused = second.communicate(timeout=120)[0]
    assert second.returncode == 1
    assert f"another scheduler (process {first.pid}) runs on {root}; stop it first" in refused
    first.kill()
    first.wait()
    missed(root, days=3)

    again = started(root, folder)
    assert "run 1 is due (3 missed): waiting" in until(again, "starts a sweep of study=smoke")
    waited(lambda: trials(root, "COMPLETE") >= 1, again)
    again.send_signal(signal.SIGTERM)
    said = again.communicate(timeout=300)[0]
    assert again.returncode == 0, said
    run = History(root).of()[0]
    assert (run.outcome, run.exit_code, run.sweep) == ("interrupted", 0, "smoke-001")
    assert "Stopped by SIGTERM. Finished trials are kept" in run.log(root).read_text()
    assert trials(root, "RUNNING") == 0

    last = started(root, folder)
    assert "run 1 resumes smoke-001" in until(last, "run 1 finished; smoke-001; nothing to compare with yet")
    last.send_signal(signal.SIGTERM)
    assert last.wait(60) == 0
    assert [(r.id, r.note, r.outcome) for r in History(root).of()] == [(1, "3 missed", "finished")]
    assert (trials(root, "COMPLETE"), trials(root, "RUNNING", "WAITING", "FAIL")) == (3, 0)
    assert existing(root, "smoke").sweeps() == ["smoke-001"]


def missed(root: Path, days: int) -> None:
    """As if the daily run's time had come so many times since the scheduler was killed."""
    clock = scheduler.Clock(root, lambda name, times: None)
    clock.start(paused=True)
    job = clock.get_job("tiny")
    job.modify(next_run_time=job.next_run_time - timedelta(days=days))
    clock.shutdown()


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_times_that_really_pass_while_it_is_dead_give_one_run_and_a_trigger_waits_in_line(
    root: Path, tmp_path: Path
) -> None:
    start = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=60)
    start = start.replace(second=min(start.second, 50))
    seconds = ",".join(str(start.second + i) for i in (0, 3, 6))
    cron_text = f"{seconds} {start.minute} {start.hour} {start.day} {start.month} *"
    folder = tiny(tmp_path / "schedule", cron=cron_text, overlap="queue")
    first = started(root, folder)
    until(first, "tiny: ")
    first.kill()
    first.wait()
    time.sleep(max(0.0, start.timestamp() + 7 - time.time()))
    again = started(root, folder)
    assert "run 1 is due (2 missed): waiting" in until(again, "run 1 starts a sweep")
    asked = started(root, folder, "trigger", "tiny", "--wait")
    until(again, "run 1 finished; smoke-001")
    said = asked.communicate(timeout=600)[0]
    assert "run 2 is handed to the scheduler" in said
    assert asked.returncode in (0, 3), said  # without fresh trainings the two may differ beyond what is measured
    again.send_signal(signal.SIGTERM)
    assert again.wait(60) == 0
    rows = History(root).of()
    assert [(r.id, r.outcome, r.sweep) for r in rows] == [(2, "finished", "smoke-002"), (1, "finished", "smoke-001")]
    assert existing(root, "smoke").about("smoke-002")["tags"]["pare.compared_with"] == "smoke-001"


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_the_sweep_of_a_killed_scheduler_ends_by_itself_and_goes_on_at_the_next_start(
    root: Path, tmp_path: Path
) -> None:
    folder = tiny(tmp_path / "schedule", budget={"trials": 5})
    first = started(root, folder)
    until(first, "tiny: 0 ")
    missed(root, days=2)
    first.kill()
    first.wait()
    second = started(root, folder)
    until(second, "starts a sweep")
    waited(lambda: trials(root, "COMPLETE") >= 1, second)
    sweep = psutil.Process(History(root).of()[0].pid or 0)
    second.kill()
    second.wait()
    sweep.wait(120)
    run = History(root).of()[0]
    assert run.outcome == "running"
    assert "Stopped by SIGTERM" in run.log(root).read_text()
    assert 1 <= trials(root, "COMPLETE") < 5
    third = started(root, folder)
    until(third, "run 1 finished; smoke-001")
    third.send_signal(signal.SIGTERM)
    assert third.wait(60) == 0
    assert (trials(root, "COMPLETE"), trials(root, "RUNNING", "WAITING", "FAIL")) == (5, 0)
    assert existing(root, "smoke").sweeps() == ["smoke-001"]
