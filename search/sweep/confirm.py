"""The front, confirmed: its recipes trained again with fresh seeds, measured side by side, judged on the test split.

A search picks the luckiest of many noisy trials. What is deployed must hold on the next day, so the table shows
these means with their intervals, and beside them what the search had promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from search.errors import SweepError, reason
from search.executors.base import Executor, Work, run_all
from search.study.config import Config
from search.study.phrases import span
from search.sweep.candidates import candidates, repeats, seconds, seeds_for
from search.sweep.confirmed import Confirmed, columns_of, front, summarize
from search.sweep.display import Display
from search.sweep.sweep import Sweep
from search.trial import objective
from search.trial.record import TrialRecord
from search.trial.results import Baseline, Exported, Judged
from trainers.recipe import Recipe


class Confirmation:
    """Confirms a sweep's front through its executor. What is trained is stored with the sweep: a kill costs little."""

    def __init__(
        self, config: Config, sweep: Sweep, executor: Executor, display: Display, baselines: dict[str, Baseline]
    ):
        self._config = config
        self._sweep = sweep
        self._executor = executor
        self._display = display
        self._baselines = baselines
        self._built: dict[int, Exported] = {}

    def run(self, records: Sequence[TrialRecord]) -> list[Confirmed]:
        """Confirm the front of `records` and its neighbours. Raises SweepError when the machine is at fault."""
        study = self._config.study
        chosen = candidates(records, study.objectives, study.confirm, self._sweep.metrics)
        return self.confirm(chosen) if chosen else []

    def confirm(self, chosen: Sequence[TrialRecord]) -> list[Confirmed]:
        """Train these again, measure them side by side and judge them on the test split."""
        settings, study, metrics = self._config.study.confirm, self._config.study, self._sweep.metrics
        # What is cheap comes first: an interruption then leaves the most that need not be done again.
        seeds = seeds_for(chosen, settings)
        trained = [(r, recipe) for r in sorted(chosen, key=seconds) for recipe in repeats(r, settings, seeds)]
        self._display.say(self._announced(len(chosen), trained))
        self._train(trained)
        points = []
        for name in dict.fromkeys(_baseline_name(record) for record in chosen):
            mine = [i for i, (r, _) in enumerate(trained) if _baseline_name(r) == name and i in self._built]
            baseline = self._baselines[name]
            judged = self._judge(name, [self._built[i] for i in mine], baseline)
            files: list[tuple[TrialRecord, list[Exported], Judged]] = []
            for record in chosen:
                if own := [i for i in mine if trained[i][0] is record]:
                    at = [0, *(1 + mine.index(i) for i in own)]
                    files.append((record, [self._built[i] for i in own], judged.of(at)))
            figures = [columns_of(metrics, baseline, built, found) for _, built, found in files]
            for index, (record, built, found) in enumerate(files):
                others = [each for i, each in enumerate(figures) if i != index and len(files[i][1]) > 1]
                points.append(summarize(study.limits, metrics, record, baseline, built, found, others))
        return front(sorted(points, key=lambda p: p.number), study.objectives, metrics)

    def _announced(self, candidates: int, trained: Sequence[tuple[TrialRecord, Recipe]]) -> str:
        """What will be done, how long it takes by the trials' own times, and how to do less."""
        left = [record for record, recipe in trained if self._sweep.get(_stored_as(recipe)) is None]
        already = f", {len(trained) - len(left)} of them done already" if len(left) < len(trained) else ""
        cost = span(sum(map(seconds, left)) / self._executor.slots)
        return (
            f"confirming {candidates} candidates: {len(trained)} trainings with fresh seeds{already}, about {cost}, "
            "then the test split (study.confirm.candidates=N confirms fewer)"
        )

    def _train(self, trained: Sequence[tuple[TrialRecord, Recipe]]) -> None:
        files = self._config.root / "trials" / self._sweep.name
        works = []
        for index, (record, recipe) in enumerate(trained):
            kept = self._sweep.get(_stored_as(recipe))
            if kept is not None and (built := Exported.restore(kept)) is not None:
                self._built[index] = built
                continue
            baseline = self._baselines[_baseline_name(record)]
            teacher = self._baselines.get(recipe.distillation.teacher, baseline)
            folder = files / f"confirm-{record.number:04d}-{recipe.seed}"
            args = (self._config, recipe, baseline, teacher, folder)
            works.append(Work(index, recipe.trainer, objective.build, args))
        self._display.phase("confirm", len(trained), len(self._built))
        run_all(self._executor, works, self._begin, self._end, lambda event: self._display.progress(*event))

    def _begin(self, work: Work) -> None:
        self._display.started(work.key, f"again: {work.args[1].describe()}, seed {work.args[1].seed}")

    def _end(self, work: Work, future: Future[Any]) -> None:
        self._display.finished(work.key)
        self._display.advance()
        if error := future.exception():
            self._display.say(f"  {work.args[1].describe()}: one training again FAILED: {reason(error)}")
            return
        self._built[work.key] = future.result()
        self._sweep.put(_stored_as(work.args[1]), future.result().to_dict())

    def _judge(self, name: str, built: list[Exported], baseline: Baseline) -> Judged:
        files = [baseline.artifact, *(each.artifact for each in built)]
        architectures = [baseline.architecture, *(each.architecture for each in built)]
        outcome: list[Future[Any]] = []
        place = baseline.task.places.get("test")
        split = self._config.root / "cache" / place if place else None
        args = (self._config, split, files, architectures, baseline)
        work = Work(-1, baseline.spec.trainer, objective.judge, args)
        run_all(
            self._executor,
            [work],
            lambda w: self._display.started(w.key, f"{name}: {len(files)} files side by side"),
            lambda w, future: outcome.append(future),
            lambda event: self._display.progress(*event),
        )
        self._display.finished(work.key)
        if error := outcome[0].exception():
            raise SweepError(f"the front could not be confirmed: {reason(error)}") from error
        judged: Judged = outcome[0].result()
        if noisy := sum(bool(measured.noisy) for measured in judged.latencies):
            self._display.say(
                f"  {noisy} of {len(files)} latency intervals are wider than study.latency.target_rel_ci, since the "
                "machine is noisy; re-confirm on a quieter one with study.confirm.first_seed=N"
            )
        return judged


def _baseline_name(record: TrialRecord) -> str:
    return f"{record.recipe['trainer']}/{record.recipe['model']}"


def _stored_as(recipe: Recipe) -> str:
    return f"confirm {recipe.digest()}"
