"""What runs where, how far it is and how long it will take: `python -m search.status [study=mnist_prune]`.

Reads the study's storage while a sweep runs, or after it was killed, from any machine that reaches it; writes nothing.
"""

from __future__ import annotations

import json
import shlex
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from rich.console import Group
from rich.live import Live as Screen
from rich.table import Table
from rich.text import Text

from search import terminal
from search.command import ROOT, STORAGE, STUDY, SWEEP, Setting, Usage, UsageError, command
from search.storage import database
from search.study.phrases import span
from search.sweep.heartbeat import EVERY, KEY

HELP = Usage(
    "search.status",
    "What runs where, progress, failures and the time left; while another process runs the sweep, or after it.",
    "[study=NAME] [SETTING=VALUE ...]",
    {
        "What is shown": (
            replace(STUDY, about="one study, with what every worker does; all studies if left out"),
            SWEEP,
            STORAGE,
            ROOT,
        ),
        "How": (
            Setting("format", "json: for other programs", "table", choices=("table", "json")),
            Setting("watch", "show it again every so many seconds, until Ctrl-C; once if left out", "", "SECONDS"),
        ),
    },
    (
        ("", "one line per study"),
        ("study=mnist_prune watch=5", "one study, as it goes"),
    ),
)
PACE = 20  # newest trials that the pace is judged by
SILENT = 6 * EVERY  # seconds without a word after which a driver on another machine counts as gone
_COLOURS = {"running": "cyan", "finished": "green", "failed": "red"}


@dataclass(frozen=True)
class Progress:
    """A sweep as it stands; times in milliseconds since the epoch. `stopped`: trials, before their full training.

    `state`: running, finished, interrupted, failed, or stopped when the driver died without a word. `seconds_left` is
    an estimate, None when it cannot be made. `doing`: one dict per busy worker. `failures`: the newest first; `slower`:
    the newest trials whose file is slower than the dense one, with the operators that cost it.
    """

    study: str
    sweep: str
    state: str
    phase: str
    trials: int
    budget: int
    failed: int
    interrupted: int
    stopped: int
    seconds_left: float | None
    host: str
    pid: int
    at_ms: int
    started_ms: int
    executor: str
    slots: int
    root: str
    doing: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    slower: list[dict[str, Any]] = field(default_factory=list)


def progress(url: str, study: str = "", sweep: str = "") -> list[Progress]:
    """The newest sweep of every study, or of `study`, or the named `sweep`; raises UsageError for an unknown one."""
    found = database.opened(url, read_only=True)
    with database.telling(url):
        sweeps = {s.study_name: s for s in found.get_all_studies() if s.study_name.rpartition("-")[2].isdigit()}
        newest: dict[str, str] = {}
        for name in sorted(sweeps, key=lambda n: int(n.rpartition("-")[2])):
            newest[name.rpartition("-")[0]] = name
        if study and study not in newest:
            known = ", ".join(sorted(newest)) or "none yet"
            raise UsageError(f"study: {study!r} has no sweep in {database.place(url)}; there are: {known}")
        if sweep and (sweep not in sweeps or sweep.rpartition("-")[0] != (study or sweep.rpartition("-")[0])):
            own = ", ".join(n for n in sweeps if not study or n.rpartition("-")[0] == study) or "none yet"
            raise UsageError(f"sweep: {sweep!r} is unknown; there are: {own}")
        chosen = [sweep] if sweep else [newest[study]] if study else sorted(newest.values())
        return [_read(found, sweeps[name]) for name in chosen]


def _read(found: Any, sweep: Any) -> Progress:
    records, interrupted = [], 0
    for trial in found.get_all_trials(sweep._study_id, deepcopy=False):
        if trial.state.is_finished() and "record" in trial.user_attrs:
            records.append(json.loads(trial.user_attrs["record"]))
        interrupted += "interrupted" in trial.user_attrs
    live = json.loads(sweep.user_attrs.get(KEY, "{}"))
    failed = [r for r in records if r["state"] == "failed"]
    state = live.get("status", "unknown")
    if state == "running" and not alive(live):
        state = "stopped"
    return Progress(
        study=sweep.study_name.rpartition("-")[0],
        sweep=sweep.study_name,
        state=state,
        phase=live.get("phase", ""),
        trials=len(records),
        budget=live.get("trials", sweep.user_attrs.get("settings", {}).get("budget", {}).get("trials", 0)),
        failed=len(failed),
        interrupted=interrupted,
        stopped=sum(r["state"] == "stopped" for r in records),
        seconds_left=seconds_left(live, records, time.time() * 1000) if state == "running" else None,
        doing=live.get("doing", []) if state == "running" else [],
        failures=[
            {key: r[key] for key in ("number", "words", "reason", "end_ms")}
            for r in sorted(failed, key=lambda r: -r["end_ms"])[:5]
        ],
        slower=[
            {"number": r["number"], "words": r["words"], "not_faster": r["environment"]["not_faster"]}
            for r in sorted(records, key=lambda r: -r["end_ms"])
            if r.get("environment", {}).get("not_faster")
        ][:5],
        **{key: live.get(key, 0) for key in ("pid", "at_ms", "started_ms", "slots")},
        **{key: live.get(key, "") for key in ("host", "executor", "root")},
    )


def alive(live: dict[str, Any]) -> bool:
    """Whether the driver that said this still runs: asked of the kernel on its own host, else judged by its silence."""
    if live["host"] != socket.gethostname():
        return time.time() - live["at_ms"] / 1000 < SILENT
    try:
        return psutil.Process(live["pid"]).create_time() <= live["at_ms"] / 1000
    except psutil.NoSuchProcess:
        return False


