"""What is done of a trial before its full training, where the study stops early: its costs, then a short schedule.

Each step either ends the trial as stopped, with its reason, or leads to the next; the last one is the full training.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from search.errors import reason
from search.storage.costs import Costs
from search.study.config import Config
from search.sweep.display import Display
from search.sweep.early import EarlyStopping, Stopped
from search.sweep.records import SECONDS
from search.sweep.rung import Rung
from search.sweep.sweep import PendingTrial, Sweep
from search.trial import objective
from search.trial.record import SHORT, TrialRecord
from search.trial.results import Baseline, Outlined
from trainers.recipe import Recipe


class Desk(Protocol):
    """What a driver does for it."""

    def baseline(self, recipe: Recipe) -> Baseline:
        """The dense model that the recipe starts from."""
        ...

    def folder(self, asked: PendingTrial) -> Path:
        """Where the trial's files lie."""
        ...

    def submit(
        self, asked: PendingTrial, work: Any, args: tuple[Any, ...], then: Callable[[PendingTrial, Future[Any]], None]
    ) -> None:
        """Have a worker do it, then call back."""
        ...

    def train(self, asked: PendingTrial, recipe: Recipe, folder: Path, then: Callable[..., None]) -> None:
        """Have a worker carry the recipe out, then call back."""
        ...

    def settled(self, asked: PendingTrial, future: Future[Any]) -> TrialRecord:
        """What came of that, as a record."""
        ...

    def failed(self, asked: PendingTrial) -> TrialRecord:
        """The record of a trial that has given nothing yet."""
        ...

    def end(self, asked: PendingTrial, record: TrialRecord) -> None:
        """The trial has ended so."""
        ...


class Screening:
    """Leads one sweep's trials to `full`, their full training. `reference`: the hypervolume's reference point."""

    def __init__(
        self,
        config: Config,
        sweep: Sweep,
        costs: Costs,
        display: Display,
        desk: Desk,
        records: Sequence[TrialRecord],
        full: Callable[[PendingTrial], None],
        reference: Sequence[float],
    ):
        self._config, self._sweep, self._costs, self._display, self._desk = config, sweep, costs, display, desk
        self._records, self._full = records, full
        self._settings = config.study.early_stopping
        self._early = EarlyStopping(config.study, sweep.metrics, reference)
        self._unforeseen: set[str] = set()  # trainers that cannot tell what a recipe costs
        self.rung = Rung(config.study, sweep.metrics, records)

    def start(self, asked: PendingTrial) -> None:
        """The first step; references are trained whatever is expected of them."""
        recipe = asked.recipe
        if asked.reference is not None or self._settings.name == "none":
            self._full(asked)
        elif asked.short is not None:  # promoted, and interrupted then
            self.rung.add(asked.number, recipe, asked.short)
            self._full(asked)
        elif not self._settings.by_gain or recipe.trainer in self._unforeseen:
            self._shorten(asked)
        elif (figures := self._costs.figures(self._desk.baseline(recipe), recipe)) is not None:
            self._judge(asked, figures)
        else:
            self._outline(asked)

    def _outline(self, asked: PendingTrial) -> None:
        """Have a worker find out what the recipe costs, without training it."""
        recipe, baseline = asked.recipe, self._desk.baseline(asked.recipe)
        folder = self._desk.folder(asked) / "outline"
        args = (self._config, recipe, baseline, folder, self._costs.latencies(baseline))
        self._desk.submit(asked, objective.outline, args, self._outlined)

    def _outlined(self, asked: PendingTrial, future: Future[Any]) -> None:
        recipe, baseline = asked.recipe, self._desk.baseline(asked.recipe)
        found: Outlined | None = None
        if error := future.exception():
            reason(error)  # raises where the machine is at fault; else the training says what is wrong
        elif (found := future.result()) is None:
            self._unforeseen.add(recipe.trainer)
            self._display.say(f"  early_stopping: the {recipe.trainer} trainer tells no costs without training")
        if found is not None:
            self._costs.sketch(baseline, recipe, found.outline)
            if found.measured is not None:
                self._costs.add(baseline, found.outline.architecture, found.measured)
        figures = self._costs.figures(baseline, recipe)
        if figures is None:
            self._shorten(asked)
        else:
            self._judge(asked, figures)

    def _judge(self, asked: PendingTrial, figures: dict[str, float]) -> None:
        """Go on with the recipe if it is worth its training, by what it costs."""
        stopped = self._early.verdict(asked.recipe, figures, self._records)
        if stopped is None:
            self._shorten(asked)
        else:
            self._stop(asked, stopped, self._desk.failed(asked))

    def _shorten(self, asked: PendingTrial) -> None:
        """Have a worker train it with the short schedule, where it has one and that was not done before."""
        short = asked.recipe.shortened(self._settings.schedule)
        if not self._settings.by_rungs or short == asked.recipe.canonical():
            self._full(asked)
        elif (figures := self.rung.known(asked.recipe)) is not None:
            self._rank(asked, figures, self._desk.failed(asked))
        else:
            self._display.started(asked.number, f"{asked.title}, {100 * self._settings.schedule:g} % of its epochs")
            self._desk.train(asked, short, self._desk.folder(asked) / "short", self._shortened)

    def _shortened(self, asked: PendingTrial, future: Future[Any]) -> None:
        record = self._desk.settled(asked, future)
        shutil.rmtree(self._desk.folder(asked) / "short", ignore_errors=True)
        if record.state != "complete":
            self._desk.end(asked, replace(record, reason=f"with the short schedule: {record.reason}"))
            return
        figures = self.rung.of_interest(record.metrics)
        self.rung.add(asked.number, asked.recipe, figures)
        spent = {SECONDS: sum(record.stages.values())}
        self._rank(asked, figures, replace(self._desk.failed(asked), stages=spent, system=record.system))

    def _rank(self, asked: PendingTrial, figures: Mapping[str, float], base: TrialRecord) -> None:
        """Train the recipe in full if its short schedule's result deserves it."""
        stopped = self.rung.verdict(asked.recipe)
        if stopped is None:
            self._full(self._sweep.promoted(asked, figures, base.stages.get(SECONDS, 0.0)))
        else:
            self._stop(asked, stopped, replace(base, metrics={f"{SHORT}{k}": v for k, v in figures.items()}))

    def _stop(self, asked: PendingTrial, stopped: Stopped, base: TrialRecord) -> None:
        metrics = {**base.metrics, **stopped.expected}
        record = replace(base, state="stopped", reason=stopped.reason, metrics=metrics, violations=stopped.violations)
        self._desk.end(asked, record)
