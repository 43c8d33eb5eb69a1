"""Feeds: what is resident and what is streamed, and that both give the task's samples."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.base import Batch, Port, TaskSpec
from tasks.mnist.data import normalized
from tasks.mnist.task import Mnist
from tests.tiny_task import Regions
from trainers import samples
from trainers.base import Job
from trainers.pytorch import course, data
from trainers.pytorch.data import Resident, Streamed, open_feed

CPU = torch.device("cpu")
ROWS = Port("x", ("batch", 3))


def job(task: Any, **more: Any) -> Job:
    return Job(task, Path(), "onnx", device="cpu", **more)


class Numbers:
    """Each sample is its row number, three times; what the tests below change is said by `options`."""

    def __init__(self, count: int = 40, **options: Any) -> None:
        self.resident, self.count, self.options = True, count, options
        self.fetching = self.fetched = 0

    def __len__(self) -> int:
        return self.count

    def batch(self, rows: np.ndarray, epoch: int | None = None) -> Batch:
        self.fetching += 1
        time.sleep(self.options.get("seconds", 0.0))
        width = int(rows.max()) + 1 if self.options.get("ragged") else 3
        values = np.repeat(rows.astype(np.float32)[:, None], width, 1)
        if epoch is not None and self.options.get("augments"):
            values += 100 * (epoch + 1)
        self.fetching -= 1
        self.fetched += 1
        return Batch({"x": values}, rows * self.options.get("scale", 1))


def opened(dataset: Any, training: bool = True) -> data.Feed:
    return open_feed(dataset, "train", (ROWS,), CPU, job(None), training)


def given(feed: data.Feed, order: list[list[int]], epoch: int | None = None) -> list[data.DeviceBatch]:
    return list(feed.batches([torch.tensor(rows) for rows in order], job(None), epoch))


def test_mnist_lies_on_the_device_as_the_model_takes_it(fetched: Path) -> None:
    task = Mnist(TaskSpec("mnist", train_size=1000, validation_size=500), fetched, lambda stage, fraction: None)
    feed = course.feed_of(task, "train", CPU, job(task))
    assert isinstance(feed, Resident)
    assert course.feed_of(task, "train", CPU, job(task)) is feed
    rows = torch.tensor([5, 3, 999])
    (batch,) = feed.batches([rows], job(task))
    split = task.dataset.train
    assert np.array_equal(batch.inputs["input"].numpy(), normalized(split.images[rows.numpy()], "NCHW"))
    assert batch.inputs["input"].stride() == (784, 1, 28, 1)
    assert np.array_equal(batch.targets.numpy(), split.labels[rows.numpy()])
    assert feed.nbytes == 1000 * (4 * 784 + 8)
    other = Mnist(TaskSpec("mnist", train_size=1000, validation_size=400), fetched, lambda stage, fraction: None)
    assert len(course.feed_of(other, "validation", CPU, job(other))) == 400
    assert course.feed_of(task, "train", CPU, job(task)) is not feed


@pytest.mark.parametrize("streamed", [False, True])
def test_both_ways_give_the_same_samples(streamed: bool) -> None:
    task = Regions()
    source, ports = task.data("train"), task.info().inputs
    threads = Streamed(source, ports, CPU, 3)
    feed = threads if streamed else Resident(source, ports, CPU, job(task), "load")
    order = [torch.tensor(rows) for rows in ([3, 1], [399], [7, 7, 0, 2])]
    for rows, batch in zip(order, feed.batches(order, job(task)), strict=True):
        wanted = source.batch(rows.numpy())
        assert torch.equal(batch.rows, rows)
        assert np.array_equal(batch.inputs["picture"].numpy(), wanted.inputs["picture"])
        assert batch.inputs["picture"].is_contiguous(memory_format=torch.channels_last)
        assert batch.inputs["colour"].dtype == torch.int64
        assert np.array_equal(batch.inputs["colour"].numpy(), wanted.inputs["colour"])
        assert np.array_equal(batch.targets["mask"].numpy(), wanted.targets["mask"])
        assert batch.targets["share"].dtype == torch.float32


def test_a_batch_is_cut_into_parts() -> None:
    (batch,) = given(opened(Numbers()), [[4, 9, 2, 30, 1]])
    assert batch.split(5) == [batch]
    parts = batch.split(2)
    assert [part.targets.tolist() for part in parts] == [[4, 9], [2, 30], [1]]
    assert torch.equal(torch.cat([part.inputs["x"] for part in parts]), batch.inputs["x"])


def test_whole_numbers_of_a_large_split_are_kept_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "NARROW_FROM", 0)
    kept = {}
    for scale, dtype in ((1, torch.uint8), (-7, torch.int16), (1000, torch.int32), (10**9, torch.int64)):
        feed = opened(Numbers(scale=scale))
        assert isinstance(feed, Resident)
        kept[scale] = feed._targets.kept.dtype
        assert kept[scale] == dtype
        (batch,) = given(feed, [[39, 0, 17]])
        assert batch.targets.dtype == torch.int64
        assert batch.targets.tolist() == [39 * scale, 0, 17 * scale]
        assert batch.inputs["x"].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "training", "why"),
    [
        ({"ragged": True}, True, "samples differ in size"),
        ({"augments": True}, True, "augmented again in each epoch"),
        ({"augments": True}, False, ""),
        ({}, True, ""),
    ],
)
def test_a_split_is_streamed_for_a_reason_that_is_said(options: dict[str, Any], training: bool, why: str) -> None:
    feed = opened(Numbers(**options), training)
    assert isinstance(feed, Streamed) == bool(why)
    assert why in feed.note
    assert feed.note.endswith(why or "MB on cpu")


def test_what_exceeds_its_share_of_the_free_memory_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 40 * (3 * 4 + 8)
    monkeypatch.setattr(data, "free_bytes", lambda device: needed / data.SHARE["cpu"])
    assert isinstance(opened(Numbers()), Resident)
    monkeypatch.setattr(data, "free_bytes", lambda device: needed / data.SHARE["cpu"] - 1)
    assert opened(Numbers()).note == "streamed: 0.0 GB, more than 0.0 GB of free memory"


def test_the_epoch_reaches_a_split_that_augments() -> None:
    feed = opened(Numbers(augments=True))
    assert [given(feed, [[5]], epoch)[0].inputs["x"][0, 0].item() for epoch in (None, 0, 1)] == [5, 105, 205]


def test_batches_are_fetched_while_the_last_one_is_used() -> None:
    source = Numbers()
    feed = Streamed(source, (ROWS,), CPU, 2)
    batches = feed.batches([torch.tensor([i]) for i in range(9)], job(None))
    assert next(batches).targets.tolist() == [0]
    deadline = time.monotonic() + 60
    while source.fetched < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert source.fetched == 4  # two for each thread, and no more until they are used
    assert [batch.targets.item() for batch in batches] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_nothing_is_fetched_during_a_pause() -> None:
    source = Numbers(seconds=0.02)
    seen: list[int] = []

    def pause(leaving: Any = None) -> None:
        if leaving is not None:
            leaving()
            seen.append(source.fetching)  # a measurement would begin here
            time.sleep(0.03)
            seen.append(source.fetching)

    feed = Streamed(source, (ROWS,), CPU, 3)
    assert len(list(feed.batches([torch.tensor([i]) for i in range(8)], job(None, pause=pause)))) == 8
    assert seen == [0] * len(seen)
    assert len(seen) == 2 * 9


def test_an_error_in_the_data_reaches_the_caller_and_no_thread_stays() -> None:
    class Broken(Numbers):
        def batch(self, rows: np.ndarray, epoch: int | None = None) -> Batch:
            if 7 in rows:
                raise ValueError("a corrupt sample")
            return super().batch(rows, epoch)

    feed = Streamed(Broken(), (ROWS,), CPU, 2)
    with pytest.raises(ValueError, match="a corrupt sample"):
        given(feed, [[i] for i in range(20)])
    assert not [each for each in threading.enumerate() if each.name.startswith("fetch")]


def test_batches_hold_samples_of_about_one_length() -> None:
    source = Numbers(1000)
    source.lengths = np.random.default_rng(0).integers(1, 500, 1000)  # type: ignore[attr-defined]
    feed = Streamed(source, (ROWS,), CPU, 1)
    order = data.shuffled(feed, 10, torch.Generator().manual_seed(3))
    assert sorted(torch.cat(order).tolist()) == list(range(1000))
    spans = [int(np.ptp(source.lengths[rows.numpy()])) for rows in order]  # type: ignore[attr-defined]
    assert np.median(spans) < 20
    again = data.shuffled(feed, 10, torch.Generator().manual_seed(3))
    assert all(torch.equal(one, other) for one, other in zip(order, again, strict=True))
    starts = [int(source.lengths[rows[0]]) for rows in order]  # type: ignore[attr-defined]
    assert starts != sorted(starts)


def test_samples_that_stand_for_a_sorted_split_come_from_all_of_it() -> None:
    rows = samples.representative(Numbers(1000), 50)
    assert len(set(rows.tolist())) == 50
    assert all(((rows >= start) & (rows < start + 250)).any() for start in range(0, 1000, 250))
    assert np.array_equal(rows, samples.representative(Numbers(1000), 50))
    shuffled = Numbers(1000)
    shuffled.shuffled = True  # type: ignore[attr-defined]
    assert samples.representative(shuffled, 50).tolist() == list(range(50))
