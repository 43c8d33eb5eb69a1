"""The driver's loop: prepare the baselines, then ask, evaluate, tell and log until the budget is spent."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from search.errors import SweepError, reason
from search.executors.base import Event, Executor
from search.executors.start import start
from search.front.listing import Listing
from search.sampling.known_costs import Interval
from search.signals import Stop
from search.storage.costs import Costs
from search.study.config import Config
from search.study.phrases import already
from search.sweep import records
from search.sweep.baselines import Baselines
from search.sweep.confirm import Confirmation
from search.sweep.confirmed import Confirmed
from search.sweep.display import Display
from search.sweep.early import intervals
from search.sweep.heartbeat import Heartbeat
from search.sweep.recorder import TABLE, Log
from search.sweep.reference import reference_point
from search.sweep.screening import Screening
from search.sweep.sweep import PendingTrial, Sweep
from search.trial import objective
from search.trial.record import TrialRecord
from search.trial.results import Baseline, Outcome
from tasks.base import TaskInfo
from trainers.recipe import Recipe

Then = Callable[[PendingTrial, Future[Any]], None]  # what follows a piece of a trial's work

GIVE_UP_AFTER = 5  # failures in a row at the start: the study is wrong, not the recipes


def run(
    config: Config,
    sweep: Sweep,
    stop: Stop | None = None,
    info: TaskInfo | None = None,
    executor: Executor | None = None,
) -> Listing:
    """Run the sweep to its end, confirm its front, log everything; what is finished is kept however this ends.

    Returns the front as the terminal shows it.

    `stop`: asked by SIGTERM; the trials that run then have `executor.grace` seconds, the rest is for the next start.
    `info`: the task, where a worker was asked already. `executor`: that of this host, where it has been started to ask.
    """
    state = [len(sweep.records()), config.study.budget.trials, config.study.confirm.model_dump()]
    if sweep.get("finished") == state:
        print(already(sweep.name, len(sweep.records())))
        return Listing.from_dict(sweep.get(TABLE))
    print(f"{sweep.name}: {state[0]} of {state[1]} trials done; everything is kept in {config.root}", flush=True)
    # Before the record is opened: a cluster that does not answer is no run of the sweep.
    executor = executor or start(config, config.root / "logs" / f"{sweep.name}.log", info)
    log = Log(config, sweep)
    display = Display(config.study.budget.trials, len(sweep.records()), config.study.objectives, sweep.metrics)
    driver = Driver(config, sweep, executor, display, log.trial, stop, info, log.check, log.begin)
    live = Heartbeat(config, sweep, display, executor.slots)
    status, confirmed = "failed", list[Confirmed]()
    try:
        with display, live:
            driver.search()
            confirmed = driver.confirmed()
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        executor.close()
        # Ctrl-C can cut a run in MLflow in half; the next start completes it, and nothing may hide the interruption.
        with contextlib.suppress(*([Exception] if status == "interrupted" else [])):
            log.finish(status, list(driver.baselines.values()), confirmed)
        live.say(status)
    sweep.put("finished", [len(sweep.records()), *state[1:]])
    return Listing.from_dict(sweep.get(TABLE))


class Driver:
    """Runs one sweep; `log` is told of every finished trial, after Optuna."""

    def __init__(
        self,
        config: Config,
        sweep: Sweep,
        executor: Executor,
        display: Display,
        log: Callable[[TrialRecord], None],
        stop: Stop | None = None,
        info: TaskInfo | None = None,
        check: Callable[[], None] = lambda: None,
        begin: Callable[[], None] = lambda: None,
    ):
        self._config = config
        self._sweep = sweep
        self._executor = executor
        self._display = display
        self._log, self._check, self._begin = log, check, begin
        self._stop = stop or Stop()
        self._files = config.root / "trials" / sweep.name
        self._costs = Costs(config.root, config.study)
        sweep.knows(self._looked_up)
        self._dense = Baselines(config, sweep, executor, display, self._files, info)
        self._screening: Screening | None = None
        self._records = sweep.records()
        self._known: dict[str, TrialRecord] = {}  # recipe digest -> the first complete trial of it
        for record in self._records:
            self._remember(record)
        self._running: dict[Future[Any], tuple[PendingTrial, Then]] = {}
        self._waiting: dict[str, list[PendingTrial]] = {}  # recipe digest -> trials that wait for its result

    @property
    def baselines(self) -> dict[str, Baseline]:
        """The dense models by name, as far as they are prepared."""
        return self._dense.found

    def search(self) -> None:
        """Until the budget is spent. Raises SweepError when more trials are useless, Terminated when asked to stop."""
        if self._left() <= 0:
            return
        self.prepare()
        with self._stop.noted():
            self._spend()

    def _spend(self) -> None:
        budget = self._config.study.budget
        deadline = time.monotonic() + 60 * budget.minutes if budget.minutes else None
        over = False
        while self._left() > 0 or self._running:
            out_of_time = deadline is not None and time.monotonic() > deadline
            if self._stop.asked and not over:
                grace = self._config.executor.grace
                self._display.say(f"SIGTERM: {len(self._running)} running trials have {grace:g} s to finish")
            over = out_of_time or self._stop.asked
            while not over and self._left() > 0 and len(self._running) < self._executor.slots:
                self._start(self._sweep.ask())
                if self._stop.asked:  # many in a row may end at once
                    break
            if out_of_time and not self._running:
                self._display.say(f"The {budget.minutes:g} minutes of study.budget.minutes are over.")
                return
            if self._stop.asked and (not self._running or self._stop.overdue(self._config.executor.grace)):
                return
            self._collect()

    def confirmed(self) -> list[Confirmed]:
        """The front trained again with fresh seeds and judged on the test split; once per state of the sweep."""
        settings = self._config.study.confirm
        if not settings.seeds or not any(r.state == "complete" for r in self._records):
            return []
        state = [len(self._records), settings.model_dump()]
        stored = self._sweep.get("confirmed")
        if stored and stored["state"] == state:
            return [Confirmed.from_dict(point) for point in stored["points"]]
        self.prepare()
        work = Confirmation(self._config, self._sweep, self._executor, self._display, self.baselines)
        points = work.run(self._records)
        self._sweep.put("confirmed", {"state": state, "points": [point.to_dict() for point in points]})
        return points

    def _left(self) -> int:
        """Trials that may still be asked for."""
        budget = self._config.study.budget
        under_way = len(self._running) + sum(map(len, self._waiting.values()))
        left = budget.trials - len(self._records) - under_way
        if budget.trained is not None:
            trained = sum(r.state != "stopped" and r.duplicate_of is None for r in self._records)
            left = min(left, budget.trained - trained - under_way)
        return left

    def _start(self, asked: PendingTrial) -> None:
        digest = asked.recipe.digest()
        if known := self._known.get(digest):
            self._finish(asked, records.copied(known, asked))
            return
        if any(other.recipe.digest() == digest for other, _ in self._running.values()):
            self._waiting.setdefault(digest, []).append(asked)
            return
        self._display.started(asked.number, asked.title)
        assert self._screening is not None
        self._screening.start(asked)

    def baseline(self, recipe: Recipe) -> Baseline:
        """The dense model that the recipe starts from."""
        return self.baselines[f"{recipe.trainer}/{recipe.model}"]

    def folder(self, asked: PendingTrial) -> Path:
        """Where the trial's files lie."""
        return self._files / f"{asked.number:04d}"

    def _looked_up(self, recipes: Sequence[Recipe]) -> list[dict[str, Interval]]:
        """What is known of recipes without training, each with the ends of its interval."""
        found = []
        for recipe in recipes:
            baseline = self.baselines.get(f"{recipe.trainer}/{recipe.model}")
            figures = (baseline and self._costs.figures(baseline, recipe)) or {}
            found.append(intervals(figures))
        return found

    def _full(self, asked: PendingTrial) -> None:
        """Carry the recipe out as it is."""
        self._display.started(asked.number, asked.title)
        self.train(asked, asked.recipe, self.folder(asked), self._trained)

    def train(self, asked: PendingTrial, recipe: Recipe, folder: Path, then: Then) -> None:
        """Have a worker carry the recipe out in the folder, then call back."""
        baseline = self.baseline(recipe)
        teacher = self.baselines.get(recipe.distillation.teacher, baseline)
        args = (self._config, recipe, baseline, teacher, folder, self._costs.latencies(baseline))
        self.submit(asked, objective.evaluate, args, then)
        if len(self._running) == self._executor.slots:
            self._begin()

    def submit(self, asked: PendingTrial, work: Callable[..., Any], args: tuple[Any, ...], then: Then) -> None:
        """Have a worker do a piece of the trial's work, then call back."""
        future = self._executor.submit(asked.number, asked.recipe.trainer, work, *args)
        self._running[future] = asked, then

    def _collect(self) -> None:
        done, _ = wait(self._running, timeout=0.2, return_when=FIRST_COMPLETED)
        for event in self._executor.events():
            self._tell_progress(event)
        for future in done:
            asked, then = self._running.pop(future)
            then(asked, future)

    def _trained(self, asked: PendingTrial, future: Future[Any]) -> None:
        self.end(asked, self.settled(asked, future))

    def end(self, asked: PendingTrial, record: TrialRecord) -> None:
        """The trial has ended; those that waited for its result take it, or are started."""
        self._display.finished(asked.number)
        self._finish(asked, record)
        for other in self._waiting.pop(asked.recipe.digest(), []):
            if record.state == "complete":
                self._finish(other, records.copied(record, other))
            else:
                self._start(other)

    def _finish(self, asked: PendingTrial, record: TrialRecord) -> None:
        self._sweep.tell(asked, record)
        self._records.append(record)
        self._remember(record)
        if self._screening is not None:
            self._screening.rung.learn(record)
        self._log(record)
        self._display.record(record, self._config.study.budget.trials)
        if len(self._records) == GIVE_UP_AFTER and all(r.state == "failed" for r in self._records):
            first = sorted(self._records, key=lambda r: r.end_ms)
            reasons = "\n".join(f"  {r.words}: {r.reason}" for r in first)
            raise SweepError(
                f"the first {GIVE_UP_AFTER} trials all failed, so the sweep was stopped:\n{reasons}\n"
                "Fix the study, then start a new sweep with fresh=true"
            )

    def _remember(self, record: TrialRecord) -> None:
        if record.state == "complete":
            self._known.setdefault(Recipe.from_dict(record.recipe).digest(), record)

    def settled(self, asked: PendingTrial, future: Future[Any]) -> TrialRecord:
        """What came of carrying a recipe out, as a record; raises SweepError when the machine is at fault."""
        base = self.failed(asked)
        if error := future.exception():
            return replace(base, reason=reason(error))
        outcome: Outcome = future.result()
        if outcome.measured is not None:
            self._costs.add(self.baseline(asked.recipe), outcome.architecture, outcome.measured)
        if wrong := self._sweep.unusable(outcome.metrics):
            return replace(base, reason=wrong)
        return records.complete(base, outcome, self._sweep.violations(outcome.metrics))

    def failed(self, asked: PendingTrial) -> TrialRecord:
        """The record of a trial that has given nothing yet."""
        recipe = asked.recipe
        alone = len(self._sweep.space.trainers()) == 1
        words = recipe.describe() if alone else f"{recipe.trainer} · {recipe.describe()}"
        return records.failed(asked, self.baseline(recipe), words)

    def prepare(self) -> None:
        """Train (or find) every dense model that trials start from or learn from, and export the baselines."""
        self._dense.prepare(self._tell_progress)
        if self._screening is None:
            for name, count in self._sweep.warm({b.name: b.latency_ms for b in self.baselines.values()}).items():
                self._display.say(f"warm_start: the sampler knows {count} trials of {name}")
            study, metrics = self._config.study, self._sweep.metrics
            point = reference_point(study, metrics, list(self.baselines.values()))
            self._screening = Screening(
                self._config, self._sweep, self._costs, self._display, self, self._records, self._full, point
            )

    def _tell_progress(self, event: Event) -> None:
        self._check()  # a record that cannot be written is said before more is trained
        self._display.progress(*event)
