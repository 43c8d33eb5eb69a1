"""The driver's loop: prepare the baselines, then ask, evaluate, tell and log until the budget is spent."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
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
from search.sweep.baselines import Baselines
from search.sweep.confirm import Confirmation
from search.sweep.confirmed import Confirmed
from search.sweep.display import Display
from search.sweep.early import EarlyStopping, intervals
from search.sweep.heartbeat import Heartbeat
from search.sweep.recorder import TABLE, Log
from search.sweep.reference import reference_point
from search.sweep.sweep import PendingTrial, Sweep
from search.trial import objective
from search.trial.provenance import git_commit
from search.trial.record import TrialRecord
from search.trial.results import Baseline, Outcome, Outlined
from tasks.base import TaskInfo
from trainers.recipe import Recipe

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
        self._early: EarlyStopping | None = None
        self._outlines: set[Future[Any]] = set()  # of those running, the ones that train nothing
        self._unforeseen: set[str] = set()  # trainers that cannot tell what a recipe costs
        self._records = sweep.records()
        self._known: dict[str, TrialRecord] = {}  # recipe digest -> the first complete trial of it
        for record in self._records:
            self._remember(record)
        self._running: dict[Future[Any], PendingTrial] = {}
        self._waiting: dict[
            str, list[PendingTrial]
        ] = {}  # recipe digest -> trials that wait for the same recipe's result

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
        recipe, digest = asked.recipe, asked.recipe.digest()
        if known := self._known.get(digest):
            self._copy(asked, known)
            return
        if any(other.recipe.digest() == digest for other in self._running.values()):
            self._waiting.setdefault(digest, []).append(asked)
            return
        self._display.started(asked.number, f"trial {asked.number}: {recipe.describe()}")
        if self._early is None or asked.reference is not None or recipe.trainer in self._unforeseen:
            self._train(asked)
        elif (figures := self._costs.figures(self._baseline(recipe), recipe)) is not None:
            self._judge(asked, figures)
        else:
            self._outline(asked)

    def _baseline(self, recipe: Recipe) -> Baseline:
        return self.baselines[f"{recipe.trainer}/{recipe.model}"]

    def _looked_up(self, recipes: Sequence[Recipe]) -> list[dict[str, Interval]]:
        """What is known of recipes without training, each with the ends of its interval."""
        found = []
        for recipe in recipes:
            baseline = self.baselines.get(f"{recipe.trainer}/{recipe.model}")
            figures = (baseline and self._costs.figures(baseline, recipe)) or {}
            found.append(intervals(figures))
        return found

    def _outline(self, asked: PendingTrial) -> None:
        """Have a worker find out what the recipe costs, without training it."""
        recipe, baseline = asked.recipe, self._baseline(asked.recipe)
        folder = self._files / f"{asked.number:04d}" / "outline"
        args = (self._config, recipe, baseline, folder, self._costs.latencies(baseline))
        future = self._executor.submit(asked.number, recipe.trainer, objective.outline, *args)
        self._running[future] = asked
        self._outlines.add(future)

    def _outlined(self, asked: PendingTrial, future: Future[Any]) -> None:
        recipe, baseline = asked.recipe, self._baseline(asked.recipe)
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
            self._train(asked)
        else:
            self._judge(asked, figures)

    def _judge(self, asked: PendingTrial, figures: dict[str, float]) -> None:
        """Train the recipe if it is worth it, by what it costs."""
        assert self._early is not None
        stopped = self._early.verdict(asked.recipe, figures, self._records)
        if stopped is None:
            self._train(asked)
            return
        record = replace(
            self._base(asked),
            state="stopped",
            reason=stopped.reason,
            metrics=stopped.expected,
            violations=stopped.violations,
        )
        self._end(asked, record)

    def _train(self, asked: PendingTrial) -> None:
        recipe, baseline = asked.recipe, self._baseline(asked.recipe)
        teacher = self.baselines.get(recipe.distillation.teacher, baseline)
        folder = self._files / f"{asked.number:04d}"
        args = (self._config, recipe, baseline, teacher, folder, self._costs.latencies(baseline))
        self._running[self._executor.submit(asked.number, recipe.trainer, objective.evaluate, *args)] = asked
        if len(self._running) == self._executor.slots:
            self._begin()

    def _collect(self) -> None:
        done, _ = wait(self._running, timeout=0.2, return_when=FIRST_COMPLETED)
        for event in self._executor.events():
            self._tell_progress(event)
        for future in done:
            asked = self._running.pop(future)
            if future in self._outlines:
                self._outlines.discard(future)
                self._outlined(asked, future)
            else:
                self._end(asked, self._record(asked, future))

    def _end(self, asked: PendingTrial, record: TrialRecord) -> None:
        """The trial has ended; those that waited for its result take it, or are started."""
        self._display.finished(asked.number)
        self._finish(asked, record)
        for other in self._waiting.pop(asked.recipe.digest(), []):
            if record.state == "complete":
                self._copy(other, record)
            else:
                self._start(other)

    def _copy(self, asked: PendingTrial, known: TrialRecord) -> None:
        """Equal recipes give equal files: take the result instead of training again."""
        original = known.number if known.duplicate_of is None else known.duplicate_of
        now = int(time.time() * 1000)
        copied = replace(
            known,
            number=asked.number,
            reference=asked.reference,
            duplicate_of=original,
            start_ms=asked.start_ms,
            end_ms=max(now, asked.start_ms),
            stages={},
            system={},
            curves=[],
        )
        self._finish(asked, copied)

    def _finish(self, asked: PendingTrial, record: TrialRecord) -> None:
        self._sweep.tell(asked, record)
        self._records.append(record)
        self._remember(record)
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

    def _record(self, asked: PendingTrial, future: Future[Any]) -> TrialRecord:
        """What came of the trial, as a record; raises SweepError when the machine is at fault."""
        base, baseline = self._base(asked), self._baseline(asked.recipe)
        error = future.exception()
        if error is not None:
            return replace(base, reason=reason(error))
        outcome: Outcome = future.result()
        if outcome.measured is not None:
            self._costs.add(baseline, outcome.architecture, outcome.measured)
        if wrong := self._sweep.unusable(outcome.metrics):
            return replace(base, reason=wrong)
        seconds = (base.end_ms - base.start_ms) / 1000
        stages = {**outcome.stages, "platform": max(0.0, seconds - sum(outcome.stages.values()))}
        violations = self._sweep.violations(outcome.metrics)
        return replace(
            base,
            state="complete",
            reason=None,
            metrics=outcome.metrics,
            feasible=all(v <= 0 for v in violations.values()),
            violations=violations,
            stages=stages,
            system=outcome.system,
            curves=outcome.curves,
            artifact=str(outcome.artifact.path),
            environment=outcome.environment,
        )

    def _base(self, asked: PendingTrial) -> TrialRecord:
        """What is recorded of every trial, whatever came of it."""
        recipe, baseline = asked.recipe, self._baseline(asked.recipe)
        alone = len(self._sweep.space.trainers()) == 1
        return TrialRecord(
            number=asked.number,
            state="failed",
            reason="unknown",
            start_ms=asked.start_ms,
            end_ms=max(int(time.time() * 1000), asked.start_ms),
            words=recipe.describe() if alone else f"{recipe.trainer} · {recipe.describe()}",
            recipe=recipe.to_dict(),
            params=recipe.flat(),
            feasible=False,
            reference=asked.reference,
            versions=baseline.versions,
            git_commit=git_commit(),
            data_digest=baseline.data_digest,
        )

    def prepare(self) -> None:
        """Train (or find) every dense model that trials start from or learn from, and export the baselines."""
        self._dense.prepare(self._tell_progress)
        study = self._config.study
        if study.early_stopping.name != "none":
            reference = reference_point(study, self._sweep.metrics, list(self.baselines.values()))
            self._early = EarlyStopping(study, self._sweep.metrics, reference)

    def _tell_progress(self, event: Event) -> None:
        self._check()  # a record that cannot be written is said before more is trained
        self._display.progress(*event)
