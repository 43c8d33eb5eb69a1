"""The trainer of ONNX files without training code: what can be done with calibration samples alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tasks.base import Arrays, Dataset, TaskInfo
from trainers import base
from trainers.base import COMPARED_BYTES, COMPARED_ROWS, Compressed, Dense, DenseSpec, Job, Teacher, TrainingError
from trainers.onnx import channels, masks, run
from trainers.onnx.graph import described
from trainers.onnx.optimize import optimized
from trainers.onnx.place import not_slower, placed
from trainers.onnx.weights import FILE_SCHEMES
from trainers.recipe import Recipe, RecipeError
from trainers.stages import timed

FLOAT = "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CALIBRATION_ROWS, CALIBRATION_BYTES, CHECKED_ROWS = 256, 64_000_000, 8


@dataclass
class _Trial:
    """One recipe on its way; `model` is what the last stage left."""

    recipe: Recipe
    job: Job
    info: TaskInfo
    keep: tuple[str, ...]
    model: onnx.ModelProto
    samples: list[Arrays]
    pruned: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time what happens inside as `name`, in seconds."""
        self.job.progress(name, 0.0)
        return timed(self.stages, name)


class Trainer:
    """See `trainers.base.Trainer`. Nothing is trained: the dense model is the file itself, simplified."""

    def versions(self) -> dict[str, str]:
        """Package name -> version of what decides the result."""
        return {package: metadata.version(package) for package in PACKAGES}

    def dense(self, spec: DenseSpec, job: Job) -> Dense:
        """The task's file, in a modern opset and simplified where that changes nothing; a record beside it."""
        program = job.task.program("onnx")
        samples = _samples(job, CHECKED_ROWS)
        model, notes = optimized(onnx.load(program.file(spec.model)), samples)
        onnx.save(model, job.folder / FLOAT)
        (job.folder / "notes.json").write_text(json.dumps(notes) + "\n")
        weights = sum(int(np.prod(tensor.dims)) for tensor in masks.matrices(model).values())
        return Dense(spec, job.folder, max(1, weights)).save([], self.versions())

    def open_dense(self, spec: DenseSpec, folder: Path) -> Dense:
        """A dense model that `dense` wrote earlier; raises ValueError when the folder holds another."""
        return Dense.open(spec, folder)

    def compress(self, recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> Compressed:
        """Prune, quantize, write: what the recipe asks for, in that order."""
        base.check_job(recipe, dense, teacher, job)
        trial = _begin(recipe, dense, job)
        before = masks.remaining(trial.model)
        _prune(trial)
        left = masks.remaining(trial.model)
        validation = job.task.data("validation")
        with trial.stage("predict"):
            outputs = _first_outputs(trial, validation)
        file = job.folder / "model.onnx"
        with trial.stage("export"):
            _write(trial, dense, file, self.versions())
        job.progress("export", 1.0)
        return Compressed(
            file=file,
            sparsity=max(0.0, 1.0 - left / before) if before else 0.0,
            pruned=trial.pruned,
            outputs=outputs,
            rows=len(next(iter(outputs.values()))),
            stages=trial.stages,
            curves=[],
            notes=tuple(dict.fromkeys(trial.notes)),
        )

    def shape(self, recipe: Recipe, dense: Dense, job: Job) -> Path:
        """The recipe's file: nothing in it waits for a training."""
        return self.compress(recipe, dense, None, job).file


def _begin(recipe: Recipe, dense: Dense, job: Job) -> _Trial:
    info, program = job.task.info(), job.task.program("onnx")
    notes = json.loads((dense.folder / "notes.json").read_text())
    model = onnx.load(dense.folder / FLOAT)
    return _Trial(recipe, job, info, tuple(program.keep()), model, _samples(job, CALIBRATION_ROWS), notes=notes)


def _samples(job: Job, count: int) -> list[Arrays]:
    """Inputs that stand for all, from the training split where there is one: it calibrates, nothing is trained."""
    info = job.task.info()
    dataset = job.task.data("train" if info.counts.get("train") else "validation")
    one = sum(array.nbytes for array in dataset.batch(np.arange(1)).inputs.values())
    return run.calibration(dataset, max(2, min(count, CALIBRATION_BYTES // max(1, one))), job.pause)


def _prune(trial: _Trial) -> None:
    """Without training the ramp of a gradual schedule has one step."""
    pruning = trial.recipe.pruning
    if pruning.granularity == "none":
        return
    with trial.stage("prune"):
        if pruning.granularity == "unstructured":
            trial.pruned = masks.mask(trial.model, pruning.sparsity, trial.keep)
            if not masks.matrices(trial.model, trial.keep):
                raise RecipeError("pruning.granularity: the file has no matrix or kernel to mask; choose none")
            return
        dense = run.outputs(trial.model, trial.samples[:1])
        removed, whole = channels.narrow(trial.model, pruning.sparsity, trial.samples, trial.keep)
        if removed is None:
            reasons = "; ".join(f"{name}: {why}" for name, why in list(whole.items())[:4])
            raise RecipeError(
                f"pruning.granularity: 'channel' can narrow no layer of {trial.recipe.model} ({reasons}); choose none "
                "or unstructured"
            )
        trial.pruned = removed
        if not removed:
            trial.notes.append(f"channels: {100 * pruning.sparsity:.0f} % of them are less than one step of any width")
        trial.notes += [f"left whole: {name}: {why}" for name, why in whole.items()]
        narrow = run.outputs(trial.model, trial.samples[:1])
        if any(narrow[name].shape != array.shape for name, array in dense.items()):
            raise TrainingError("pruning: the narrowed file's outputs have other shapes than the dense one's")


def _first_outputs(trial: _Trial, validation: Dataset) -> dict[str, np.ndarray]:
    """What the float file says, on as many rows as fit."""
    names = [port.name for port in trial.info.outputs]
    first = run.outputs(trial.model, run.batches(validation, np.arange(1), trial.job.pause), names)
    fitting = COMPARED_BYTES // max(1, sum(array.nbytes for array in first.values()))
    rows = np.arange(max(1, min(len(validation), COMPARED_ROWS, fitting)))
    found = run.outputs(trial.model, run.batches(validation, rows, trial.job.pause), names)
    return {name: array.astype(np.float32) for name, array in found.items()}


def _write(trial: _Trial, dense: Dense, file: Path, versions: dict[str, str]) -> None:
    """Quantize into `file`; TrainingError where what was made does not run at another batch size."""
    about = {
        "recipe": json.dumps(trial.recipe.essence(), sort_keys=True),
        "versions": json.dumps(versions, sort_keys=True),
        "data": trial.info.data_digest,
    }
    scheme = trial.recipe.quantization.scheme
    onnx.save(described(trial.model, about), file)
    if scheme == "static_int8":
        made, notes = placed(trial.recipe, trial.job, file, trial.samples, trial.keep)
        onnx.save(described(made, about), file)
        trial.notes += notes
    elif change := FILE_SCHEMES.get(scheme):
        trial.notes += not_slower(trial.job, file, change)
    for sizes in _sizes(trial.samples):
        run.outputs(file.read_bytes(), [sizes])


def _sizes(samples: Sequence[Arrays]) -> list[Any]:
    return [{name: array[:rows] for name, array in samples[0].items()} for rows in (1, 2)]
