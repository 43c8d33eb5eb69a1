"""Batches on the device: a split that lies there as a whole, or one that is fetched ahead while training goes on.

Which of the two is decided by measured sizes: `open_feed` reads a few samples, and what all of them take is compared
with the memory that the device has left.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from tasks.base import Batch, Dataset, Port
from trainers.base import Job
from trainers.pytorch.device import free_bytes

Tree = Any  # a tensor, or a tuple or mapping of trees
PROBED = 16  # samples that are read to learn what all of them take
SHARE = {"cpu": 0.25, "cuda": 0.5}  # of the device's free memory that a split may take: workers share a CPU's
LOADED_AT_ONCE = 2048
NARROW_FROM = 16_000_000  # bytes of whole numbers from which they are kept in the smallest type that holds them
AHEAD = 2  # batches in waiting for each thread that fetches
SORTED_BATCHES = 50  # of samples with lengths: batches are made of equal lengths within so many


@dataclass(frozen=True)
class DeviceBatch:
    """Samples on the device. `rows`: int64 [B], which they are, on the device too.

    `inputs`: by port name; `targets`: tensors in the structure that the task's data has, None without.
    """

    inputs: dict[str, torch.Tensor]
    targets: Tree
    rows: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, size: int) -> list[DeviceBatch]:
        """The same samples in parts of at most `size`."""
        if size >= len(self):
            return [self]
        return [self._part(slice(start, start + size)) for start in range(0, len(self), size)]

    def _part(self, cut: slice) -> DeviceBatch:
        inputs = {name: each[cut] for name, each in self.inputs.items()}
        return DeviceBatch(inputs, mapped(lambda leaf: leaf[cut], self.targets), self.rows[cut])


class Feed(Protocol):
    """One split of a task on a device. `note`: how it is kept, in words."""

    note: str
    dataset: Dataset
    device: torch.device

    def __len__(self) -> int: ...

    def batches(self, order: Sequence[torch.Tensor], job: Job, epoch: int | None = None) -> Iterator[DeviceBatch]:
        """The batches `order`, each int64 [B] row numbers on the CPU; asks for a pause before each.

        `epoch`: given while training where samples may be augmented, as `tasks.base.Dataset.batch` takes it.
        """
        ...


def mapped(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """The same structure with `function` of every leaf; None stays None."""
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return {key: mapped(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(mapped(function, value) for value in tree)
    return function(tree)


def leaves(tree: Tree) -> Iterator[Any]:
    """Every leaf of the structure, in order."""
    if isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from leaves(value)
    elif tree is not None:
        yield tree


class Column:
    """One array of a resident split: rows of it are gathered on the device, in the type and layout that models take."""

    def __init__(self, count: int, first: torch.Tensor, channels_last: bool, device: torch.device) -> None:
        self.dtype, self.channels_last = first.dtype, channels_last and first.dim() == 4
        self.shape = self._stored(first).shape[1:]
        self.kept = torch.empty((count, self.shape.numel()), dtype=first.dtype, device=device)

    def fill(self, start: int, values: torch.Tensor) -> None:
        """Put `values` [B, ...] at the rows from `start`."""
        self.kept[start : start + len(values)] = self._stored(values).reshape(len(values), -1)

    def shrink(self) -> None:
        """Keep whole numbers of a large array in the smallest type that holds them."""
        if self.dtype.is_floating_point or self.dtype is torch.bool or self.kept.nbytes < NARROW_FROM:
            return
        low, high = int(self.kept.min()), int(self.kept.max())
        for dtype in (torch.uint8, torch.int16, torch.int32):
            if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
                self.kept = self.kept.to(dtype)
                return

    def rows(self, chosen: torch.Tensor) -> torch.Tensor:
        """The rows `chosen`, int64 [B] on the device, as the model takes them."""
        # index_select over whole rows: a third of the time that indexing a tensor of four axes takes.
        found = self.kept.index_select(0, chosen).to(self.dtype).view(len(chosen), *self.shape)
        return found.permute(0, 3, 1, 2) if self.channels_last else found

    def _stored(self, values: torch.Tensor) -> torch.Tensor:
        return values.permute(0, 2, 3, 1) if self.channels_last else values


class Resident:
    """A split that lies on the device as a whole."""

    def __init__(self, dataset: Dataset, ports: Sequence[Port], device: torch.device, job: Job, stage: str) -> None:
        self.dataset, self.device = dataset, device
        self._columns: dict[str, Column] = {}
        self._targets: Tree = None
        count = len(dataset)
        for start in range(0, count, LOADED_AT_ONCE):
            job.pause()
            rows = np.arange(start, min(count, start + LOADED_AT_ONCE))
            self._add(start, dataset.batch(rows), ports)
            job.progress(stage, (start + len(rows)) / count)
        for column in (*self._columns.values(), *leaves(self._targets)):
            column.shrink()
        self.note = f"{self.nbytes / 1e6:.0f} MB on {device.type}"

    def _add(self, start: int, batch: Batch, ports: Sequence[Port]) -> None:
        if not self._columns:
            layouts = {port.name: port.layout for port in ports}
            count = len(self.dataset)
            for name, values in batch.inputs.items():
                last = layouts.get(name) == "NCHW"
                self._columns[name] = Column(count, as_tensor(values), last, self.device)
            self._targets = mapped(lambda leaf: Column(count, as_tensor(leaf), False, self.device), batch.targets)
        for name, values in batch.inputs.items():
            self._columns[name].fill(start, as_tensor(values))
        for column, values in zip(leaves(self._targets), leaves(batch.targets), strict=True):
            column.fill(start, as_tensor(values))

    @property
    def nbytes(self) -> int:
        """What the split takes on the device."""
        return sum(column.kept.nbytes for column in (*self._columns.values(), *leaves(self._targets)))

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, order: Sequence[torch.Tensor], job: Job, epoch: int | None = None) -> Iterator[DeviceBatch]:
        """See Feed; what lies here is the same in every epoch."""
        moved = torch.cat(list(order)).to(self.device).split([len(rows) for rows in order])
        for rows in moved:
            job.pause()
            yield self._take(rows)

    def _take(self, chosen: torch.Tensor) -> DeviceBatch:
        inputs = {name: column.rows(chosen) for name, column in self._columns.items()}
        return DeviceBatch(inputs, mapped(lambda column: column.rows(chosen), self._targets), chosen)


class Streamed:
    """A split whose batches are fetched by threads ahead of time, from the task's own data."""

    def __init__(
        self, dataset: Dataset, ports: Sequence[Port], device: torch.device, threads: int, note: str = "streamed"
    ) -> None:
        self.dataset, self.device, self.note = dataset, device, note
        self._last = {port.name for port in ports if port.layout == "NCHW"}
        self._threads = threads

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, order: Sequence[torch.Tensor], job: Job, epoch: int | None = None) -> Iterator[DeviceBatch]:
        """See Feed. What is being fetched is finished before a pause begins, and nothing is fetched during one."""
        coming: deque[Future[DeviceBatch]] = deque()
        pool = ThreadPoolExecutor(self._threads, "fetch")
        left = iter(order)

        def fetch_more() -> None:
            while len(coming) < AHEAD * self._threads and (rows := next(left, None)) is not None:
                coming.append(pool.submit(self._fetch, rows, epoch))

        try:
            while True:
                job.pause(lambda: wait(coming))
                fetch_more()
                if not coming:
                    return
                yield coming.popleft().result()
        finally:
            for each in coming:
                each.cancel()
            pool.shutdown()

    def _fetch(self, rows: torch.Tensor, epoch: int | None) -> DeviceBatch:
        batch = self.dataset.batch(rows.numpy(), epoch)
        inputs = {name: self._placed(as_tensor(values), name) for name, values in batch.inputs.items()}
        targets = mapped(lambda leaf: self._placed(as_tensor(leaf)) if is_numeric(leaf) else leaf, batch.targets)
        return DeviceBatch(inputs, targets, rows.to(self.device))

    def _placed(self, values: torch.Tensor, name: str = "") -> torch.Tensor:
        if self.device.type == "cuda":
            values = values.pin_memory().to(self.device, non_blocking=True)
        if name in self._last and values.dim() == 4:
            return values.to(memory_format=torch.channels_last)
        return values


