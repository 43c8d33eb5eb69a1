"""Recurring sweeps: when they are due, that none is forgotten or run twice, what is said of their fronts."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search import cli, drive, schedule, scheduler, verdict, webhook
from search.executor import InlineExecutor
from search.history import History, only_scheduler, scheduler_runs
from search.objective import evaluate
from search.recurring import FOLDER, Schedule, Webhook, cron, read
from search.run import EXPERIMENTS
from search.stop import Stop, Terminated
from search.study import Sweep
from search.summary import existing
from search.words import RefusedError
from tests.linear import LinearTrainer, config, searched

ROOT = Path(__file__).parent.parent
DAILY: dict[str, Any] = {"cron": "0 3 * * *", "study": "smoke"}


def due(text: str, timezone: str, start: datetime, count: int) -> list[datetime]:
    """The next `count` times from `start` on."""
    trigger, found, moment = cron(text, timezone), list[datetime](), start
    for _ in range(count):
        following = trigger.get_next_fire_time(None, moment)
        assert following is not None
        found.append(following)
        moment = following.astimezone(UTC) + timedelta(seconds=1)
    return found


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("0 0 * * 0", "Sun"),
        ("0 0 * * 7", "Sun"),
        ("0 0 * * 1-3", "Mon Tue Wed"),
        ("0 0 * * fri-sun", "Fri Sat Sun"),
        ("0 0 * * sat,1", "Mon Sat"),
        ("0 0 * * 1-5/2", "Mon Wed Fri"),
        ("0 0 * * */3", "Wed Sat Sun"),
    ],
)
def test_days_of_the_week_are_those_of_a_crontab(text: str, days: str) -> None:
    monday = datetime(2026, 11, 23, tzinfo=UTC)
    week = [moment for moment in due(text, "UTC", monday, 7) if moment < monday + timedelta(days=7)]
    assert " ".join(f"{moment:%a}" for moment in week) == days


def test_six_fields_begin_with_seconds() -> None:
    found = due("*/20 * * * * *", "UTC", datetime(2026, 11, 25, 1, 2, 3, tzinfo=UTC), 3)
    assert [f"{moment:%H:%M:%S}" for moment in found] == ["01:02:20", "01:02:40", "01:03:00"]


def test_the_hours_that_summer_time_doubles_and_leaves_out() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    spring = due("30 2 * * *", "Europe/Berlin", datetime(2026, 3, 28, tzinfo=berlin), 3)
    assert [f"{m:%d %H:%M}" for m in spring] == ["28 02:30", "29 03:30", "30 02:30"]
    autumn = due("30 2 * * *", "Europe/Berlin", datetime(2026, 10, 24, tzinfo=berlin), 3)
    assert [f"{m:%d %H:%M %Z}" for m in autumn] == ["24 02:30 CEST", "25 02:30 CEST", "26 02:30 CET"]
    hourly = due("0 * * * *", "Europe/Berlin", datetime(2026, 10, 25, 1, tzinfo=berlin), 4)
    assert [f"{m:%H:%M %Z}" for m in hourly] == ["01:00 CEST", "02:00 CEST", "02:00 CET", "03:00 CET"]


@settings(max_examples=40)
@given(
    st.integers(0, 23),
    st.integers(0, 59),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/Santiago"]),
    st.datetimes(datetime(2025, 1, 1), datetime(2032, 1, 1)),
)
def test_a_daily_sweep_runs_once_a_day_whatever_the_clocks_do(
    hour: int, minute: int, timezone: str, start: datetime
) -> None:
    trigger = cron(f"{minute} {hour} * * *", timezone)
    moment = trigger.get_next_fire_time(None, start.replace(tzinfo=UTC))
    days = []
    for _ in range(20):
        assert moment is not None
        days.append(moment.date())
        moment = trigger.get_next_fire_time(moment, moment)
    assert days == [days[0] + timedelta(days=i) for i in range(20)]


@pytest.mark.parametrize("day", [datetime(2026, 3, 28, 22, tzinfo=UTC), datetime(2026, 10, 24, 22, tzinfo=UTC)])
def test_every_quarter_of_an_hour_comes_whatever_the_clocks_do(day: datetime) -> None:
    found = due("*/15 * * * *", "Europe/Berlin", day, 40)
    assert {later.astimezone(UTC) - sooner.astimezone(UTC) for sooner, later in itertools.pairwise(found)} == {
        timedelta(minutes=15)
    }


MISTAKES: dict[str, dict[str, Any]] = {
    "cron: '61 2 * * *' cannot be read": {"cron": "61 2 * * *"},
    "cron: '2 * *' has 3 fields; write minute, hour": {"cron": "2 * *"},
    "cron: '0 0 31 2 *' never comes": {"cron": "0 0 31 2 *"},
    "cron: '0 0 1 * mon' sets both the day of the month": {"cron": "0 0 1 * mon"},
    "cron: '0 0 * * mo' cannot be read: 'mo' is no day of the week": {"cron": "0 0 * * mo"},
    "timezone: 'Europe/Berln' is not known (did you mean Europe/Berlin?)": {"timezone": "Europe/Berln"},
    "studdy: no such field (did you mean study?)": {"studdy": "smoke"},
    "overlap: 'wait' is not valid; it should be 'skip' or 'queue'": {"overlap": "wait"},
    "budget.trails: no such field (did you mean trials?)": {"budget": {"trails": 3}},
    "overrides.study: belongs elsewhere; write study: NAME": {"overrides": {"study": "smoke"}},
    "overrides: 'fresh' is not KEY=VALUE": {"overrides": ["fresh"]},
    "overrides.root: belongs elsewhere; the scheduler's own": {"overrides": ["root=x"]},
    "webhook: needs one of url: and url_env:": {"webhook": {"timeout": 3}},
    "webhook.url: must begin with http": {"webhook": {"url": "hooks.example/secret"}},
    "config_dir: /nowhere is not a folder": {"config_dir": "/nowhere"},
}
COMPOSED: dict[str, dict[str, Any]] = {
    "study: 'smok' does not exist; choose from mnist_prune": {"study": "smok"},
    "executor: 'lokal' does not exist": {"executor": "lokal"},
    "study.budgett: no such field (did you mean budget?)": {"overrides": {"study": {"budgett": {"trials": 1}}}},
    "study.confirm.seeds: -1 is not valid": {"overrides": ["study.confirm.seeds=-1"]},
}


def test_every_mistake_in_every_file_is_reported_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, change in enumerate(MISTAKES.values()):
        (tmp_path / f"s{number}.yaml").write_text(json.dumps({**DAILY, **change}))
    (tmp_path / "missing.yaml").write_text("study: smoke\n")
    (tmp_path / "broken.yaml").write_text("cron: [\n")
    assert schedule.main(["check", f"schedules={tmp_path}"]) == 2
    said = capsys.readouterr().err
    for number, message in enumerate(MISTAKES):
        assert f"s{number}.yaml: {message}" in said.replace("search.schedule: ", "")
    assert "missing.yaml: cron: missing; write cron: ..." in said
    assert "broken.yaml: not valid YAML" in said
    assert "hooks.example" not in said


def test_what_a_schedule_overrides_is_composed_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, change in enumerate(COMPOSED.values()):
        (tmp_path / f"s{number}.yaml").write_text(json.dumps({**DAILY, **change}))
    assert schedule.main(["list", f"schedules={tmp_path}", f"root={tmp_path / 'm'}"]) == 2
    said = capsys.readouterr().err
    for number, message in enumerate(COMPOSED):
        assert f"s{number}.yaml: {message}" in said
    assert not (tmp_path / "m").exists()


def test_overrides_reach_the_sweep_as_they_were_written() -> None:
    overrides = {
        "study": {"constraints": ["accuracy_drop <= 0.25"], "description": "it's, {odd}: [text]", "confirm.seeds": 0},
        "study.recipe.finetuning.learning_rate": 2.5e-4,
        "study.data.train_size": None,
        "executor.python": {},
    }
    words = Schedule(cron="0 3 * * *", study="smoke", overrides=overrides).words()
    made = cli.composed(words, EXPERIMENTS)
    assert made.study.constraints == ["accuracy_drop <= 0.25"]
    assert made.study.description == "it's, {odd}: [text]"
    assert (made.study.confirm.seeds, made.study.data.train_size) == (0, None)
    assert made.study.recipe["finetuning"]["learning_rate"] == 2.5e-4


def test_the_projects_schedules_have_no_mistakes_and_say_how_to_run_them() -> None:
    for name in schedule.checked(FOLDER):
        text = (FOLDER / f"{name}.yaml").read_text()
        assert text.startswith(f"# python -m search.schedule trigger {name} --wait\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["runn"], "runn: no such command (did you mean run?)"),
        ([], "command: no such command; write run, list"),
        (["list", "--wait"], "--wait: belongs to trigger"),
        (["trigger"], "trigger: missing the schedule; write one of nightly_smoke"),
        (["trigger", "nightly_smok"], "no such schedule (did you mean nightly_smoke?)"),
        (["next", "a", "b"], "b: one word too many"),
        (["next", "count=0"], "count: '0' is not valid"),
        (["history", "cuont=3"], "cuont=3: no such argument (did you mean count=?)"),
        (["check", "schedules=/nowhere"], "schedules: /nowhere is not a folder"),
    ],
)
def test_usage_errors(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert schedule.main(words) == 2
    assert says in capsys.readouterr().err


def test_a_broken_store_is_one_clear_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "schedule.db").write_bytes(b"not a database" * 500)
    assert schedule.main(["history", f"root={tmp_path}"]) == 1
    assert f"{tmp_path}/schedule.db cannot be used (file is not a database)" in capsys.readouterr().err


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


class Hook:
    """A real HTTP server: answers with each status in turn, the last one for ever; 0 never answers."""

    def __init__(self, *statuses: int):
        self.bodies: list[Any] = []
        self.release = threading.Event()
        left = list(statuses)
        hook = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status = left.pop(0) if len(left) > 1 else left[0]
                if not status:
                    hook.release.wait(30)
                    return
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}/secret-token"


@contextmanager
def serving(*statuses: int) -> Iterator[Hook]:
    hook = Hook(*statuses)
    thread = threading.Thread(target=hook.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        hook.release.set()
        hook.server.shutdown()
        hook.server.server_close()


@pytest.mark.parametrize(
    ("statuses", "says", "posts"),
    [
        ((200,), "delivered (127.0.0.1)", 1),
        ((500, 500, 200), "delivered after 3 attempts (127.0.0.1)", 3),
        ((503,), "refused with HTTP 503 after 3 attempts (127.0.0.1)", 3),
        ((404,), "refused with HTTP 404 (127.0.0.1)", 1),
        ((0,), "not delivered: no answer within 0.3 s after 3 attempts (127.0.0.1)", None),
    ],
)
def test_a_webhook_is_tried_again_and_its_address_stays_secret(
    statuses: tuple[int, ...], says: str, posts: int | None
) -> None:
    with serving(*statuses) as hook:
        assert webhook.post(Webhook(url=hook.url, timeout=0.3, retries=2), {"a": None}, pause=0.01) == says
        assert posts is None or hook.bodies == [{"a": None}] * posts


def test_a_webhook_that_is_not_there_is_told_without_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = webhook.post(Webhook(url="http://127.0.0.1:9/secret", retries=0), {})
    assert re.fullmatch(r"not delivered: .*refused.* \(127\.0\.0\.1\)", closed)
    monkeypatch.delenv("PARE_WEBHOOK", raising=False)
    unset = webhook.post(Webhook(url_env="PARE_WEBHOOK"), {})
    assert unset == "not sent: webhook.url_env: PARE_WEBHOOK is not set to an http:// or https:// address"


def judged(root: Path, folder: Path, sweep: str, **changes: Any) -> tuple[int, History, int]:
    """(exit code, history, run) of the verdict on a run that gave the sweep."""
    history = History(root)
    run = history.ask("nightly", read(folder)["nightly"])
    history.update(run.id, **({"outcome": "running", "started": 1.0, "ended": 2.0, "exit_code": 0} | changes))
    history.update(run.id, sweep=sweep)
    code = verdict.main([f"run={run.id}", f"root={root}", f"schedules={folder}"])
    if history.get(run.id).outcome == "running":
        history.update(run.id, outcome="finished")
    return code, history, run.id


def test_a_worse_front_is_marked_told_and_ends_with_3(planted: LinearTrainer, root: Path, tmp_path: Path) -> None:
    searched(config(root))
    worse = config(root, data={"train_size": 300, "validation_size": 500}).model_copy(update={"fresh": True})
    searched(worse)
    with serving(500, 200) as hook:
        folder = tmp_path / "schedule"
        folder.mkdir()
        (folder / "nightly.yaml").write_text(json.dumps({**DAILY, "webhook": {"url": hook.url}}))
        code, history, first = judged(root, folder, "lucky-001")
        assert (code, history.get(first).verdict, hook.bodies) == (0, "nothing to compare with yet", [])
        code, history, second = judged(root, folder, "lucky-002")
        assert code == 3
        said = hook.bodies[-1]
    row = history.get(second)
    assert row.verdict in ("worse beyond noise", "better in one part of the front and worse in another, beyond noise")
    assert (row.worse, row.webhook) == (1, "delivered after 2 attempts (127.0.0.1)")
    assert (said["study"], said["sweep"], said["schedule"], said["worse"]) == ("lucky", "lucky-002", "nightly", True)
    assert (said["compared_with"], said["verdict"]) == ("lucky-001", row.verdict)
    assert said["hypervolume"]["newer"] < said["hypervolume"]["older"]
    assert said["lost"][0]["recipe"] == "dense fp32"
    assert 0 < said["lost"][0]["accuracy"] <= 1
    assert said["knee"]["trial"] in (0, 1)
    tags = existing(root, "lucky").about("lucky-002")["tags"]
    assert (tags["pare.verdict"], tags["pare.worse"]) == (row.verdict, "true")
    assert (tags["pare.schedule"], tags["pare.compared_with"]) == ("nightly", "lucky-001")


def test_a_failed_sweep_is_told_too(tmp_path: Path) -> None:
    with serving(200) as hook:
        folder = tmp_path / "schedule"
        folder.mkdir()
        (folder / "nightly.yaml").write_text(json.dumps({**DAILY, "webhook": {"url": hook.url}}))
        code, history, run = judged(tmp_path, folder, "smoke-001", exit_code=1, note="the disk is full")
        assert code == 0
        assert (hook.bodies[0]["outcome"], hook.bodies[0]["note"]) == ("failed", "the disk is full")
        assert history.get(run).webhook == "delivered (127.0.0.1)"
    assert "secret-token" not in (tmp_path / "schedule.db").read_bytes().decode(errors="replace")


def test_a_sigterm_is_noted_or_ends_it_and_a_second_one_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        stop = Stop()
        stop.install()
        with pytest.raises(Terminated), stop.noted():
            os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.asked, stop.overdue(60), stop.overdue(0)) == (True, False, True)
        with pytest.raises(KeyboardInterrupt) as pressed:
            os.kill(os.getpid(), signal.SIGTERM)
        assert not isinstance(pressed.value, Terminated)
        Stop().install()
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


class Endless(InlineExecutor):
    """Trials never end; everything else is done at once."""

    def __init__(self, asked: Callable[[], None]):
        self._asked = asked

    def submit(self, key: int, trainer: str, work: Callable[..., Any], *args: Any) -> Future[Any]:
        if work is not evaluate:
            return super().submit(key, trainer, work, *args)
        self._asked()
        return Future()


def test_trials_that_take_longer_than_the_grace_are_tried_again(
    planted: LinearTrainer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(root)
    settings = settings.model_copy(update={"executor": settings.executor.model_copy(update={"grace": 0.3})})
    stop = Stop()
    endless = Endless(lambda: stop._signalled(signal.SIGTERM, None))
    with monkeypatch.context() as changed:
        changed.setattr(drive, "start", lambda *args: endless)
        with pytest.raises(Terminated):
            drive.run(settings, Sweep.open(settings.study, cli.storage(root)), stop)
    assert existing(root, "lucky").about("lucky-001")["status"] == "KILLED"
    sweep = searched(settings)
    assert len(sweep.records()) == settings.study.budget.trials


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


def tiny(folder: Path, **changes: Any) -> Path:
    """A folder with the schedule `tiny`: the smoke study with three trials, hours from now."""
    folder.mkdir()
    hour = (datetime.now(UTC) + timedelta(hours=3)).hour
    raw = {"cron": f"0 {hour} * * *", "study": "smoke", "overrides": {"study.confirm.seeds": 0, "executor.workers": 1}}
    (folder / "tiny.yaml").write_text(json.dumps(raw | {"budget": {"trials": 3}} | changes))
    return folder


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
    assert "run 1 goes on with smoke-001" in until(last, "run 1 finished; smoke-001; nothing to compare with yet")
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


def test_without_a_scheduler_trigger_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, root = tiny(tmp_path / "schedule"), tmp_path / "m"
    assert schedule.main(["trigger", "tiny", f"root={root}", f"schedules={folder}"]) == 1
    assert f"no scheduler runs on {root}: start one with `python -m search.schedule run`" in capsys.readouterr().err
    root.mkdir()
    with only_scheduler(root):
        assert scheduler_runs(root)
        assert schedule.main(["trigger", "tiny", f"root={root}", f"schedules={folder}"]) == 0
        assert schedule.main(["trigger", "tiny", f"root={root}", f"schedules={folder}"]) == 1
        assert "run 2 is skipped (overlap: run 1 was waiting); wait for it" in capsys.readouterr().err
        with pytest.raises(RefusedError, match=rf"another scheduler \(process {os.getpid()}\)"), only_scheduler(root):
            pass
    assert not scheduler_runs(root)


@pytest.mark.parametrize(
    ("came", "code", "says"),
    [
        ({"outcome": "finished", "worse": 0, "verdict": "no difference beyond noise"}, 0, "no difference"),
        ({"outcome": "finished", "worse": 1, "verdict": "worse beyond noise"}, 3, "worse beyond noise"),
        ({"outcome": "failed", "exit_code": 1, "note": "the disk is full"}, 1, "run 1 failed; the disk is full"),
        ({"outcome": "interrupted"}, 1, "goes on at the scheduler's next start"),
    ],
)
def test_a_trigger_that_waits_ends_with_what_the_sweep_came_to(
    came: dict[str, Any], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, root = tiny(tmp_path / "schedule"), tmp_path / "m"
    history = History(root)

    def settle() -> None:
        while (run := history.next()) is None:
            time.sleep(0.05)
        history.update(run.id, **came)

    with only_scheduler(root):  # the test is the scheduler
        other = threading.Thread(target=settle)
        other.start()
        assert schedule.main(["trigger", "tiny", "--wait", f"root={root}", f"schedules={folder}"]) == code
        other.join()
    assert says in capsys.readouterr().out


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
