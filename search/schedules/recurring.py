"""The files of experiments/schedule: which sweep recurs when. Only `search.schedule check` composes the sweeps."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

import yaml
from apscheduler.triggers.cron import CronTrigger
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from search.command import UsageError
from trainers.recipe import flatten

FOLDER = Path(__file__).parents[2] / "experiments" / "schedule"
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
ALIASES = {"@hourly": "0 * * * *", "@daily": "0 0 * * *", "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *"}
_TICK, _NEAR = timedelta(microseconds=1), timedelta(hours=3)  # no zone moves its clock by more
# Settings of search.run that the schedule or the scheduler decides.
OWN = {
    "study": "write study: NAME beside it",
    "executor": "write executor: NAME beside it",
    "storage": "write storage: NAME beside it",
    "fresh": "write fresh: true or false beside it",
    "sweep": "the scheduler knows which sweep it resumes",
    "root": "the scheduler's own is used: python -m search.schedule run root=FOLDER",
}


class Cron(CronTrigger):
    """A crontab's line in a time zone, with seconds if it has six fields.

    In the hour that comes twice when summer time ends a run at a set hour happens once, one of every hour twice. A
    time that is left out when summer time begins happens as long after the change as it would have been after it.

    APScheduler 3.11 adds days as 24 hours, so that a midnight run was left out on the day after a short one: here it
    only reads the zone's clock as if it were UTC's, and the zone says which moments that means.
    """

    def __init__(self, zone: ZoneInfo, **fields: str):
        super().__init__(**fields, timezone=UTC)
        self.zone = zone

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "zone": str(self.zone)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.zone = ZoneInfo(state["zone"])

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """The next time after `previous_fire_time`, or from `now` on; None if there is none."""
        after = (previous_fire_time or now - _TICK).astimezone(UTC)
        clock = after.astimezone(self.zone).replace(tzinfo=UTC, fold=0)
        first = self._read(clock + _TICK)
        if first is None:
            return None
        found = self._moments(first)[:1]
        if self._changes(after) or self._changes(found[0]):  # the clock and time may then disagree about the order
            found, reading = [], self._read(clock - _NEAR)
            while reading is not None and (not found or reading <= first + _NEAR):
                found += [moment for moment in self._moments(reading) if moment > after]
                reading = self._read(reading + _TICK)
        return min(found).astimezone(self.zone) if found else None

    def _read(self, clock: datetime) -> datetime | None:
        """The next reading of the clock that the line names."""
        found: datetime | None = super().get_next_fire_time(None, clock)
        return found

    def _moments(self, clock: datetime) -> list[datetime]:
        """When the zone's clock reads this, in UTC: one moment, or both of a doubled hour where every hour counts."""
        local = clock.replace(tzinfo=self.zone)
        first, second = (local.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
        every = str(self.fields[self.FIELD_NAMES.index("hour")]).startswith("*")
        return [first, second] if every and second > first else [first]

    def _changes(self, moment: datetime) -> bool:
        before, after = (at.astimezone(self.zone).utcoffset() for at in (moment - _NEAR, moment + _NEAR))
        return before != after


def cron(text: str, timezone: str) -> Cron:
    """Raises ValueError with the field, the value and the rule."""
    zones = available_timezones()
    if timezone not in zones:
        near = get_close_matches(timezone, zones, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"timezone: {timezone!r} is not known{hint}; write one such as UTC or Europe/Berlin")
    fields = ALIASES.get(text, text).split()
    if len(fields) not in (5, 6):
        raise ValueError(
            f"cron: {text!r} has {len(fields)} fields; write minute, hour, day of month, month and day of week, such "
            f"as '30 2 * * mon-fri', with seconds before them if you like, or one of {', '.join(ALIASES)}"
        )
    second, minute, hour, day, month, weekday = ["0", *fields][-6:]
    if day != "*" and weekday != "*":
        raise ValueError(
            f"cron: {text!r} sets both the day of the month and the day of the week, which crontabs join by 'or'; "
            "write two schedules"
        )
    try:
        made = Cron(
            ZoneInfo(timezone),
            second=second,
            minute=minute,
            hour=hour,
            day=day,
            month=month,
            day_of_week=_weekdays(weekday),
        )
    except ValueError as error:
        raise ValueError(f"cron: {text!r} cannot be read: {error}") from None
    if made.get_next_fire_time(None, datetime.now(UTC)) is None:
        raise ValueError(f"cron: {text!r} never comes; name a date that exists")
    return made


def _weekdays(text: str) -> str:
    """A crontab's day of the week, where Sunday is 0 and 7, as names: APScheduler counts from Monday."""
    if text == "*":
        return text
    chosen: list[str] = []
    for part in text.lower().split(","):
        match = re.fullmatch(r"(\*|[a-z]{3}|[0-7])(?:-([a-z]{3}|[0-7]))?(?:/([1-7]))?", part)
        ends = [DAYS.index(e) if e in DAYS else int(e) for e in (match.groups()[:2] if match else ()) if _day(e)]
        if match is None or (match[1] != "*" and len(ends) < 1 + bool(match[2])) or (match[1] == "*" and match[2]):
            raise ValueError(f"{part!r} is no day of the week; write sun to sat, 0 to 7, or a range such as mon-fri")
        first, last = (0, 6) if match[1] == "*" else (ends[0], ends[-1])
        last = 6 if match[3] and not match[2] else last
        chosen += [DAYS[d % 7] for d in range(first, last + 1 + 7 * (last < first), int(match[3] or 1))]
    return ",".join(dict.fromkeys(chosen))


def _day(text: str | None) -> bool:
    return text is not None and (text in DAYS or text.isdigit())


class Part(BaseModel):
    """A part of a schedule's file: keys it does not know are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Budget(Part):
    """In place of the study's own."""

    trials: Annotated[int, Field(ge=1)] | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None


class Webhook(Part):
    """Where a JSON is posted: after `trouble` (a sweep that failed or is worse beyond noise) or after every sweep.

    `url_env` names the environment variable that holds the address, for one with a secret in it. `timeout` in seconds;
    `retries` after no answer, 429 or 5xx, ever longer apart.
    """

    url: str | None = None
    url_env: str | None = None
    when: Literal["trouble", "always"] = "trouble"
    timeout: Annotated[float, Field(gt=0, le=300)] = 10
    retries: Annotated[int, Field(ge=0, le=20)] = 3


class Schedule(Part):
    """One file of experiments/schedule: `study` with its overrides, as `python -m search.run` takes them.

    `fresh`: every run a new sweep; else the study's newest is resumed. `overlap`: what a run does that is due while
    this schedule's last one is not done. `missed`: what becomes of runs whose time is more than `grace` seconds past.
    `against`: the sweep that the front is compared with.
    """

    cron: str
    timezone: str = "UTC"
    study: str
    description: str = ""
    overrides: dict[str, Any] | list[str] = {}
    budget: Budget = Budget()
    executor: str | None = None
    storage: str | None = None
    config_dir: Path | None = None
    fresh: bool = True
    overlap: Literal["skip", "queue"] = "skip"
    missed: Literal["run_once", "skip"] = "run_once"
    grace: Annotated[float, Field(ge=0)] = 300
    against: str = "previous"
    webhook: Webhook | None = None
    enabled: bool = True

    @property
    def trigger(self) -> Cron:
        """When it is due."""
        return cron(self.cron, self.timezone)

    @property
    def when(self) -> str:
        """Cron expression and time zone."""
        return f"{self.cron} {self.timezone}"

    def words(self) -> list[str]:
        """For `python -m search.run`, without root=, fresh= and sweep=."""
        found = [f"--config-dir={self.config_dir.expanduser().absolute()}"] if self.config_dir else []
        groups = {"study": self.study, "executor": self.executor, "storage": self.storage}
        found += [f"{name}={value}" for name, value in groups.items() if value]
        found += self.overrides if isinstance(self.overrides, list) else _words(self.overrides)
        return found + [f"study.budget.{k}={v:g}" for k, v in self.budget.model_dump().items() if v is not None]


def _words(overrides: Mapping[str, Any]) -> list[str]:
    """`a: {b: 1}` and `a.b: 1` -> `a.b=1`."""
    return [f"{key}={_said(value)}" for key, value in flatten(overrides).items()]


def _said(value: Any) -> str:
    """The value in Hydra's grammar."""
    if isinstance(value, list):
        return f"[{','.join(map(_said, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_said(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_][\w./-]*", value):
        return "'" + value.replace("'", "\\'") + "'"
    return str(value) if isinstance(value, str) else json.dumps(value)


