"""What the contract of trainers does in the trainer's own process, and what comes back from it."""

from __future__ import annotations

import atexit
import functools
import hashlib
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.architecture import architecture_of
from runtimes.base import FORMATS, Artifact
from search.trial.evaluate import score
from tasks.base import Arrays, Dataset, Port, Task, TaskInfo
from trainers.base import Compressed, Dense, DenseSpec, Job, Teacher, capabilities, load, shape_of, task_digest
from trainers.recipe import Recipe

FRAMEWORKS = ("torch", "tensorflow", "jax", "keras", "tf_keras")


@dataclass(frozen=True)
class Subject:
    """What is tested, as it travels to the process that does the work."""

    trainer: str
    task: Callable[[], Task]
    model: str
    dense: Mapping[str, Any]

    @property
    def runtime(self) -> str:
        """A runtime that runs the trainer's files."""
        formats = capabilities(self.trainer).formats
        return next(name for name, format in FORMATS.items() if format == formats[0])

    def job(self, folder: Path, **more: Any) -> Job:
        """On the CPU with one thread, for this trainer's first format."""
        return Job(_task(self.task), folder, FORMATS[self.runtime], device="cpu", threads=1, **more)


@dataclass(frozen=True)
class Result:
    """What came of one recipe. `outputs`: of the file on its runtime, on the first rows; `metrics`: on validation."""

    compressed: Compressed
    outputs: Arrays
    metrics: dict[str, float]
    agreement: float
    content: bytes
    pauses: int
    progress: list[tuple[str, float]]
    frameworks: list[str]


@functools.cache
def _task(make: Callable[[], Task]) -> Task:
    return make()


@functools.cache
def _trainer(name: str) -> Any:
    return load(name)


def make_dense(subject: Subject, folder: Path) -> Dense:
    """In the worker: the dense model of the contract."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = task_digest(_task(subject.task).info())
    spec = DenseSpec(subject.trainer, subject.model, task=digest, **subject.dense)
    made: Dense = _trainer(subject.trainer).dense(spec, subject.job(folder))
    return made


def open_dense(subject: Subject, spec: DenseSpec, folder: Path) -> Dense:
    """In the worker: a dense model that was made before."""
    found: Dense = _trainer(subject.trainer).open_dense(spec, folder)
    return found


def carry_out(subject: Subject, recipe: Recipe, dense: Dense, teacher: Teacher | None, trains: bool = True) -> Result:
    """In the worker: the recipe, and what its file says."""
    pauses: list[int] = []
    progress: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        job = subject.job(
            Path(folder),
            pause=lambda leaving=None: pauses.append(1),
            progress=lambda stage, fraction: progress.append((stage, fraction)),
        )
        if not trains:
            job = replace(job, task=Untrainable(job.task))
        made = _trainer(subject.trainer).compress(recipe, dense, teacher, job)
        task = job.task
        artifact = Artifact.of(made.file)
        metrics, outputs = score(subject.runtime, artifact, task, task.data("validation"), made.rows)
        loaded = [name for name in FRAMEWORKS if name in sys.modules]
        agreement = task.agreement(outputs, made.outputs)
        return Result(made, outputs, metrics, agreement, made.file.read_bytes(), len(pauses), progress, loaded)


def outlined(subject: Subject, recipe: Recipe, dense: Dense) -> tuple[str, int] | None:
    """In the worker: (architecture, bytes) of the recipe's file without its training; None where it cannot be known."""
    with tempfile.TemporaryDirectory() as folder:
        file = shape_of(_trainer(subject.trainer), recipe, dense, subject.job(Path(folder)))
        if file is None:
            return None
        return architecture_of(Artifact.of(file), subject.runtime), Artifact.of(file).size_bytes()


def built(subject: Subject, content: bytes) -> tuple[str, int]:
    """In the worker: the same of the file that the recipe gave."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model.{FORMATS[subject.runtime]}"
        file.write_bytes(content)
        return architecture_of(Artifact.of(file), subject.runtime), Artifact.of(file).size_bytes()


class Untrainable:
    """A task without its loss and training data."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def info(self) -> TaskInfo:
        """The task's, with `trains` off."""
        return replace(self._task.info(), trains=False)

    def data(self, split: str) -> Dataset:
        """Validation alone."""
        assert split == "validation", f"a recipe that trains nothing asked for the {split} split of an untrained task"
        return self._task.data(split)


@functools.cache
def pool(trainer: str) -> ProcessPoolExecutor:
    """The process that belongs to the trainer."""
    made = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    atexit.register(made.shutdown)
    return made


def digests(folder: Path) -> dict[str, str]:
    """File -> sha256, of all files of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def info_of(subject: Subject) -> TaskInfo:
    """In the worker: what the task says of itself."""
    return _task(subject.task).info()


def scored(subject: Subject, outputs: Arrays) -> dict[str, float]:
    """In the worker: the task's metrics of outputs on the training split."""
    task = _task(subject.task)
    scorer, data = task.scorer(), task.data("train")
    for rows in _parts(len(data)):
        scorer.add({name: np.asarray(array[rows]) for name, array in outputs.items()}, data.batch(rows))
    return scorer.result()


def _parts(count: int) -> Iterator[np.ndarray]:
    for start in range(0, count, 500):
        yield np.arange(start, min(count, start + 500))


def planted(outputs: Arrays, ports: tuple[Port, ...]) -> dict[str, np.ndarray]:
    """What a teacher would say that takes each class for the next, and every value for one more."""
    found = {}
    for port in ports:
        array = outputs[port.name]
        if port.kind == "logits":
            largest = np.roll(array, 1, port.axis).argmax(port.axis)
            found[port.name] = np.moveaxis(
                10 * np.eye(array.shape[port.axis], dtype=np.float32)[largest], -1, port.axis
            )
        else:
            found[port.name] = array + 1
    return found