def seconds_left(live: dict[str, Any], records: Sequence[dict[str, Any]], now_ms: float) -> float | None:
    """About how long the sweep still takes, by the pace of its newest trials and the number of its workers."""
    trained = [r for r in records if r.get("duplicate_of") is None]
    newest = sorted(trained, key=lambda r: r["end_ms"])[-PACE:]
    if not newest:
        return None
    pace = sum(r["end_ms"] - r["start_ms"] for r in newest) / len(newest) / 1000
    spent = sum(min((now_ms - d["since_ms"]) / 1000, pace) for d in live["doing"] if d["key"] >= 0)
    if live["phase"] == "search":
        pieces = max(0, live["trials"] - len(records)) + live["confirm"]
    else:
        pieces = max(0, live["total"] - live["done"])
    return max(0.0, pieces * pace - spent) / max(1, live["slots"])


def overview(found: Sequence[Progress]) -> Table:
    """One row per sweep."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("Sweep", "State", "Trials", "Failed", "Left", "Workers", "Driver"):
        # On a narrow screen only the driver is broken: hosts have long names, and the rest is what people look for.
        kept = head != "Driver"
        justify: Any = "right" if head in ("Trials", "Failed", "Left") else "left"
        table.add_column(head, justify=justify, no_wrap=kept, overflow="fold")
    for one in found:
        state = one.state if one.state != "running" else f"running: {one.phase}"
        left = "" if one.state != "running" else _left(one.seconds_left)
        busy = f"{len(one.doing)} of {one.slots} busy" if one.state == "running" else ""
        driver = f"{one.pid} on {one.host}" if one.host else ""
        trials = f"{one.trials} of {one.budget}"
        colour = _COLOURS.get(one.state, "yellow")
        table.add_row(one.sweep, Text(state, colour), trials, str(one.failed or ""), left, busy, driver)
    return table


def details(one: Progress, said: str) -> Group:
    """What every worker does, the newest failures, how to resume when no driver runs; `said`: the storage's word."""
    lines: list[Any] = [Text("")]
    if one.doing:
        workers = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        for head in ("Doing", "Stage", "Done", "For"):
            workers.add_column(head, justify="right" if head in ("Done", "For") else "left")
        for work in one.doing:
            lasting = one.at_ms / 1000 - work["since_ms"] / 1000
            workers.add_row(work["what"], work["stage"], f"{100 * work['fraction']:.0f} %", span(lasting))
        lines += [workers]
    elif one.state == "running":
        lines += [Text("No worker is busy.")]
    if one.state not in ("running", "finished"):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.at_ms / 1000))
        words = [f"study={one.study}", *([said] if said else []), *([f"root={one.root}"] if one.root else [])]
        lines += [Text(f"No driver has run since {since}; resume with:" if one.at_ms else "Resume with:")]
        lines += [Text(f"  python -m search.run {shlex.join(words)}")]
    if one.stopped:
        lines += [Text(f"{one.stopped} of {one.trials} trials were stopped early.", "dim")]
    if one.interrupted:
        lines += [Text(f"{one.interrupted} interrupted and enqueued again, which is no failure.", "dim")]
    if one.failures:
        lines += [Text("Newest failures:", "bold")]
        lines += [Text(f"  trial {f['number']}, {f['words']}: {f['reason']}") for f in one.failures]
    if one.slower:
        lines += [Text("Not faster than the dense file:", "bold")]
        lines += [Text(f"  trial {f['number']}, {f['words']}: {f['not_faster']}") for f in one.slower]
    return Group(*lines)


def _left(seconds: float | None) -> str:
    return "after a trial" if seconds is None else f"about {span(seconds)}"


def arguments(words: Sequence[str]) -> dict[str, str]:
    """`key=value` words -> the settings; raises UsageError."""
    asked = HELP.read(words)
    try:
        if asked["watch"] and float(asked["watch"]) < 1:
            raise ValueError
    except ValueError:
        raise UsageError(f"watch: {asked['watch']!r} must be a number of seconds, 1 or more") from None
    return asked


def _carry_out(words: list[str]) -> int:
    asked = arguments(words)
    root = Path(asked["root"]).expanduser().absolute()
    url = database.address(root, asked["storage"])
    if not database.is_server(url) and not (root / "optuna.db").is_file():
        raise UsageError(f"root: nothing has been searched in {root} yet; name another with root=FOLDER")
    said = "" if asked["storage"] == "sqlite" else f"storage={asked['storage']}"

    def shown() -> Group:
        found = progress(url, asked["study"], asked["sweep"])
        return Group(overview(found), *[details(one, said) for one in found if asked["study"] or asked["sweep"]])

    if asked["format"] == "json":
        print(json.dumps([asdict(one) for one in progress(url, asked["study"], asked["sweep"])], indent=2))
    elif not asked["watch"]:
        terminal.console().print(shown())
    else:
        with Screen(shown(), console=terminal.console(), auto_refresh=False) as screen:
            while True:
                try:
                    time.sleep(float(asked["watch"]))
                except KeyboardInterrupt:
                    return 0
                screen.update(shown(), refresh=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0, 2 for a mistake in it, 1 for a storage that cannot be read."""
    return command("search.status", HELP, argv, _carry_out)


if __name__ == "__main__":
    sys.exit(main())
