"""What a person sees while a sweep runs: a bar with the time left, the best so far, what each worker is doing."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from search import terminal
from search.study.metrics import Metrics
from search.trial.record import TrialRecord


class Display:
    """Live on a terminal; one line per finished trial everywhere, so that a log file reads as well."""

    def __init__(self, total: int, done: int, objectives: list[str], metrics: Metrics, console: Console | None = None):
        self.console = console or terminal.console()
        self._objectives, self._metrics = objectives, metrics
        self._best: dict[str, TrialRecord] = {}
        self._working: dict[int, tuple[str, str, float, float]] = {}  # what, stage, fraction of it, since when
        self._phase = "search"
        self._said: dict[int, tuple[str, float]] = {}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
        )
        self._task = self._bar.add_task("trials", total=total, completed=done)
        self._live = Live(console=self.console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, soft_wrap=True)

    def started(self, key: int, what: str) -> None:
        """A worker begins `what`."""
        self._working[key] = (what, "starting", 0.0, time.time())

    def progress(self, key: int | None, stage: str, fraction: float) -> None:
        """The work is at `fraction` of `stage`; without a key `stage` is a warning, which stays.

        Without a terminal a line is printed now and then.
        """
        if key is None:
            self.console.print(f"  {stage}", soft_wrap=True, markup=False)
            return
        if key not in self._working:
            return
        what, _, _, since = self._working[key]
        self._working[key] = (what, stage, fraction, since)
        if not self.console.is_terminal and key < 0:
            before, when = self._said.get(key, ("", 0.0))
            if stage != before or time.monotonic() - when > 10:
                self._said[key] = (stage, time.monotonic())
                self.say(f"  {what}: {stage} {100 * fraction:.0f} %")

    def finished(self, key: int) -> None:
        """The work of this key has ended."""
        self._working.pop(key, None)

    def phase(self, name: str, total: int, done: int) -> None:
        """The bar counts something else from now on."""
        self._phase = name
        self._bar.reset(self._task, description=name, total=total, completed=done)

    def advance(self) -> None:
        """One more of the phase is done."""
        self._bar.advance(self._task)

    def record(self, record: TrialRecord, total: int) -> None:
        """A trial has ended: its line, the bar and the best so far."""
        self._bar.advance(self._task)
        if record.state == "complete" and record.feasible:
            for name in self._objectives:
                best = self._best.get(name)
                sign = 1 if self._metrics.minimized(name) else -1
                if best is None or sign * record.metrics[name] < sign * best.metrics[name]:
                    self._best[name] = record
        done = int(self._bar.tasks[0].completed)
        self.say(f"\\[{done:>3}/{total}] trial {record.number}: {_line(record, self._objectives, self._metrics)}")

    def state(self) -> dict[str, Any]:
        """The same as plain data: phase, done and total of it, and what every worker does, since when (ms)."""
        bar = self._bar.tasks[0]
        doing = [
            {"key": key, "what": what, "stage": stage, "fraction": round(f, 3), "since_ms": int(1000 * since)}
            for key, (what, stage, f, since) in list(self._working.items())
        ]
        return {"phase": self._phase, "done": int(bar.completed), "total": int(bar.total or 0), "doing": doing}

    def _render(self) -> Group:
        best = [
            f"{name} {self._metrics[name].text(record.metrics[name])} ({record.words})"
            for name, record in self._best.items()
        ]
        rows = [Text(f"  {what}: {stage} {100 * f:.0f} %") for what, stage, f, _ in self._working.values()]
        lines = [Text("best so far: " + " | ".join(best))] if best else []
        return Group(self._bar, *lines, *rows)


def _line(record: TrialRecord, objectives: list[str], metrics: Metrics) -> str:
    name = f"{record.words}" + (f" ({record.reference})" if record.reference else "")
    if record.state == "failed":
        return f"{name}: FAILED: {record.reason}"
    shown = dict.fromkeys([*objectives, "latency_ratio", "compression_ratio"])
    figures = ", ".join(f"{n} {metrics[n].text(record.metrics[n])}" for n in shown if n in record.metrics)
    marks = "" if record.feasible else " [infeasible]"
    if record.environment.get("noisy"):
        spread = record.metrics["latency_ratio_high"] - record.metrics["latency_ratio_low"]
        marks += f" [noisy: latency ± {50 * spread / record.metrics['latency_ratio']:.0f} %]"
    if record.duplicate_of is not None:
        marks += f" [same as trial {record.duplicate_of}]"
    return f"{name}: {figures}{marks}".replace("[", "\\[")
