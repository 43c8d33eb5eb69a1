"""How long until a search works: from the command to the first trial, and what a finished study takes to answer.

    python -m benchmarks.start [study=mnist_prune] [times=3] [root=FOLDER] [KEY=VALUE of the study ...]

A first run trains the dense model and finishes a sweep of one trial. Then, alternating: the same command again, which
has nothing to do, and one with fresh=true, ended once its first trial was asked for. For each step wall-clock and the
CPU time of all processes so far: on a busy machine only the latter says something.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).parent.parent
STEPS = (
    "the command line is read",
    "the sweep is open",
    "the dense model is found",
    "the dense model is measured",
    "the first trial begins",
)
LIMIT_S = 300.0


def cpu_seconds(process: int) -> float:
    """CPU time of a process and of all that descend from it, those that have ended and were waited for too."""
    parents, spent = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(folder.name)] = int(fields[1])
            spent[int(folder.name)] = sum(map(int, fields[11:15])) / TICK
    return sum(spent[each] for each in spent if _descends(each, process, parents))


def _descends(each: int, ancestor: int, parents: dict[int, int]) -> bool:
    while each > 1 and each != ancestor:
        each = parents.get(each, 0)
    return each == ancestor


def step_of(line: str) -> str:
    """The step that a line of the search's output marks."""
    if " trials done; everything is kept in " in line:
        return STEPS[1]
    if line.startswith("  baseline ") and ": measure " in line:
        return STEPS[2]
    return STEPS[3] if line.startswith("baseline ") else STEPS[0]


def started(command: list[str], root: Path) -> dict[str, tuple[float, float]]:
    """Step -> (seconds, CPU-seconds) from the command on, until the first trial begins; the search is ended then.

    The trial's beginning is what the storage says of it; its CPU time that until the dense model was measured.
    """
    began, found, text = time.time(), dict[str, tuple[float, float]](), []
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ending = threading.Timer(LIMIT_S, process.kill)
    ending.start()
    assert process.stdout is not None
    for line in process.stdout:
        text.append(line)
        found.setdefault(step_of(line), (time.time() - began, cpu_seconds(process.pid)))
        if STEPS[3] in found:
            break
    while process.poll() is None and (first := first_trial(root)) < began:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    text.append(process.communicate()[0])
    ending.cancel()
    if STEPS[3] not in found:
        raise RuntimeError(f"no trial began: {''.join(text)[-2000:]}")
    found[STEPS[4]] = first - began, found[STEPS[3]][1]
    return found


def first_trial(root: Path) -> float:
    """When the newest sweep's first trial was begun, in seconds since the epoch; 0 where it was not."""
    query = "select datetime_start from trials where number = 0 and datetime_start is not null order by trial_id desc"
    with contextlib.closing(sqlite3.connect(f"file:{root}/optuna.db?mode=ro", uri=True, timeout=10)) as database:
        row = database.execute(query).fetchone()
    return datetime.fromisoformat(row[0]).timestamp() if row else 0.0


def answered(command: list[str]) -> tuple[float, float]:
    """(seconds, CPU-seconds) of a command that runs to its end."""
    began, before = time.perf_counter(), os.times()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    after = os.times()
    return time.perf_counter() - began, sum(after[2:4]) - sum(before[2:4])


def line(name: str, found: list[tuple[float, float]]) -> str:
    """Medians and the largest of wall-clock and CPU time."""
    wall, cpu = ([each[part] for each in found] for part in (0, 1))
    told = f"{statistics.median(wall):6.2f} s (at most {max(wall):.2f})"
    return f"{name:36} {told:24} {statistics.median(cpu):6.2f} CPU-s"


def main() -> None:
    words = dict(word.partition("=")[::2] for word in sys.argv[1:])
    study, times = words.pop("study", "mnist_prune"), int(words.pop("times", 3))
    root = Path(words.pop("root", "") or tempfile.mkdtemp(prefix="pare-start-")).absolute()
    own = [f"{key}={value}" for key, value in words.items()]
    once = ["study.budget.trials=1", "study.confirm.seeds=0", "tracking.layers=false"]
    command = [sys.executable, "-m", "search.run", f"study={study}", f"root={root}", "executor.grace=0", *once, *own]
    data = ROOT / "mlruns" / "cache" / "data"
    if data.exists() and not (root / "cache" / "data").exists():
        (root / "cache").mkdir(parents=True, exist_ok=True)
        (root / "cache" / "data").symlink_to(data)
    finished, steps = list[tuple[float, float]](), dict[str, list[tuple[float, float]]]()
    subprocess.run(command, cwd=ROOT, check=True)
    for _ in range(times):
        finished.append(answered([*command, f"sweep={study}-001"]))
        for step, spent in started([*command, "fresh=true"], root).items():
            steps.setdefault(step, []).append(spent)
    print(
        f"{study}, {times} times, load average {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores; {root}"
    )
    for step in STEPS:
        if step in steps:
            print(line(step, steps[step]))
    print(line("a finished study has answered", finished))


if __name__ == "__main__":
    main()
