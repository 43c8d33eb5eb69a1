"""kill -9 of the whole process tree at random moments: the same command goes on, nothing twice, nothing lost."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from search.cli import storage
from search.tracking import Tracking

ROOT = Path(__file__).parent.parent
TRIALS = 8


def start(root: Path) -> subprocess.Popen[bytes]:
    words = ["study=smoke", f"root={root}", f"study.budget.trials={TRIALS}", "study.confirm.seeds=0"]
    return subprocess.Popen(
        [sys.executable, "-m", "search.run", *words],
        cwd=ROOT,
        start_new_session=True,
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


def finished(root: Path) -> int:
    """Trials that Optuna has been told of, read past Optuna to leave the cores to the search."""
    try:
        with sqlite3.connect(f"file:{root}/optuna.db?mode=ro", uri=True, timeout=5) as database:
            return int(database.execute("select count(*) from trials where state = 'COMPLETE'").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # the database is being made


@pytest.mark.timeout(900)
def test_killed_five_times_the_budget_is_met_exactly_and_mlflow_agrees(root: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    moments = random.Random(20261123)
    kills = 0
    for goal in (0, 1, 2, 4, 6):
        driver = start(root)
        while driver.poll() is None and finished(root) < goal:
            time.sleep(0.2)
        time.sleep(moments.uniform(0.0, 3.0))
        if driver.poll() is None:
            kill_tree(driver)
            kills += 1
    assert kills >= 3
    last = start(root)
    _, errors = last.communicate(timeout=600)
    assert last.returncode == 0, errors.decode()[-2000:]
    study = optuna.load_study(study_name="smoke-001", storage=storage(root))
    complete = [t for t in study.get_trials() if t.state == TrialState.COMPLETE]
    assert len(complete) == TRIALS
    assert not [t for t in study.get_trials() if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    interrupted = [t for t in study.get_trials() if t.state == TrialState.FAIL]
    assert all(t.user_attrs.get("interrupted") for t in interrupted)
    references = Counter(t.user_attrs.get("reference") for t in complete)
    assert (references["dense"], references["ptq_int8"]) == (1, 1)
    logged = Tracking(root, "smoke").trials("smoke-001")
    assert sorted(logged["number"]) == sorted(t.number for t in complete)
    by_number = logged.set_index("number")["accuracy"]
    assert all(by_number[t.number] == t.values[0] for t in complete)


def test_ctrl_c_keeps_what_is_finished(root: Path) -> None:
    driver = start(root)
    while driver.poll() is None and finished(root) < 1:
        time.sleep(0.2)
    os.killpg(driver.pid, signal.SIGINT)
    _, errors = driver.communicate(timeout=120)
    assert driver.returncode == 130, errors.decode()[-2000:]
    assert b"Interrupted. Finished trials are kept; the same command goes on." in errors
    assert b"Traceback" not in errors
    assert finished(root) >= 1
