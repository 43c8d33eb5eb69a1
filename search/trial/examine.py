"""The doctor's work in a worker: the steps of a trial on a small part of the data, each timed, each failure named.

Nothing is trained to its end. What is said of latency and size holds for the architecture, whatever its weights are.
"""

from __future__ import annotations

import json
import resource
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import trainers.base
from runtimes import latency, quiet
from runtimes.base import Artifact, format_of
from search.study.config import Config
from search.trial.evaluate import quality, save_examples
from search.trial.examine_data import Slow, look
from search.trial.measure import latency_spec
from search.trial.task import task_of
from tasks.base import Batch, Dataset, Progress, Task, TaskError, TaskInfo
from tasks.check import check
from trainers.base import Compressed, Dense, DenseSpec, Job, Trainer, TrainingError, task_digest
from trainers.recipe import FineTuning, Pruning, Quantization, Recipe, RecipeError

ROWS = 256  # of each split that the steps are tried on


@dataclass
class Findings:
    """What was found, as plain values. `problems`: step, message, remedy of what stands in the way."""

    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    recipes: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)
    problems: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0


class Head:
    """The first rows of a split."""

    def __init__(self, whole: Dataset, rows: int) -> None:
        self.whole, self.resident = whole, whole.resident
        self._rows = min(rows, len(whole))

    def __len__(self) -> int:
        return self._rows

    def batch(self, rows: np.ndarray, epoch: int | None = None) -> Batch:
        """The samples `rows`, int64 [B], in that order; the same each time."""
        return self.whole.batch(rows, epoch)


