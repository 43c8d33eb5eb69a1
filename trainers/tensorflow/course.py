"""What all stages of one training share: the task's splits, how it is judged, what was decided on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import tf_keras

from tasks.base import Arrays, Batch, Dataset, Port, Task, TaskInfo
from trainers import samples
from trainers.base import Job, task_digest
from trainers.samples import Tree, mapped
from trainers.tensorflow.layout import by_name, call, from_model, to_model, to_task
from trainers.tensorflow.program import KerasProgram

SHARE = 0.25  # of the free memory that a split may take: workers share it
PREDICT_ROWS = 500  # at most
LAYER_BYTES = 64_000_000  # that the largest output of a layer may take in evaluation


@dataclass(frozen=True)
class Split:
    """One split: as arrays in the model's layout where all of it fits, else `inputs` is None and `note` says why."""

    dataset: Dataset
    inputs: dict[str, np.ndarray] | None
    targets: Tree
    note: str

    def __len__(self) -> int:
        return len(self.dataset)


def _read(dataset: Dataset, split: str, ports: tuple[Port, ...], job: Job) -> Split:
    reason = samples.why_streamed(dataset, ports, SHARE * psutil.virtual_memory().available, split == "train")
    if reason:
        return Split(dataset, None, None, f"streamed: {reason}")
    parts = [
        (to_model(batch.inputs, ports), mapped(samples.plain, batch.targets))
        for _, batch in samples.loaded(dataset, job.pause, lambda fraction: job.progress(f"load {split}", fraction))
    ]
    inputs = {name: np.concatenate([part[0][name] for part in parts]) for name in parts[0][0]}
    columns = [np.concatenate(column) for column in zip(*(samples.leaves(part[1]) for part in parts), strict=True)]
    taken = iter(columns)
    targets = mapped(lambda _: next(taken), parts[0][1])
    size = sum(array.nbytes for array in (*inputs.values(), *columns))
    return Split(dataset, inputs, targets, f"{size / 1e6:.0f} MB in memory")


_splits: dict[tuple[str, str], Split] = {}


def split_of(task: Task, split: str, job: Job) -> Split:
    """The split, kept for the task's next trial, because a worker serves many of one study."""
    info = task.info()
    mark = task_digest(info)
    for key in [key for key in _splits if key[0] != mark]:
        del _splits[key]
    if (mark, split) not in _splits:
        _splits[mark, split] = _read(task.data(split), split, info.inputs, job)
    return _splits[mark, split]


@dataclass
class Course:
    """See above. `rows`: samples that the model evaluates at once."""

    info: TaskInfo
    program: KerasProgram
    job: Job
    rows: int
    notes: list[str] = field(default_factory=list)

    def split(self, name: str) -> Split:
        """A split by its name, read when it is asked for."""
        return split_of(self.job.task, name, self.job)

    def note(self, text: str) -> None:
        """Say it once."""
        if text not in self.notes:
            self.notes.append(text)

    def outputs(self, model: tf_keras.Model, split: Split, count: int | None = None) -> Iterator[tuple[Batch, Arrays]]:
        """Each batch of the first `count` samples, and what the model gives for it, in the ports' layout."""
        total = len(split) if count is None else min(count, len(split))
        for start in range(0, total, self.rows):
            self.job.pause()
            rows = np.arange(start, min(total, start + self.rows))
            batch, given = self._taken(split, rows)
            made = by_name(call(model, given, self.info.inputs, training=False), self.info.outputs)
            yield batch, {name: tensor.numpy() for name, tensor in to_task(made, self.info.outputs).items()}

    def _taken(self, split: Split, rows: np.ndarray) -> tuple[Batch, Arrays]:
        """Neighbouring samples, and their inputs in the model's layout."""
        ports = self.info.inputs
        if split.inputs is None:
            batch = split.dataset.batch(rows)
            return batch, to_model(batch.inputs, ports)
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        given = {name: array[part] for name, array in split.inputs.items()}
        return Batch(from_model(given, ports), mapped(lambda leaf: leaf[part], split.targets)), given

    def all_outputs(self, model: tf_keras.Model, split: Split, limit: int) -> Arrays | None:
        """float32 [N, ...] by name over the split; None where they take more than `limit` bytes or differ in size."""
        parts: list[Arrays] = []
        for batch, made in self.outputs(model, split):
            parts.append(made)
            size = sum(array.nbytes for array in made.values()) / len(batch) * len(split)
            if size > limit or any(parts[0][name].shape[1:] != array.shape[1:] for name, array in made.items()):
                return None
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def first_outputs(self, model: tf_keras.Model, split: Split, count: int, limit: int) -> Arrays:
        """float32 [rows, ...] by name on the first samples: `count`, or what fits into `limit` bytes, but at least one.

        A free axis that has another size ends them.
        """
        parts: list[Arrays] = []
        left = limit
        for batch, made in self.outputs(model, split, count):
            size = sum(array.nbytes for array in made.values())
            taken = min(len(batch), left * len(batch) // max(1, size))
            taken = taken if parts else max(1, taken)
            if not taken or (parts and any(parts[0][n].shape[1:] != array.shape[1:] for n, array in made.items())):
                break
            parts.append({name: array[:taken] for name, array in made.items()})
            left -= sum(array.nbytes for array in parts[-1].values())
            if taken < len(batch):
                break
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def metrics(self, model: tf_keras.Model) -> dict[str, float]:
        """The task's metrics on validation."""
        scorer = self.job.task.scorer()
        split = self.split("validation")
        for batch, made in self.outputs(model, split):
            scorer.add(made, batch)
        return scorer.result()

    def calibration(self, count: int) -> Iterator[dict[str, np.ndarray]]:
        """Training samples that stand for all, one at a time, in the model's layout; of a task without them others."""
        dataset = self.job.task.data("train" if self.info.trains else "validation")
        for row in samples.representative(dataset, count):
            yield to_model(dataset.batch(np.array([row])).inputs, self.info.inputs)


def rows_at_once(model: tf_keras.Model) -> int:
    """How many samples a model evaluates at once: by the largest output of a layer, free axes taken as 128."""
    largest = 1
    for layer in model.layers:
        shapes = layer.output_shape if isinstance(layer.output_shape, list) else [layer.output_shape]
        for shape in shapes:
            sizes = [128 if size is None else size for size in shape[1:]]
            largest = max(largest, 4 * int(np.prod(sizes)))
    return max(1, min(PREDICT_ROWS, LAYER_BYTES // largest))


def open_course(model: tf_keras.Model, program: Any, job: Job) -> Course:
    """A course for models like this one."""
    return Course(job.task.info(), program, job, rows_at_once(model))
