"""A training split with moved copies of its images: every other batch is of one of them, and the teacher knows each.

A copy is not stored: its images are moved again, always alike, whenever a batch is of it. What a teacher says of the
copies is computed once and kept in the cache, since it decides more than the students' own training takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tasks import cache
from tasks.base import Arrays, Port
from trainers.base import CACHED_BYTES, Job
from trainers.pytorch.affine import Affine, matrices, moved
from trainers.pytorch.course import Course
from trainers.pytorch.data import DeviceBatch, Feed
from trainers.recipe import RecipeError

COPIES = 8
PLAIN = 0.5  # share of the batches that are not moved


class Copies:
    """A Feed of which some batches are moved. Their `rows` count on: row r of copy c is c * N + r, copy 0 is plain.

    `only`: every batch is of this copy, for what a teacher says of it.
    """

    def __init__(self, feed: Feed, ports: Sequence[Port], how: Affine, only: int | None = None) -> None:
        images = [port for port in ports if port.layout == "NCHW" and len(port.shape) == 4]
        if not images:
            raise RecipeError("finetuning.augment: affine moves images, and the task has no input of layout NCHW")
        self.feed, self.how, self.only, self.names = feed, how, only, [port.name for port in images]
        self.dataset, self.device, self.note = feed.dataset, feed.device, f"{feed.note}, {COPIES} moved copies"
        self._by: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.feed)

    def batches(self, order: Sequence[torch.Tensor], job: Job, epoch: int | None = None) -> Iterator[DeviceBatch]:
        """See Feed. Which copy a batch is of follows from the order alone, so a training that is resumed goes on."""
        order = list(order)
        mark = int((order[0] * torch.arange(1, len(order[0]) + 1)).sum()) if order else 0
        draw = torch.Generator().manual_seed(mark)
        for batch in self.feed.batches(order, job, epoch):
            copy = int(torch.randint(1, COPIES + 1, (), generator=draw))
            plain = bool(torch.rand((), generator=draw) < PLAIN)
            yield self._moved(batch, (0 if plain else copy) if self.only is None else self.only)

    def _moved(self, batch: DeviceBatch, copy: int) -> DeviceBatch:
        if not copy:
            return batch
        inputs = dict(batch.inputs)
        for name in self.names:
            size = tuple(inputs[name].shape[2:])
            if copy not in self._by:
                self._by[copy] = matrices(len(self), size, self.how, copy).to(self.device)
            inputs[name] = moved(inputs[name], self._by[copy][batch.rows])
        return replace(batch, inputs=inputs, rows=batch.rows + copy * len(self))


def with_copies(course: Course, how: Affine | None = None) -> Course:
    """The same course, whose training split has moved copies."""
    opened: dict[str, Feed] = {}

    def feed(split: str) -> Feed:
        if split != "train":
            return course.feed(split)
        if split not in opened:
            opened[split] = Copies(course.feed(split), course.info.inputs, how or Affine())
        return opened[split]

    return replace(course, feed=feed)


def lectures(course: Course, teacher: nn.Module, taught: Path, how: Affine | None = None) -> Arrays:
    """What `teacher` says of the split and of its copies, float16 [(COPIES + 1) * N, ...] by name, from the cache.

    `taught`: the teacher's folder in the cache; its entry is named after it. Raises RecipeError when it takes more than
    CACHED_BYTES.
    """
    key = {"teacher": taught.name, "copies": COPIES, "how": vars(how or Affine()), "format": 1}
    folder = cache.entry(taught.parent.parent, "lectures", key)
    cache.fill(folder, lambda into: _speak(course, teacher, how or Affine(), into), key, course.job.progress)
    return {port.name: np.load(folder / f"output{i}.npy", mmap_mode="r") for i, port in enumerate(course.info.outputs)}


def _speak(course: Course, teacher: nn.Module, how: Affine, into: Path) -> None:
    plain = course.feed("train")
    parts: dict[str, list[np.ndarray]] = {port.name: [] for port in course.info.outputs}
    for copy in range(COPIES + 1):
        course.job.progress("teacher on moved copies", copy / (COPIES + 1))
        feed = Copies(plain, course.info.inputs, how, only=copy)
        said = course.evaluator.all_outputs(teacher.eval(), feed, CACHED_BYTES // (COPIES + 1))
        if said is None:
            raise RecipeError(
                "finetuning.augment: what the teacher says of all copies takes too much room; leave out distillation, "
                "or augment: none"
            )
        for name, array in said.items():
            parts[name].append(array.astype(np.float16))
    for index, port in enumerate(course.info.outputs):
        np.save(into / f"output{index}.npy", np.concatenate(parts[port.name]))
