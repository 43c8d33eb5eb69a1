"""The driver's loop: prepare the baselines, then ask, evaluate, tell and log until the budget is spent."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from typing import Any

from search.errors import SweepError, reason
from search.executors.base import Event, Executor, Work, run_all
from search.executors.start import start
from search.front.listing import Listing
from search.signals import Stop
from search.storage.costs import Costs
from search.study.config import Config
from search.sweep.confirm import Confirmation
from search.sweep.confirmed import Confirmed
from search.sweep.describe import ask
from search.sweep.display import Display
from search.sweep.heartbeat import Heartbeat
from search.sweep.recorder import TABLE, Log
from search.sweep.sweep import PendingTrial, Sweep
from search.trial import objective
from search.trial.provenance import git_commit
from search.trial.record import TrialRecord
from search.trial.results import Baseline, Outcome
from tasks.base import TaskInfo
from trainers.base import DenseSpec
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
        print(f"{sweep.name}: already finished {state[0]} trials; raise study.budget.trials to continue, or fresh=true")
        return Listing.from_dict(sweep.get(TABLE))
    print(f"{sweep.name}: {state[0]} of {state[1]} trials done; everything is kept in {config.root}", flush=True)
    # Before the record is opened: a cluster that does not answer is no run of the sweep.
    executor = executor or start(config, config.root / "logs" / f"{sweep.name}.log", info)
    log = Log(config, sweep)
    display = Display(config.study.budget.trials, len(sweep.records()), config.study.objectives, sweep.metrics)
    driver = Driver(config, sweep, executor, display, log.trial, stop, info, log.check)
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
    ):
        self._config = config
        self._sweep = sweep
        self._executor = executor
        self._display = display
        self._log, self._check = log, check
        self._stop = stop or Stop()
        self._files = config.root / "trials" / sweep.name
        self._info = info
        self._costs = Costs(config.root, config.study)
        self.baselines: dict[str, Baseline] = {}
        self._records = sweep.records()
        self._known: dict[str, TrialRecord] = {}  # recipe digest -> the first complete trial of it
        for record in self._records:
            self._remember(record)
        self._running: dict[Future[Any], PendingTrial] = {}
        self._waiting: dict[
            str, list[PendingTrial]
        ] = {}  # recipe digest -> trials that wait for the same recipe's result

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
        under_way = len(self._running) + sum(map(len, self._waiting.values()))
        return self._config.study.budget.trials - len(self._records) - under_way

    def _start(self, asked: PendingTrial) -> None:
        digest = asked.recipe.digest()
        if known := self._known.get(digest):
            self._copy(asked, known)
            return
        if any(other.recipe.digest() == digest for other in self._running.values()):
            self._waiting.setdefault(digest, []).append(asked)
            return
        baseline = self.baselines[f"{asked.recipe.trainer}/{asked.recipe.model}"]
        teacher = self.baselines.get(asked.recipe.distillation.teacher, baseline)
        folder = self._files / f"{asked.number:04d}"
        self._display.started(asked.number, f"trial {asked.number}: {asked.recipe.describe()}")
        future = self._executor.submit(
            asked.number,
            asked.recipe.trainer,
            objective.evaluate,
            self._config,
            asked.recipe,
            baseline,
            teacher,
            folder,
            self._costs.latencies(baseline),
        )
        self._running[future] = asked

    def _collect(self) -> None:
        done, _ = wait(self._running, timeout=0.2, return_when=FIRST_COMPLETED)
        for event in self._executor.events():
            self._tell_progress(event)
        for future in done:
            asked = self._running.pop(future)
            self._display.finished(asked.number)
            record = self._record(asked, future)
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
        recipe = asked.recipe
        baseline = self.baselines[f"{recipe.trainer}/{recipe.model}"]
        base = TrialRecord(
            number=asked.number,
            state="failed",
            reason="unknown",
            start_ms=asked.start_ms,
            end_ms=max(int(time.time() * 1000), asked.start_ms),
            words=recipe.describe()
            if len(self._sweep.space.trainers()) == 1
            else f"{recipe.trainer} · {recipe.describe()}",
            recipe=recipe.to_dict(),
            params=recipe.flat(),
            feasible=False,
            reference=asked.reference,
            versions=baseline.versions,
            git_commit=git_commit(),
            data_digest=baseline.data_digest,
        )
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

    def prepare(self) -> None:
        """Train (or find) every dense model that trials start from or learn from, and export the baselines."""
        self._describe()
        works = []
        for index, spec in enumerate(_needed(self._config, self._sweep)):
            name = f"{spec.trainer}/{spec.model}"
            if name in self.baselines:
                continue
            kept = self._sweep.get(f"baseline {name}")
            if kept is not None and (baseline := Baseline.restore(kept)) is not None:
                self.baselines[name] = baseline
                continue
            folder = self._files / f"baseline-{spec.trainer}-{spec.model}"
            folder.mkdir(parents=True, exist_ok=True)
            args = (self._config, spec, folder, self._executor.threads)
            works.append(Work(-1 - index, spec.trainer, objective.prepare, args))
        for work in works:  # one after the other, each with all cores: the search waits for them
            run_all(self._executor, [work], self._begin_baseline, self._end_baseline, self._tell_progress)

    def _describe(self) -> None:
        """Store with the sweep what its task is, asked of a worker once."""
        if self._sweep.get("task") is None:
            self._display.started(-1000, "task: model, data and metrics")
            info = self._info or ask(self._config, self._executor)
            self._display.finished(-1000)
            self._sweep.put("task", info.to_dict())
            for note in info.notes:
                self._display.say(f"task: {note}")

    def _begin_baseline(self, work: Work) -> None:
        self._display.started(work.key, f"baseline {work.args[1].trainer}/{work.args[1].model}")

    def _end_baseline(self, work: Work, future: Future[Any]) -> None:
        self._display.finished(work.key)
        name = f"{work.args[1].trainer}/{work.args[1].model}"
        if error := future.exception():
            raise SweepError(f"the dense baseline {name} could not be prepared: {reason(error)}") from error
        baseline: Baseline = future.result()
        if wrong := self._sweep.metrics.unusable(baseline.metrics, self._sweep.metrics.quality):
            raise SweepError(f"the dense baseline {name}: {wrong}")
        self._sweep.put(f"baseline {name}", baseline.to_dict())
        self.baselines[name] = baseline
        metrics = self._sweep.metrics
        figures = [f"{own} {metrics[own].text(baseline.metrics[own])}" for own in metrics.quality]
        figures += [f"{baseline.latency_ms:.4f} ms", f"{baseline.size_bytes / 1000:,.0f} kB"]
        self._display.say(f"baseline {name}: {', '.join(figures)}")

    def _tell_progress(self, event: Event) -> None:
        self._check()  # a record that cannot be written is said before more is trained
        self._display.progress(*event)


def _needed(config: Config, sweep: Sweep) -> list[DenseSpec]:
    names = [f"{t}/{m}" for t in sweep.space.trainers() for m in sweep.space.models()]
    names += [teacher for teacher in sweep.space.teachers() if teacher != "baseline"]
    return [config.study.dense_spec(*name.split("/")) for name in dict.fromkeys(names)]