def read(folder: Path = FOLDER) -> dict[str, Schedule]:
    """Every schedule of the folder by name; raises UsageError with every mistake in their own fields."""
    if not folder.is_dir():
        raise UsageError(f"schedules: {folder} is not a folder; name one that holds NAME.yaml")
    found: dict[str, Schedule] = {}
    problems: list[str] = []
    for path in sorted(folder.glob("*.yaml")):
        schedule, mistakes = _read(path)
        problems += [f"{path.name}: {mistake}" for mistake in mistakes]
        if schedule is not None:
            found[path.stem] = schedule
    if problems:
        raise UsageError("\n".join(problems))
    return found


def one(folder: Path, name: str) -> Schedule | None:
    """One schedule, whatever mistakes the others hold; None if it has no file, UsageError for its own mistakes."""
    path = folder / f"{name}.yaml"
    schedule, problems = _read(path) if path.exists() else (None, [])
    if problems:
        raise UsageError("\n".join(f"{path.name}: {problem}" for problem in problems))
    return schedule


def _read(path: Path) -> tuple[Schedule | None, list[str]]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return None, [f"not valid YAML: {' '.join(str(error).split())}"]
    if not isinstance(raw, Mapping):
        return None, ["must be a mapping with at least cron: and study:"]
    try:
        schedule = Schedule.model_validate(raw)
    except ValidationError as error:
        from search.study.config import messages

        return None, [text.replace("=...", ": ...") for text in messages(error, Schedule)]
    return schedule, [*_names(path), *_cross(schedule)]


def _names(path: Path) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", path.stem):
        yield "its name may hold letters, digits, _ and -; rename it"


def _cross(schedule: Schedule) -> Iterator[str]:
    try:
        cron(schedule.cron, schedule.timezone)
    except ValueError as error:
        yield str(error)
    if schedule.config_dir and not schedule.config_dir.expanduser().is_dir():
        yield f"config_dir: {schedule.config_dir} is not a folder; name one that holds study/NAME.yaml"
    hook = schedule.webhook
    if hook and (hook.url is None) == (hook.url_env is None):
        yield "webhook: needs one of url: and url_env:"
    if hook and hook.url is not None and not re.match(r"https?://[^/\s]+", hook.url):
        yield "webhook.url: must begin with http:// or https:// and name a host"
    for word in schedule.overrides if isinstance(schedule.overrides, list) else _words(schedule.overrides):
        key, equals, _ = word.partition("=")
        if not equals:
            yield f"overrides: {word!r} is not KEY=VALUE"
        elif key.lstrip("+~") in OWN:
            yield f"overrides.{key.lstrip('+~')}: belongs elsewhere; {OWN[key.lstrip('+~')]}"
