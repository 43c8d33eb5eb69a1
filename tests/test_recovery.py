"""kill -9 of the whole process tree at random moments: the same command resumes, nothing twice, nothing lost."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from search.storage.database import VARIABLE, address, connected
from search.tracking.tracking import Tracking
from tests import postgres

ROOT = Path(__file__).parent.parent
TRIALS = 8


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.cluster)])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The storage; with a server of the test's own where it needs one."""
    if request.param == "sqlite":
        yield "sqlite"
        return
    with postgres.server() as server:
        monkeypatch.setenv(VARIABLE, server.url())
        yield "postgres"


def heed_sigint() -> None:
    """A shell starts what runs in the background with Ctrl-C ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# Early enough, and often, that there are stopped trials among few.
STOPPING = ["study.early_stopping.name=gain", "study.early_stopping.after=2", "study.early_stopping.share=0.2"]
RUNGS = ["study.early_stopping.name=rungs", "study.early_stopping.promoted=0.3", "study.budget.trials=14"]


def start(root: Path, kind: str = "sqlite", *more: str) -> subprocess.Popen[bytes]:
    words = ["study=smoke", f"root={root}", f"study.budget.trials={TRIALS}", "study.confirm.seeds=0"]
    words += [f"storage={kind}", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "search.run", *words],
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=heed_sigint,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def kill_tree(driver: subprocess.Popen[bytes]) -> None:
    tree = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
    for process in tree:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(tree, timeout=30)
    driver.wait()


def finished(root: Path, kind: str = "sqlite") -> int:
    """Trials that Optuna has been told of, read past Optuna to leave the cores to the search."""
    if kind == "postgres":
        import psycopg

        with connected(address(root, kind)) as connection:
            try:
                return int(
                    connection.execute("select count(*) from trials where state in ('COMPLETE', 'PRUNED')").fetchone()[
                        0
                    ]
                )
            except psycopg.errors.UndefinedTable:
                return 0
    try:
        with sqlite3.connect(f"file:{root}/optuna.db?mode=ro", uri=True, timeout=5) as database:
            return int(
                database.execute("select count(*) from trials where state in ('COMPLETE', 'PRUNED')").fetchone()[0]
            )
    except sqlite3.OperationalError:
        return 0  # the database is being made


def killed_until_done(root: Path, kind: str, goals: tuple[int, ...], *more: str) -> list[optuna.trial.FrozenTrial]:
    """Kill the sweep once at each number of finished trials, a moment later, then let it end; gives all its trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    moments = random.Random(20261123)
    kills = 0
    for goal in goals:
        driver = start(root, kind, *more)
        while driver.poll() is None and finished(root, kind) < goal:
            time.sleep(0.2)
        time.sleep(moments.uniform(0.0, 3.0))
        if driver.poll() is None:
            kill_tree(driver)
            kills += 1
    assert kills >= len(goals) - 1
    last = start(root, kind, *more)
    _, errors = last.communicate(timeout=600)
    assert last.returncode == 0, errors.decode()[-2000:]
    return optuna.load_study(study_name="smoke-001", storage=address(root, kind)).get_trials()


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_killed_again_and_again_the_budget_is_met_exactly_and_mlflow_agrees(root: Path, kind: str) -> None:
    trials = killed_until_done(root, kind, (0, 2, 5) if kind == "sqlite" else (0, 1, 2, 4, 6))
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    assert len(complete) == TRIALS
    assert not [t for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    interrupted = [t for t in trials if t.state == TrialState.FAIL]
    assert all(t.user_attrs.get("interrupted") for t in interrupted)
    references = Counter(t.user_attrs.get("reference") for t in complete)
    assert (references["dense"], references["ptq_int8"]) == (1, 1)
    logged = Tracking(root, "smoke").trials("smoke-001")
    assert sorted(logged["number"]) == sorted(t.number for t in complete)
    by_number = logged.set_index("number")["accuracy"]
    assert all(by_number[t.number] == t.values[0] for t in complete)


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_killed_again_and_again_trials_are_stopped_once_and_mlflow_agrees(root: Path) -> None:
    trials = killed_until_done(root, "sqlite", (0, 3, 5, 6), *STOPPING)
    settled = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    stopped = {t.number: t for t in trials if t.state == TrialState.PRUNED}
    assert len(settled) == TRIALS
    assert stopped, "of these recipes some are hopeless"
    assert all(t.user_attrs.get("interrupted") for t in trials if t not in settled)
    logged = Tracking(root, "smoke").trials("smoke-001")
    assert sorted(logged["number"]) == sorted(t.number for t in settled)
    assert set(logged[logged["state"] == "stopped"]["number"]) == set(stopped)


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_killed_again_and_again_no_short_schedule_is_lost_or_done_twice(root: Path) -> None:
    trials = killed_until_done(root, "sqlite", (2, 4, 6, 8, 11), *RUNGS)
    settled = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    stopped = {t.number for t in trials if t.state == TrialState.PRUNED}
    assert len(settled) == 14
    assert stopped, "of these recipes some are behind"
    assert all(t.user_attrs.get("interrupted") for t in trials if t not in settled)
    by_number = {t.number: t for t in trials}
    for trial in settled:  # what was promoted stays so, with the same result, however often it was interrupted
        before = by_number.get(trial.user_attrs.get("resumed_from", -1))
        if before is not None and "promoted" in before.user_attrs:
            assert trial.number not in stopped
            assert trial.user_attrs["promoted"] == before.user_attrs["promoted"]
    logged = Tracking(root, "smoke").trials("smoke-001").set_index("number")
    assert sorted(logged.index) == sorted(t.number for t in settled)
    assert set(logged[logged["state"] == "stopped"].index) == stopped
    promoted = [t for t in settled if "promoted" in t.user_attrs and t.number not in stopped]
    assert promoted
    assert all(logged["short/accuracy"][t.number] == t.user_attrs["promoted"]["figures"]["accuracy"] for t in promoted)


def test_ctrl_c_keeps_what_is_finished(root: Path) -> None:
    driver = start(root)
    while driver.poll() is None and finished(root) < 1:
        time.sleep(0.2)
    os.killpg(driver.pid, signal.SIGINT)
    _, errors = driver.communicate(timeout=120)
    assert driver.returncode == 130, errors.decode()[-2000:]
    assert b"Interrupted. Finished trials are kept; rerun the same command to resume." in errors
    assert b"Traceback" not in errors
    assert finished(root) >= 1