class Sample:
    """A task with ROWS rows per split."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def info(self) -> TaskInfo:
        """The task's, with fewer samples."""
        info = self._task.info()
        return replace(info, counts={split: min(ROWS, count) for split, count in info.counts.items()})

    def data(self, split: str) -> Dataset:
        """The first rows."""
        return Head(self._task.data(split), ROWS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def examine(config: Config, folder: Path, progress: Progress) -> Findings:
    """Try the study's task step by step in `folder`; what fails is in `problems`, what needs it is left out."""
    started, found, slow = time.perf_counter(), Findings(), Slow(progress)
    folder.mkdir(parents=True, exist_ok=True)
    tried = info = None
    task = _step(found, "task", lambda: task_of(config, slow))
    with quiet.training():
        if task is not None and (info := _step(found, "task", task.info)) is not None:
            progress("data", 0.0)
            _step(found, "data", lambda: found.data.update(look(task, info)))
            found.data.setdefault("notes", []).extend(slow.notes())
            if _checked(task, found, progress):
                tried = _compress(config, task, info, folder, found, progress)
    if info is not None and tried is not None:
        _measure(config, tried, found, progress)
        _cost(config, info, tried, found)
    found.cost["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found.seconds = time.perf_counter() - started
    return found


def _step(found: Findings, step: str, work: Callable[[], Any]) -> Any:
    """What `work` gives; None when it fails, and then the reason is in `problems`."""
    try:
        return work()
    except TaskError as error:
        found.problems.append({"step": error.step or step, "message": error.message, "place": error.place})
    except (RecipeError, TrainingError, ValueError, RuntimeError, OSError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename}:{last.lineno}"
        found.problems.append({"step": step, "message": f"{type(error).__name__}: {error}", "place": place})
    return None


def _checked(task: Task, found: Findings, progress: Progress) -> bool:
    """Whether the task's own steps are in order, as `tasks.check` sees them; what is odd is noted."""
    for finding in check(task, progress):
        message = f"{finding.message}; {finding.remedy}" if finding.remedy else finding.message
        if finding.severity == "error":
            found.problems.append({"step": finding.step, "message": message, "place": finding.place})
        else:
            found.data.setdefault("notes", []).append(f"{finding.step}: {message}")
    return not found.problems


@dataclass(frozen=True)
class Tried:
    """What was exported, and the seconds that one pass over the sample took."""

    runtime: str
    files: list[Artifact]
    examples: Path
    epoch_s: float


def _compress(
    config: Config, task: Task, info: TaskInfo, folder: Path, found: Findings, progress: Progress
) -> Tried | None:
    """The dense model and the usual recipes, exported without training, their files measured side by side."""
    trainer_name = config.study.space.trainers()[0]
    model = str(config.study.space.models()[0])
    trainer, runtime = trainers.base.load(trainer_name), config.study.runtime_of(trainer_name)
    sample = Sample(task)
    job = Job(sample, folder / "dense", format_of(runtime), config.device, 1, progress=progress)
    job.folder.mkdir(parents=True, exist_ok=True)
    batch = min(ROWS, config.study.dense.batch_size)
    spec = DenseSpec(trainer_name, model, 1, 1e-4, batch, config.study.seed, task_digest(sample.info()))
    progress("model", 0.0)
    began = time.perf_counter()
    dense = _step(found, "model", lambda: trainer.dense(spec, job))
    if dense is None:
        return None
    seconds = time.perf_counter() - began
    ports = {"inputs": info.inputs, "outputs": info.outputs}
    found.model |= {"name": model, "trainer": trainer_name, "runtime": runtime, "parameters": dense.parameters}
    found.model |= {key: [f"{p.name} {p.dtype} {list(p.shape)}" for p in value] for key, value in ports.items()}
    found.model["trained"] = not _curve(dense.folder)
    files = list[Artifact]()
    for name, recipe in _recipes(model, trainer_name, info):
        row: dict[str, Any] = {"name": name, "recipe": recipe.describe()}
        progress(f"try {name}", 0.0)
        compressed = _tried(row, trainer, recipe, dense, _in(job, folder, name))
        if compressed is not None and _judged(row, runtime, compressed, sample):
            files.append(Artifact.of(compressed.file))
            row["file"] = len(files) - 1
        found.recipes.append(row)
        if name == "dense fp32" and "file" not in row:
            found.problems.append({"step": "export", "message": row["problem"], "place": ""})
            return None
    found.quality |= {"metrics": found.recipes[0].get("metrics", {}), "rows": len(sample.data("validation"))}
    return Tried(runtime, files, save_examples(sample, folder / "examples.npz"), seconds)


def _recipes(model: str, trainer: str, info: TaskInfo) -> list[tuple[str, Recipe]]:
    """(name, recipe) of the untrained look: channels, int8 and both, as far as the trainer knows them."""
    known = trainers.base.capabilities(trainer)
    none = FineTuning(epochs=0, qat_epochs=0)
    made = [("dense fp32", Recipe(model, trainer))]
    int8 = Quantization("static_int8")
    if "static_int8" in known.schemes:
        made.append(("int8", Recipe(model, trainer, quantization=int8)))
    if "channel" in known.granularities and info.trains:
        for share in (25, 50, 75):
            pruning = Pruning("channel", share / 100, "one_shot")
            made.append((f"{share} % of channels removed", Recipe(model, trainer, pruning, finetuning=none)))
        if "static_int8" in known.schemes:
            pruning = Pruning("channel", 0.5, "one_shot")
            made.append(("50 % of channels removed, int8", Recipe(model, trainer, pruning, int8, finetuning=none)))
    if "dynamic_int8" in known.schemes:
        made.append(("dynamic int8", Recipe(model, trainer, quantization=Quantization("dynamic_int8"))))
    return made


def _in(job: Job, folder: Path, name: str) -> Job:
    place = folder / "".join(c if c.isalnum() else "_" for c in name)
    place.mkdir(parents=True, exist_ok=True)
    return replace(job, folder=place)


def _tried(row: dict[str, Any], trainer: Trainer, recipe: Recipe, dense: Dense, job: Job) -> Compressed | None:
    """What a recipe gave; what it cannot do is a finding, not a fault."""
    try:
        made = trainer.compress(recipe, dense, None, job)
    except Exception as error:
        row["problem"] = f"{'' if isinstance(error, RecipeError) else type(error).__name__ + ': '}{error}"
        return None
    row |= {"notes": list(made.notes), "pruned": made.pruned, "seconds": sum(made.stages.values())}
    return made


def _judged(row: dict[str, Any], runtime: str, compressed: Compressed, sample: Any) -> bool:
    try:
        artifact = Artifact.of(compressed.file)
        row["metrics"], row["agreement"] = quality(runtime, artifact, compressed, sample, lambda: None)
        row["size_bytes"] = artifact.size_bytes()
    except Exception as error:
        row["problem"] = f"{type(error).__name__}: {error}"
        return False
    return True


def _measure(config: Config, tried: Tried, found: Findings, progress: Progress) -> None:
    """Latency of every file beside the dense one, briefly."""
    progress("measure", 0.0)
    spec = replace(latency_spec(config.study), max_seconds=1.0, target_rel_ci=0.1)
    files = tried.files
    results = _step(
        found, "latency", lambda: latency.measure_many(tried.runtime, files, files[0], spec, tried.examples)
    )
    dense_ms = results[0].latency_ms if results else 0.0
    for row in found.recipes:
        if results and "file" in row:
            result = results[row.pop("file")]
            # As in a trial: the paired ratio, which a machine's slow phases cannot turn round, times the dense latency.
            row["latency_ratio"], row["latency_ms"] = result.latency_ratio, result.latency_ratio * dense_ms
            row["size_ratio"] = row["size_bytes"] / found.recipes[0]["size_bytes"]


def _cost(config: Config, info: TaskInfo, tried: Tried, found: Findings) -> None:
    """Seconds of training per epoch, per trial, for the sweep and its confirmation, from what the sample took."""
    study = config.study
    rows = min(ROWS, info.counts.get("train", 0))
    found.cost["fixed_s"] = float(np.median([row["seconds"] for row in found.recipes if "seconds" in row] or [0.0]))
    if not info.trains or not rows:
        return
    epoch = tried.epoch_s / rows * info.counts["train"]
    epochs = _middle(study.space.entries["finetuning.epochs"])
    workers = 2 if study.budget.trials > 1 else 1
    trial = found.cost["fixed_s"] + epochs * epoch + study.latency.max_seconds
    again = study.confirm.seeds * min(study.budget.trials, study.confirm.candidates or 8)
    found.cost |= {
        "epoch_s": epoch,
        "trial_s": trial,
        "dense_s": 0.0 if found.model.get("trained") else study.dense.epochs * epoch,
        "sweep_s": study.budget.trials * trial / workers,
        "confirm_s": again * trial / workers,
        "trials": study.budget.trials,
        "confirmed": again,
    }


def _middle(entry: Any) -> float:
    """A fixed value, or the middle of an open one."""
    with suppress(AttributeError):
        return (entry.low + entry.high) / 2
    with suppress(AttributeError):
        return float(np.mean(entry.values))
    return float(entry) if isinstance(entry, int | float) else 1.0


def _curve(folder: Path) -> list[Any]:
    record = json.loads((folder / "record.json").read_text())
    return list(record.get("curve") or [])
