"""Studies on a real PostgreSQL server, and in a file as if they were there: messages, the lock, secrecy, outages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from search.errors import SettingsError, SweepError
from search.storage import database
from search.storage.single_writer import SingleWriter
from search.sweep.lock import driver_lock
from search.sweep.sweep import Sweep
from tests import postgres
from tests.postgres import PASSWORD, QUOTED, Server, free_port
from tests.test_study import record, study

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres.server() as running:
        yield running


@pytest.fixture
def url(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a new, empty database."""
    name = f"t{time.time_ns()}"
    server.sql(f"create database {name} owner pare;")
    monkeypatch.setenv(database.VARIABLE, server.url(name))
    return database.address(Path("unused"), "postgres")


WRONG = {
    "": "PARE_STORAGE_URL is not set; set PARE_STORAGE_URL=postgresql://USER:PASSWORD@HOST:5432/DATABASE",
    "mysql://u:s3cret@h/d": "its scheme is 'mysql', not postgresql",
    "s3cret": "not an address",
    "postgresql://u:s3cret@h:port/d": "not an address",
    "postgresql://u:s3cret@h": "names no database",
}


@pytest.mark.parametrize("given", WRONG)
def test_an_address_that_is_none_is_a_usage_error_that_keeps_it_secret(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(database.VARIABLE, given)
    with pytest.raises(SettingsError) as error:
        database.address(Path("unused"), "postgres")
    assert WRONG[given] in str(error.value)
    assert "s3cret" not in str(error.value)


def unreachable(server: Server) -> dict[str, str]:
    return {
        "password authentication failed": server.url(password="wr0ng"),
        'database "nothing" does not exist': server.url("nothing"),
        "Connection refused": server.url().replace(f":{server.port}/", f":{free_port()}/"),
    }


def test_a_server_that_does_not_let_us_in_is_one_clear_message_within_seconds(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for reason, given in unreachable(server).items():
        monkeypatch.setenv(database.VARIABLE, given)
        url = database.address(tmp_path, "postgres")
        with pytest.raises(SweepError, match=reason) as error, driver_lock(tmp_path, "tiny", url):
            pass
        assert "check the server and PARE_STORAGE_URL" in str(error.value)
        with pytest.raises(SweepError, match=reason):
            database.opened(url, read_only=True)
        assert QUOTED not in str(error.value)
        assert PASSWORD not in str(error.value)
        assert "wr0ng" not in str(error.value)


def test_the_command_line_ends_with_2_without_an_address_and_with_1_without_a_server(tmp_path: Path) -> None:
    for given, code, says in (
        ("", 2, "PARE_STORAGE_URL is not set"),
        (f"postgresql://u:s3cret@127.0.0.1:{free_port()}/d", 1, "Connection refused"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "search.run", "study=smoke", "storage=postgres", f"root={tmp_path}"],
            env=os.environ | {database.VARIABLE: given},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code
        assert says in done.stderr
        assert "Traceback" not in done.stderr
        assert "s3cret" not in done.stdout + done.stderr


def test_without_psycopg_it_says_what_to_install(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SweepError, match=r"needs psycopg .*; run .venv/bin/pip install -e '\.\[postgres\]' -c"):
        database.ServerHold(url, "tiny", 1)


def test_one_driver_per_study_across_machines_until_it_dies(url: str, tmp_path: Path) -> None:
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom search.sweep.lock import driver_lock\n"
        "from search.storage.database import address\n"
        "with driver_lock(Path(sys.argv[1]), 'tiny', address(Path('unused'), 'postgres')):\n"
        "    print(os.getpid(), flush=True)\n    time.sleep(600)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE, cwd=ROOT)
    assert other.stdout is not None
    pid = int(other.stdout.readline())
    elsewhere = driver_lock(tmp_path / "b", "tiny", url)  # another root, as on another machine
    with pytest.raises(SweepError, match=f"study tiny: process {pid} on .* is running it"), elsewhere:
        pass
    with driver_lock(tmp_path / "b", "other", url):
        pass
    other.kill()
    other.wait()
    with driver_lock(tmp_path / "b", "tiny", url):
        pass


def test_two_first_drivers_at_once_both_find_their_tables(url: str) -> None:
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda n=name: found.append(Sweep.open(study(name=n), url))) for name in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sweep.name for sweep in found) == ["one-001", "two-001"]


def test_a_server_that_restarts_in_mid_sweep_costs_nothing(
    server: Server, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with driver_lock(tmp_path, "tiny", url, patience=60) as hold:
        sweep = Sweep.open(study(), url, hold=hold)
        first, second = sweep.ask(), sweep.ask()
        server.stop()
        threading.Timer(2, server.start).start()
        sweep.tell(first, record(first, 0.8))
        assert "does not answer; trying again for 60 s (storage.patience)" in capsys.readouterr().out
        server.stop()
        server.start()
        third = sweep.ask()  # the lock is taken again before anything is asked
        with pytest.raises(SweepError, match="is running it"):
            database.ServerHold(url, "tiny", 1)
        for asked, accuracy in ((second, 0.9), (third, 0.7)):
            sweep.tell(asked, record(asked, accuracy))
        assert [r.metrics["accuracy"] for r in Sweep.open(study(), url).records()] == [0.8, 0.9, 0.7]
    states = {t.state for t in optuna.load_study(study_name="tiny-001", storage=url).get_trials()}
    assert states == {TrialState.COMPLETE}


def test_a_server_that_stays_away_is_a_clear_stop_and_another_drivers_turn_is_not_taken(
    server: Server, url: str, tmp_path: Path
) -> None:
    with driver_lock(tmp_path, "tiny", url, patience=2) as hold:
        sweep = Sweep.open(study(), url, hold=hold)
        asked = sweep.ask()
        assert isinstance(hold, database.ServerHold)
        hold._name = "pare 1@elsewhere"  # what makes this process another driver than the one below
        server.stop()
        try:
            with pytest.raises(SweepError, match=r"has not answered for 2 s .*rerun the same command to resume"):
                sweep.tell(asked, record(asked))
        finally:
            server.start()
        with driver_lock(tmp_path / "b", "tiny", url), pytest.raises(SweepError, match="is running it"):
            sweep.tell(asked, record(asked))
        sweep.tell(asked, record(asked))
    assert len(Sweep.open(study(), url).records()) == 1


def cut_off_while_committing(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next transaction is stored, but its answer never comes: what a cable does."""
    at_once, calls = SingleWriter.at_once, iter([True])

    def cut(self: SingleWriter) -> Any:
        context = at_once(self)

        class Cut:
            def __enter__(self) -> None:
                context.__enter__()

            def __exit__(self, *error: Any) -> None:
                context.__exit__(*error)
                if error[0] is None and next(calls, False):
                    import psycopg

                    raise psycopg.OperationalError("server closed the connection unexpectedly")

        return Cut()

    monkeypatch.setattr(SingleWriter, "at_once", cut)


def test_an_answer_that_is_lost_doubles_nothing(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with driver_lock(tmp_path, "tiny", url) as hold:
        sweep = Sweep.open(study(), url, hold=hold)
        with monkeypatch.context() as patch:
            cut_off_while_committing(sweep, patch)
            half = sweep.ask()
        asked = sweep.ask()
        assert (half.reference, asked.reference) == ("half", "dense")  # enqueued again, behind what was waiting
        with monkeypatch.context() as patch:
            cut_off_while_committing(sweep, patch)
            sweep.tell(asked, record(asked))
    trials = optuna.load_study(study_name="tiny-001", storage=url).get_trials()
    assert [t.state for t in trials if t.user_attrs.get("reference") == "dense"] == [
        TrialState.FAIL,
        TrialState.COMPLETE,
    ]
    assert [t.user_attrs.get("interrupted", False) for t in trials if t.state == TrialState.FAIL] == [True]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_memory_and_database_say_the_same(kind: str, url: str, tmp_path: Path) -> None:
    place = url if kind == "postgres" else f"sqlite:///{tmp_path}/optuna.db"
    sweep = Sweep.open(study(references={}), place)
    running = []
    for i in range(14):
        asked = sweep.ask()
        if i % 5 == 4:
            running.append(asked)
            continue
        sweep.tell(asked, record(asked, 0.8 + 0.01 * i, 0.02 * i))
    stored = RDBStorage(place).get_all_trials(sweep.study._study_id)
    known = sweep.study.get_trials()
    assert len(known) == len(stored) == 14
    for ours, theirs in zip(known, stored, strict=True):
        for name in ("number", "state", "values", "params", "distributions", "user_attrs", "_trial_id"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert ours.constraints == theirs.constraints


def test_an_ask_that_is_cut_in_half_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"sqlite:///{tmp_path}/optuna.db"
    sweep = Sweep.open(study(references={}), place)
    with monkeypatch.context() as patch:
        patch.setattr(RDBStorage, "_set_trial_param", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            sweep.ask()
    assert RDBStorage(place).get_all_trials(sweep.study._study_id) == []
    asked = sweep.ask()
    assert asked.number == 0
    sweep.tell(asked, record(asked))
    assert len(sweep.records()) == 1


def test_a_new_sweep_is_not_named_as_one_that_another_storage_recorded(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path}/optuna.db"
    assert Sweep.open(study(), place, recorded=lambda known: ["tiny-001", "tiny-007"]).name == "tiny-008"
    assert Sweep.open(study(), place, recorded=lambda known: ["tiny-001", "tiny-009"]).name == "tiny-008"  # goes on
    assert Sweep.open(study(), place, fresh=True, recorded=lambda known: ["tiny-009"]).name == "tiny-010"


@pytest.mark.cluster
def test_a_sweep_on_a_server_keeps_the_address_to_itself(root: Path, url: str) -> None:
    words = ["study=smoke", "storage=postgres", f"root={root}", "study.budget.trials=2", "study.confirm.seeds=0"]
    done = subprocess.run(
        [sys.executable, "-m", "search.run", *words], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (root / "optuna.db").exists()
    said = subprocess.run(
        [sys.executable, "-m", "search.status", "storage=postgres", "format=json", f"root={root}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert [(one["sweep"], one["state"], one["trials"]) for one in json.loads(said.stdout)] == [
        ("smoke-001", "finished", 2)
    ]
    written = [path for path in root.rglob("*") if path.is_file() and "cache/data" not in str(path)]
    assert len(written) > 5
    for text in [done.stdout.encode(), done.stderr.encode(), *(path.read_bytes() for path in written)]:
        assert PASSWORD.encode() not in text
        assert QUOTED.encode() not in text
        assert b"w0rd-of-the" not in text
