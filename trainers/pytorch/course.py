"""What all stages of one training share: the task's splits on the device, how it is judged, where its state is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from tasks.base import Task, TaskInfo
from trainers import samples
from trainers.base import Job, task_digest
from trainers.pytorch.checkpoint import Checkpoints
from trainers.pytorch.data import Feed, Streamed, open_feed
from trainers.pytorch.evaluate import Evaluator, rows_at_once

CALIBRATION_ROWS, CALIBRATION_BYTES = 1000, 64_000_000

Inputs = tuple[torch.Tensor, ...]


@dataclass
class Course:
    """`feed`: a split by its name, read when it is asked for. `notes`: what was decided on the way, in words."""

    info: TaskInfo
    feed: Callable[[str], Feed]
    evaluator: Evaluator
    job: Job
    device: torch.device
    checkpoints: Checkpoints
    notes: list[str] = field(default_factory=list)

    @property
    def train(self) -> Feed:
        """The training split."""
        return self.feed("train")

    @property
    def validation(self) -> Feed:
        """The validation split."""
        return self.feed("validation")

    def note(self, text: str) -> None:
        """Say it once."""
        if text not in self.notes:
            self.notes.append(text)

    def samples(self, count: int = CALIBRATION_ROWS, at_once: int = CALIBRATION_ROWS) -> list[Inputs]:
        """The inputs of training samples that stand for all, by position, in batches of at most `at_once`.

        At most `count` samples, or what fits into CALIBRATION_BYTES; at least two. Of a task that does not train they
        are validation samples.
        """
        dataset = self.job.task.data("train" if self.info.trains else "validation")
        feed = Streamed(dataset, self.info.inputs, self.device, 1)
        example = next(feed.batches([torch.arange(2)], self.job)).inputs
        fitting = 2 * CALIBRATION_BYTES // sum(each.nbytes for each in example.values())
        rows = torch.from_numpy(samples.representative(dataset, max(2, min(count, fitting))))
        batches = feed.batches(rows.split(min(at_once, self.evaluator.rows)), self.job)
        return [tuple(batch.inputs[port.name] for port in self.info.inputs) for batch in batches]


_feeds: dict[tuple[str, str], Feed] = {}


def feed_of(task: Task, split: str, device: torch.device, job: Job) -> Feed:
    """The split on the device; kept for the task's next trial, because a worker serves many of one study."""
    info = task.info()
    mark = f"{task_digest(info)} {device}"
    for key in [key for key in _feeds if key[0] != mark]:
        del _feeds[key]
    if (mark, split) not in _feeds:
        _feeds[mark, split] = open_feed(task.data(split), split, info.inputs, device, job, training=split == "train")
    return _feeds[mark, split]


def open_course(model: nn.Module, job: Job, device: torch.device, key: str) -> Course:
    """A course for networks like `model`, which lies on `device`. `key`: what the training depends on."""

    def feed(split: str) -> Feed:
        return feed_of(job.task, split, device, job)

    info = job.task.info()
    rows = rows_at_once(model, next(feed("validation").batches([torch.arange(1)], job)), info.inputs)
    checkpoints = Checkpoints(job.checkpoints or job.folder / "checkpoint", key)
    return Course(info, feed, Evaluator(job.task, job, rows), job, device, checkpoints)
