"""What a search stands on: the task described, every dense model trained or found, exported and measured."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from search.errors import SweepError, reason
from search.executors.base import Event, Executor, Work, run_all
from search.study.config import Config
from search.sweep.describe import ask
from search.sweep.display import Display
from search.sweep.sweep import Sweep
from search.trial import objective
from search.trial.results import Baseline
from tasks.base import TaskInfo
from trainers.base import DenseSpec


class Baselines:
    """The sweep's dense models by name. `info`: the task, where a worker was asked already."""

    def __init__(
        self, config: Config, sweep: Sweep, executor: Executor, display: Display, files: Path, info: TaskInfo | None
    ):
        self._config, self._sweep, self._executor, self._display = config, sweep, executor, display
        self._files, self._info = files, info
        self.found: dict[str, Baseline] = {}

    def prepare(self, told: Callable[[Event], None]) -> None:
        """Train (or find) every dense model that trials start from or learn from, and export them.

        `told`: hears of progress. Raises SweepError when one cannot be prepared.
        """
        self._describe()
        works = []
        for index, spec in enumerate(needed(self._config, self._sweep)):
            name = f"{spec.trainer}/{spec.model}"
            if name in self.found:
                continue
            kept = self._sweep.get(f"baseline {name}")
            if kept is not None and (baseline := Baseline.restore(kept)) is not None:
                self.found[name] = baseline
                continue
            folder = self._files / f"baseline-{spec.trainer}-{spec.model}"
            folder.mkdir(parents=True, exist_ok=True)
            args = (self._config, spec, folder, self._executor.threads)
            works.append(Work(-1 - index, spec.trainer, objective.prepare, args))
        for work in works:  # one after the other, each with all cores: the search waits for them
            run_all(self._executor, [work], self._begin, self._end, told)

    def _describe(self) -> None:
        """Store with the sweep what its task is, asked of a worker once."""
        if self._sweep.get("task") is None:
            self._display.started(-1000, "task: model, data and metrics")
            info = self._info or ask(self._config, self._executor)
            self._display.finished(-1000)
            self._sweep.put("task", info.to_dict())
            for note in info.notes:
                self._display.say(f"task: {note}")

    def _begin(self, work: Work) -> None:
        self._display.started(work.key, f"baseline {work.args[1].trainer}/{work.args[1].model}")

    def _end(self, work: Work, future: Future[Any]) -> None:
        self._display.finished(work.key)
        name = f"{work.args[1].trainer}/{work.args[1].model}"
        if error := future.exception():
            raise SweepError(f"the dense baseline {name} could not be prepared: {reason(error)}") from error
        baseline: Baseline = future.result()
        if wrong := self._sweep.metrics.unusable(baseline.metrics, self._sweep.metrics.quality):
            raise SweepError(f"the dense baseline {name}: {wrong}")
        self._sweep.put(f"baseline {name}", baseline.to_dict())
        self.found[name] = baseline
        metrics = self._sweep.metrics
        figures = [f"{own} {metrics[own].text(baseline.metrics[own])}" for own in metrics.quality]
        figures += [f"{baseline.latency_ms:.4f} ms", f"{baseline.size_bytes / 1000:,.0f} kB"]
        self._display.say(f"baseline {name}: {', '.join(figures)}")


def needed(config: Config, sweep: Sweep) -> list[DenseSpec]:
    """Every dense model that a trial may start from or learn from."""
    names = [f"{t}/{m}" for t in sweep.space.trainers() for m in sweep.space.models()]
    names += [teacher for teacher in sweep.space.teachers() if teacher != "baseline"]
    return [config.study.dense_spec(*name.split("/")) for name in dict.fromkeys(names)]
