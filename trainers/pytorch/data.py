"""Batches on the device: a split that lies there as a whole, or one that is fetched ahead while training goes on.

Which of the two is decided by measured sizes: `open_feed` reads a few samples, and what all of them take is compared
with the memory that the device has left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from tasks.base import Batch, Dataset, Port
from trainers import samples
from trainers.base import Job
from trainers.pytorch.device import free_bytes
from trainers.samples import Tree, is_numeric, leaves, mapped

SHARE = {"cpu": 0.25, "cuda": 0.5}  # of the device's free memory that a split may take: workers share a CPU's
NARROW_FROM = 16_000_000  # bytes of whole numbers from which they are kept in the smallest type that holds them


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
        layouts = {port.name: port.layout for port in ports}
        for start, batch in samples.loaded(dataset, job.pause, lambda fraction: job.progress(stage, fraction)):
            self._add(start, batch, layouts)
        for column in (*self._columns.values(), *leaves(self._targets)):
            column.shrink()
        self.note = f"{self.nbytes / 1e6:.0f} MB on {device.type}"

    def _add(self, start: int, batch: Batch, layouts: dict[str, str]) -> None:
        count = len(self.dataset)
        if not self._columns:
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
        """See Feed; nothing is fetched during a pause."""
        rows = [each.numpy() for each in order]
        return samples.fetched_ahead(rows, lambda each: self._fetch(each, epoch), self._threads, job.pause)

    def _fetch(self, rows: np.ndarray, epoch: int | None) -> DeviceBatch:
        batch = self.dataset.batch(rows, epoch)
        inputs = {name: self._placed(as_tensor(values), name) for name, values in batch.inputs.items()}
        targets = mapped(lambda leaf: self._placed(as_tensor(leaf)) if is_numeric(leaf) else leaf, batch.targets)
        return DeviceBatch(inputs, targets, torch.from_numpy(rows).to(self.device))

    def _placed(self, values: torch.Tensor, name: str = "") -> torch.Tensor:
        if self.device.type == "cuda":
            values = values.pin_memory().to(self.device, non_blocking=True)
        if name in self._last and values.dim() == 4:
            return values.to(memory_format=torch.channels_last)
        return values


def as_tensor(leaf: Any) -> torch.Tensor:
    """The array as a tensor; float64, which NumPy makes unasked, as float32."""
    return torch.from_numpy(samples.plain(leaf))


def open_feed(
    dataset: Dataset, split: str, ports: Sequence[Port], device: torch.device, job: Job, training: bool
) -> Feed:
    """The split as a Feed: resident where all of it fits into SHARE of the device's free memory, else streamed.

    `training`: samples are asked for by epoch, and a split that augments itself is streamed.
    """
    reason = samples.why_streamed(dataset, ports, SHARE[device.type] * free_bytes(device), training)
    if not reason:
        return Resident(dataset, ports, device, job, f"load {split}")
    threads = job.threads if device.type == "cpu" else min(8, os.cpu_count() or 1)
    return Streamed(dataset, ports, device, max(1, threads), f"streamed: {reason}")


def shuffled(feed: Feed, size: int, generator: torch.Generator) -> list[torch.Tensor]:
    """The batches of one epoch, int64 [B] each on the CPU, in random order.

    Where the data say how long each sample is (`lengths`, int64 [N]), batches hold samples of about one length.
    """
    order = torch.randperm(len(feed), generator=generator).numpy()
    lengths = getattr(feed.dataset, "lengths", None)
    found = samples.by_length(order, lengths, size, lambda n: torch.randperm(n, generator=generator).numpy())
    return [torch.from_numpy(rows) for rows in found]