def is_numeric(leaf: Any) -> bool:
    """Whether the array can be a tensor: numbers and bool, but no text and no arrays of different sizes."""
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf"


def as_tensor(leaf: np.ndarray) -> torch.Tensor:
    """The array as a tensor; float64, which NumPy makes unasked, as float32."""
    plain = np.ascontiguousarray(leaf, np.float32 if leaf.dtype == np.float64 else leaf.dtype)
    return torch.from_numpy(plain if plain.flags.writeable else plain.copy())


def open_feed(
    dataset: Dataset, split: str, ports: Sequence[Port], device: torch.device, job: Job, training: bool
) -> Feed:
    """The split as a Feed: resident where all of it fits into SHARE of the device's free memory, else streamed.

    `training`: samples are asked for by epoch, and a split that augments itself is streamed.
    """
    count = len(dataset)
    rows = np.arange(min(PROBED, count))
    first, second = dataset.batch(rows), dataset.batch(rows[: max(1, len(rows) // 2)])
    threads = job.threads if device.type == "cpu" else min(8, os.cpu_count() or 1)
    needed = bytes_of(first) / len(rows) * count
    budget = SHARE[device.type] * free_bytes(device)
    reason = ""
    if not all(is_numeric(leaf) for leaf in leaves(first.targets)) or not _same_shapes(first, second):
        reason = "samples differ in size"
    elif any(isinstance(size, str) for port in ports for size in port.shape[1:]):
        reason = "an input has a free axis"
    elif training and _augments(dataset, rows):
        reason = "samples are augmented anew in each epoch"
    elif needed > budget:
        reason = f"{needed / 1e9:.1f} GB, more than {budget / 1e9:.1f} GB of free memory"
    if reason:
        return Streamed(dataset, ports, device, max(1, threads), f"streamed: {reason}")
    return Resident(dataset, ports, device, job, f"load {split}")


def bytes_of(batch: Batch) -> int:
    """What the batch's arrays take."""
    arrays = [*batch.inputs.values(), *leaves(batch.targets)]
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def _same_shapes(first: Batch, second: Batch) -> bool:
    pairs = zip(
        (*first.inputs.values(), *leaves(first.targets)),
        (*second.inputs.values(), *leaves(second.targets)),
        strict=True,
    )
    return all(one.shape[1:] == other.shape[1:] for one, other in pairs)


def _augments(dataset: Dataset, rows: np.ndarray) -> bool:
    """Whether samples asked for in an epoch differ from the same samples asked for without, or in another epoch."""
    plain, others = dataset.batch(rows), [dataset.batch(rows, epoch) for epoch in (0, 1)]
    return any(
        one.shape != other.shape or not np.array_equal(one, other)
        for changed in others
        for one, other in zip(plain.inputs.values(), changed.inputs.values(), strict=True)
    )


def shuffled(feed: Feed, size: int, generator: torch.Generator) -> list[torch.Tensor]:
    """The batches of one epoch, int64 [B] each on the CPU, in random order.

    Where the data say how long each sample is (`lengths`, int64 [N]), batches hold samples of about one length.
    """
    order = torch.randperm(len(feed), generator=generator)
    lengths = getattr(feed.dataset, "lengths", None)
    if lengths is None:
        return list(order.split(size))
    known = torch.from_numpy(np.asarray(lengths))
    batches = [
        batch
        for part in order.split(SORTED_BATCHES * size)
        for batch in part[known[part].argsort(stable=True)].split(size)
    ]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def representative(dataset: Dataset, count: int) -> torch.Tensor:
    """int64 [count] rows that stand for the whole split, always the same.

    The first ones where the data say that they are in random order (`shuffled`), as files in folders are not.
    """
    total = len(dataset)
    if getattr(dataset, "shuffled", False) or count >= total:
        return torch.arange(min(count, total))
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count].sort().values
