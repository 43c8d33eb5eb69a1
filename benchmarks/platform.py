"""What the platform costs per trial as a study grows: the real driver, workers, SQLite and MLflow, a planted objective.

    python -m benchmarks.platform [trials=1000] [workers=8] [storage=sqlite|postgres] [sampler=tpe] [early=none]
                                  [root=FOLDER]

A trial takes 10 ms on one of the workers, so the driver is what limits the pace, and the wall time from one finished
trial to the next is the platform's. `ask`, `tell` and `log` are its parts; the rest is handing over and the loop; `cpu`
is the driver's CPU time, which a busy machine does not change much. `early=gain`, `rungs` or `gain_and_rungs` stops
trials early, by planted costs. MLflow is written by a process of its own: `log` is the handing over, and the time until
it has written all is said.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from search.study.config import Config

# What the driver alone needs is imported where it is used: workers import this module, too, as they do search/run.py.
if TYPE_CHECKING:
    from search.sweep.sweep import Sweep

WINDOW = 50  # trials that a figure is the mean of


class Clock:
    """Seconds spent in each part, one entry per call."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}
        self.finished: list[float] = []
        self.cpu: list[float] = []  # of this process at the same moments
        self.drained = 0.0  # that MLflow was still written after the last trial

    def timed(self, part: str, action: Callable[..., Any]) -> Callable[..., Any]:
        """The action, its time added to `part`."""
        spent = self.spent.setdefault(part, [])

        def run(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return action(*args)
            finally:
                now = time.perf_counter()
                spent.append(now - began)
                if part == "log":
                    self.finished.append(now)
                    self.cpu.append(time.process_time())

        return run


def search(config: Config) -> tuple[Sweep, Clock]:
    """The study searched to its end by the real driver, with its parts timed."""
    from search.executors.start import start
    from search.storage.database import address
    from search.sweep.display import Display
    from search.sweep.driver import Driver
    from search.sweep.recorder import Log
    from search.sweep.sweep import Sweep

    clock = Clock()
    sweep = Sweep.open(config.study, address(config.root, config.storage.name))
    log = Log(config, sweep)
    for part in ("ask", "tell"):
        setattr(sweep, part, clock.timed(part, getattr(sweep, part)))
    with open(os.devnull, "w") as nowhere:
        objectives, metrics = config.study.objectives, sweep.metrics
        display = Display(config.study.budget.trials, 0, objectives, metrics, Console(file=nowhere))
        workers = start(config, config.root / "logs" / "workers.log")
        try:
            Driver(config, sweep, workers, display, clock.timed("log", log.trial)).search()
        finally:
            workers.close()
            ended = time.perf_counter()
            log.close()
            clock.drained = time.perf_counter() - ended
    return sweep, clock


def table(clock: Clock, at: list[int]) -> str:
    """Milliseconds per trial by part, around the trials `at`."""
    lines = ["trials      ask     tell      log     rest     wall      cpu   ms per trial, mean of the last 50"]
    for n in at:
        part = slice(max(0, n - WINDOW), n)
        count = len(clock.finished[part])
        wall = (clock.finished[n - 1] - clock.finished[n - count]) / (count - 1)
        means = [float(np.mean(clock.spent[name][part])) for name in ("ask", "tell", "log")]
        cpu = (clock.cpu[n - 1] - clock.cpu[n - count]) / (count - 1)
        row = [1000 * value for value in (*means, wall - sum(means), wall, cpu)]
        lines.append(f"{n:>6}" + "".join(f"{value:>9.1f}" for value in row))
    return "\n".join(lines)


def main() -> None:
    from benchmarks import planted
    from search.tracking.tracking import Tracking
    from search.trial import objective

    said = dict(word.partition("=")[::2] for word in sys.argv[1:])
    trials, workers = int(said.get("trials", 1000)), int(said.get("workers", 8))
    root = Path(said.get("root") or tempfile.mkdtemp(prefix="pare-platform-")).absolute()
    root.mkdir(parents=True, exist_ok=True)
    sampler = {"name": said.get("sampler", "tpe"), "startup_trials": 10}
    early = {"name": said.get("early", "none"), "chance": 0.1}
    config = planted.config(root, trials, workers, sampler=sampler, early_stopping=early)
    config = config.model_copy(
        update={"storage": config.storage.model_copy(update={"name": said.get("storage", "sqlite")})}
    )
    objective.evaluate, objective.prepare = planted.evaluate, planted.prepare  # type: ignore[assignment]
    objective.outline = planted.outline  # type: ignore[assignment]
    began, cpu = time.perf_counter(), time.process_time()
    sweep, clock = search(config)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    stopped = sum(record.state == "stopped" for record in sweep.records())
    print(f"{trials} trials, {stopped} of them stopped ({early['name']}), {workers} workers, {sampler['name']}")
    print(f"{seconds:.0f} s, {cpu:.0f} s of it the driver's CPU")
    print(f"load average {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores; {root}")
    print(f"MLflow was written {clock.drained:.1f} s longer; {1000 * seconds / trials:.0f} ms per trial over all")
    print(table(clock, sorted({*(n for n in (100, 250, 500, 1000) if n < trials), trials})))
    told = sorted(record.number for record in sweep.records())
    logged = [int(n) for n in Tracking(root, config.study.name).trials(sweep.name)["number"]]
    print(f"told {len(told)}, logged {len(logged)}, each once: {told == logged == list(range(trials))}")


if __name__ == "__main__":
    main()
