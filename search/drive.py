"""The driver's loop: prepare the baselines, then ask, evaluate, tell and log until the budget is spent."""

from __future__ import annotations

import errno
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from runtimes.base import Artifact, ArtifactError
from search import objective
from search.config import Config
from search.display import Display
from search.executor import Executor, WorkerError
from search.objective import Baseline, Outcome
from search.record import TrialRecord
from search.study import Asked, Sweep, SweepError
from trainers.base import DenseSpec, Recipe, RecipeError, TrainingError
from trainers.data import DataError

GIVE_UP_AFTER = 5  # failures in a row at the start: the study is wrong, not the recipes
# Reasons of a trial's own; anything else a worker raises is recorded with its type, as a bug.
EXPECTED = (RecipeError, TrainingError, ArtifactError, WorkerError)
# The machine's fault: no trial would succeed, and none may be lost for it.
ENVIRONMENT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class Driver:
    """Runs one sweep; `log` is told of every finished trial, after Optuna."""

    def __init__(
        self, config: Config, sweep: Sweep, executor: Executor, display: Display, log: Callable[[TrialRecord], None]
    ):
        self._config = config
        self._sweep = sweep
        self._executor = executor
        self._display = display
        self._log = log
        self._files = config.root / "trials" / sweep.name
        self._baselines: dict[str, Baseline] = {}
        self._records = sweep.records()
        self._running: dict[Future[Any], Asked] = {}
        self._waiting: dict[str, list[Asked]] = {}  # recipe digest -> trials that wait for the same recipe's result

    def run(self) -> None:
        """Until the budget is spent. Raises SweepError when going on is pointless."""
        if self._left() <= 0:
            return
        self._prepare()
        budget = self._config.study.budget
        deadline = time.monotonic() + 60 * budget.minutes if budget.minutes else None
        while self._left() > 0 or self._running:
            out_of_time = deadline is not None and time.monotonic() > deadline
            while not out_of_time and self._left() > 0 and len(self._running) < self._executor.slots:
                self._start(self._sweep.ask())
            if out_of_time and not self._running:
                self._display.say(f"The {budget.minutes:g} minutes of study.budget.minutes are over.")
                return
            self._collect()

    def _left(self) -> int:
        under_way = len(self._running) + sum(map(len, self._waiting.values()))
        return self._config.study.budget.trials - len(self._records) - under_way

    def _start(self, asked: Asked) -> None:
        digest = asked.recipe.digest()
        if known := next((r for r in self._records if r.state == "complete" and _digest(r) == digest), None):
            self._copy(asked, known)
            return
        if any(other.recipe.digest() == digest for other in self._running.values()):
            self._waiting.setdefault(digest, []).append(asked)
            return
        baseline = self._baselines[f"{asked.recipe.trainer}/{asked.recipe.model}"]
        teacher = self._baselines.get(asked.recipe.distillation.teacher, baseline)
        folder = self._files / f"{asked.number:04d}"
        self._display.started(asked.number, f"{asked.number + 1} {asked.recipe.words()}")
        future = self._executor.submit(
            asked.number,
            asked.recipe.trainer,
            objective.evaluate,
            self._config,
            asked.recipe,
            baseline,
            teacher,
            folder,
        )
        self._running[future] = asked

    def _collect(self) -> None:
        done, _ = wait(self._running, timeout=0.2, return_when=FIRST_COMPLETED)
        for event in self._executor.events():
            self._display.progress(*event)
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

    def _copy(self, asked: Asked, known: TrialRecord) -> None:
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
            curves=[],
        )
        self._finish(asked, copied)

    def _finish(self, asked: Asked, record: TrialRecord) -> None:
        self._sweep.tell(asked, record)
        self._records.append(record)
        self._log(record)
        self._display.record(record, self._config.study.budget.trials)
        first = sorted(self._records, key=lambda r: r.end_ms)[:GIVE_UP_AFTER]
        if len(self._records) == GIVE_UP_AFTER and all(r.state == "failed" for r in first):
            reasons = "\n".join(f"  {r.words}: {r.reason}" for r in first)
            raise SweepError(
                f"the first {GIVE_UP_AFTER} trials all failed, so the sweep was stopped:\n{reasons}\n"
                "Mend the study, then start a new sweep with fresh=true"
            )

    def _record(self, asked: Asked, future: Future[Any]) -> TrialRecord:
        """What came of the trial, as a record; raises SweepError when the machine is at fault."""
        recipe = asked.recipe
        baseline = self._baselines[f"{recipe.trainer}/{recipe.model}"]
        base = TrialRecord(
            number=asked.number,
            state="failed",
            reason="unknown",
            start_ms=asked.start_ms,
            end_ms=max(int(time.time() * 1000), asked.start_ms),
            words=recipe.words() if len(self._sweep.space.trainers()) == 1 else f"{recipe.trainer} · {recipe.words()}",
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
            return replace(base, reason=_reason(error))
        outcome: Outcome = future.result()
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
            curves=outcome.curves,
            artifact=str(outcome.artifact.path),
            environment=outcome.environment,
        )

    def _prepare(self) -> None:
        """Train (or find) every dense model that trials start from or learn from, and export the baselines."""
        for spec in _needed(self._config, self._sweep):
            name = f"{spec.trainer}/{spec.model}"
            kept = self._sweep.get(f"baseline {name}")
            if kept is not None and (baseline := _thaw(kept)) is not None:
                self._baselines[name] = baseline
                continue
            folder = self._files / f"baseline-{spec.trainer}-{spec.model}"
            folder.mkdir(parents=True, exist_ok=True)
            key = -1 - len(self._baselines)
            self._display.started(key, f"baseline {name}")
            future = self._executor.submit(
                key, spec.trainer, objective.prepare, self._config, spec, folder, self._executor.slots
            )
            while not future.done():
                wait([future], timeout=0.2)
                for event in self._executor.events():
                    self._display.progress(*event)
            self._display.finished(key)
            if error := future.exception():
                raise SweepError(f"the dense baseline {name} could not be prepared: {_reason(error)}") from error
            baseline = future.result()
            self._sweep.put(f"baseline {name}", _freeze(baseline))
            self._baselines[name] = baseline
            self._display.say(
                f"baseline {name}: accuracy {100 * baseline.accuracy:.2f} %, {baseline.latency_ms:.4f} ms, "
                f"{baseline.size_bytes / 1000:,.0f} kB"
            )


