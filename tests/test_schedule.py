"""The files of experiments/schedule and `python -m search.schedule`: when a sweep is due, every mistake at once."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search import schedule
from search.command import RefusedError
from search.run import EXPERIMENTS
from search.schedules.history import History, only_scheduler, scheduler_runs
from search.schedules.recurring import FOLDER, Schedule, cron
from search.study import compose
from tests.recurring import DAILY, tiny


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
    "study: 'smok' does not exist; choose from cifar10_prune": {"study": "smok"},
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
        "study.task.train_size": None,
        "executor.python": {},
    }
    words = Schedule(cron="0 3 * * *", study="smoke", overrides=overrides).words()
    made = compose.composed(words, EXPERIMENTS)
    assert made.study.constraints == ["accuracy_drop <= 0.25"]
    assert made.study.description == "it's, {odd}: [text]"
    assert (made.study.confirm.seeds, made.study.task.train_size) == (0, None)
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
        ({"outcome": "interrupted"}, 1, "resumes when the scheduler starts again"),
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
