"""What a person sees while a sweep runs: how far it is, the time left, the best so far, what each worker is doing."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search import terminal
from search.study.metrics import Metrics
from search.study.phrases import result, span
from search.trial.record import TrialRecord

_WORDS = 16  # columns that a trial's recipe is left, at least
_BAR = 30  # columns; on a narrow terminal the words are kept and the bar is left out


class Display:
    """Live on a terminal; one line per finished trial everywhere, so that a log file reads as well.

    On a terminal no line is wider than it: what cannot be shown is cut at its end, and the record has it in full.
    """

    def __init__(self, total: int, done: int, objectives: list[str], metrics: Metrics, console: Console | None = None):
        self.console = console or terminal.console()
        self._objectives, self._metrics = objectives, metrics
        self._best: dict[str, TrialRecord] = {}
        self._working: dict[int, tuple[str, str, float, float]] = {}  # what, stage, fraction of it, since when
        self._said: dict[int, tuple[str, float]] = {}
        self.phase("search", total, done)
        self._live = Live(console=self.console, refresh_per_second=4, transient=True, get_renderable=self._render)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays, or several; long ones go on in the next line."""
        self.console.print(text, soft_wrap=not self.console.is_terminal, markup=False)

    def _line(self, head: str, words: str, figures: list[str], marks: str) -> None:
        """`head words · figures marks`, in one line: on a terminal the words are cut first, then the last figures."""
        text = " · ".join([head + words, *figures]) + marks
        room = self.console.width
        if self.console.is_terminal and len(text) > room:
            while len(figures) > 1 and len(" · ".join([head, *figures])) + len(marks) + _WORDS > room:
                figures = figures[:-1]
            rest = "".join(f" · {each}" for each in figures) + marks
            text = head + _cut(words, room - len(head) - len(rest)) + rest
        if self.console.is_terminal:
            self.console.print(text, markup=False, no_wrap=True, overflow="ellipsis")
        else:
            self.console.print(text, markup=False, soft_wrap=True)

    def started(self, key: int, what: str) -> None:
        """A worker begins `what`."""
        self._working[key] = (what, "starting", 0.0, time.time())

    def progress(self, key: int | None, stage: str, fraction: float) -> None:
        """The work is at `fraction` of `stage`; without a key `stage` is a warning, which stays.

        Without a terminal a line is printed now and then.
        """
        if key is None:
            self.say(f"  {stage}")
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
        """From now on `total` pieces of this phase are counted, `done` of which were there before."""
        self._phase, self._total, self._done = name, total, done
        self._before, self._since = done, time.monotonic()

    def advance(self) -> None:
        """One more of the phase is done."""
        self._done += 1

    def record(self, record: TrialRecord, total: int) -> None:
        """A trial has ended: its line, the count and the best so far."""
        self.advance()
        if record.state == "complete" and record.feasible:
            for name in self._objectives:
                best = self._best.get(name)
                sign = 1 if self._metrics.minimized(name) else -1
                if best is None or sign * record.metrics[name] < sign * best.metrics[name]:
                    self._best[name] = record
        count = f"{self._done:>{len(str(total))}}/{total}"
        words = record.words + (f" ({record.reference})" if record.reference else "")
        figures = result(self._metrics, self._objectives, record.metrics) if record.state == "complete" else []
        self._line(f"[{count}] trial {record.number}: ", words, figures, marks(record))

    def state(self) -> dict[str, Any]:
        """The same as plain data: phase, done and total of it, and what every worker does, since when (ms)."""
        doing = [
            {"key": key, "what": what, "stage": stage, "fraction": round(f, 3), "since_ms": int(1000 * since)}
            for key, (what, stage, f, since) in list(self._working.items())
        ]
        return {"phase": self._phase, "done": self._done, "total": self._total, "doing": doing}

    def _render(self) -> Group:
        lines: list[RenderableType] = [self._count()]
        for name, record in self._best.items():
            value = self._metrics[name].text(record.metrics[name])
            lines.append(_row(f"best {self._metrics[name].phrase}: {value} ({record.words})"))
        for what, stage, fraction, _ in list(self._working.values()):
            lines.append(_row(f"  {stage} {100 * fraction:>3.0f} %  {what}"))
        return Group(*lines)

    def _count(self) -> RenderableType:
        """`search ━━━━━━ 7 of 18 · 2 min 5 s · about 3 min left`."""
        spent = time.monotonic() - self._since
        words = [f"{self._done} of {self._total}", span(spent)]
        now, left = self._done - self._before, self._total - self._done
        if left > 0 and now > 0:
            words.append(f"about {span(spent / now * left)} left")
        text = Text(" · ".join(words), no_wrap=True, overflow="ellipsis")
        if self.console.width < len(self._phase) + len(text) + _BAR // 2:
            return _row(f"{self._phase} {text}")
        grid = Table.grid(padding=(0, 1))
        grid.add_row(self._phase, ProgressBar(max(self._total, 1), self._done, width=_BAR), text)
        return grid


def marks(record: TrialRecord) -> str:
    """What makes a trial's figures doubtful or missing: ` FAILED: the loss became NaN`, ` [infeasible]`."""
    if record.state != "complete":
        return f" {'FAILED' if record.state == 'failed' else 'stopped'}: {record.reason}"
    found = "" if record.feasible else " [infeasible]"
    if record.not_faster:
        found += f" [not faster: {record.not_faster}]"
    if record.environment.get("noisy"):
        width = record.metrics["latency_ratio_high"] - record.metrics["latency_ratio_low"]
        half = 50 * width / record.metrics["latency_ratio"]
        found += f" [noisy: latency ± {half:.0f} %]" if half < 100 else " [too noisy: latency not known]"
    if record.duplicate_of is not None:
        found += f" [same as trial {record.duplicate_of}]"
    return found


def _cut(words: str, room: int) -> str:
    return words if len(words) <= room else words[: max(room - 1, 0)].rstrip() + "…"


def _row(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")