def _needed(config: Config, sweep: Sweep) -> list[DenseSpec]:
    names = [f"{t}/{m}" for t in sweep.space.trainers() for m in sweep.space.models()]
    names += [teacher for teacher in sweep.space.teachers() if teacher != "baseline"]
    return [config.study.dense_spec(*name.split("/")) for name in dict.fromkeys(names)]


def _reason(error: BaseException) -> str:
    """The reason a trial failed, in words; raises SweepError when no other trial could succeed either."""
    if isinstance(error, DataError):
        raise SweepError(str(error)) from error
    if isinstance(error, OSError) and error.errno in ENVIRONMENT:
        raise SweepError(
            f"{error.strerror}: {error.filename or 'mlruns'}; mend that and run the same command again: "
            "finished trials are kept"
        ) from error
    return str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"


def _digest(record: TrialRecord) -> str:
    return Recipe.from_dict(record.recipe).digest()


def _freeze(baseline: Baseline) -> dict[str, Any]:
    plain = asdict(baseline)
    plain["dense_folder"] = str(baseline.dense_folder)
    plain["artifact"] = str(baseline.artifact.path)
    plain["sha256"] = baseline.artifact.sha256
    return plain


def _thaw(plain: dict[str, Any]) -> Baseline | None:
    """The baseline that was stored with the sweep; None when its files are gone or changed."""
    path, folder = Path(plain["artifact"]), Path(plain["dense_folder"])
    if not path.is_file() or not folder.is_dir() or Artifact.of(path).sha256 != plain["sha256"]:
        return None
    kept = {key: value for key, value in plain.items() if key != "sha256"}
    kept |= {"spec": DenseSpec(**plain["spec"]), "dense_folder": folder, "artifact": Artifact.of(path)}
    return Baseline(**kept)


@cache
def git_commit() -> str:
    """The commit of the caller's checkout, `+` behind it when files are changed; empty outside a repository."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""
