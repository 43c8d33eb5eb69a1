"""Samples of one split, by row: in arrays, in a user's map-style dataset, or a part of others."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tasks.base import TaskError
from tasks.tree import Tree, arrays, filled, integers, leaves, stacked, taken
from tasks.user_code import guarded

COUNT = "tokens"  # the column that holds how many tokens of a row are no padding
STEP = 8  # lengths are rounded up to it, as integer kernels like it
PROBED = 8  # samples that are read twice to learn whether a dataset augments


class Samples(Protocol):
    """`resident`: as of `tasks.base.Dataset`. `place`: the folder of the cache in which they lie, if they do.

    `lengths`: int64 [N], tokens of each sample, where samples differ in length; None elsewhere.
    """

    resident: bool
    place: Path | None
    lengths: np.ndarray | None

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray, epoch: int | None = None) -> tuple[Tree, Tree | None]:
        """Inputs and targets of the samples `rows`, int64 [B], each with a leading axis of B; targets None without."""
        ...

    def digest(self) -> str:
        """16 hex digits over what the samples are."""
        ...

    def labels(self) -> np.ndarray | None:
        """int64 [N]: the class of every sample where targets are one whole number each; None elsewhere."""
        ...


class ArraySamples:
    """Arrays with a leading axis of N, in memory or memory-mapped."""

    resident = True

    def __init__(self, inputs: Tree, targets: Tree | None, digest: str, place: Path | None = None) -> None:
        self.inputs, self.targets, self._digest, self.place = inputs, targets, digest, place
        self.lengths: np.ndarray | None = None
        self._count = len(next(leaf for _, leaf in leaves(inputs)))

    def __len__(self) -> int:
        return self._count

    def take(self, rows: np.ndarray, epoch: int | None = None) -> tuple[Tree, Tree | None]:
        """See Samples; the same in every epoch."""
        targets = None if self.targets is None else integers(taken(self.targets, rows))
        return taken(self.inputs, rows), targets

    def digest(self) -> str:
        """As it was computed over the contents when they were read."""
        return self._digest

    def labels(self) -> np.ndarray | None:
        """See Samples; of pairs that were not parted, the second part's."""
        pair = self.targets is None and isinstance(self.inputs, tuple) and len(self.inputs) == 2
        return labels_of(self.inputs[1] if pair else self.targets)


def labels_of(targets: Tree | None) -> np.ndarray | None:
    """int64 [N] where targets are one array of whole numbers, or hold one under `label` or `labels`; None elsewhere."""
    found = dict(leaves(targets)) if targets is not None else {}
    for name in ("", "label", "labels", "target"):
        if name in found and found[name].ndim == 1 and found[name].dtype.kind in "iu":
            return np.asarray(found[name], np.int64)
    return None


class TokenSamples(ArraySamples):
    """Encoded texts: a batch is as wide as its longest text, rounded up to STEP."""

    def __init__(self, samples: ArraySamples, names: tuple[str, ...], length: int) -> None:
        super().__init__(samples.inputs, samples.targets, samples.digest(), samples.place)
        self.names, self.length = names, length
        self.lengths = np.asarray(samples.inputs[COUNT], np.int64)

    def take(self, rows: np.ndarray, epoch: int | None = None) -> tuple[Tree, Tree | None]:
        """int64 [B, longest] by input name; targets as they are."""
        inputs, targets = super().take(rows, epoch)
        counts = np.asarray(inputs[COUNT], np.int64)
        width = min(self.length, rounded(int(counts.max(initial=1))))
        batch = {name: inputs[name][:, :width].astype(np.int64) for name in self.names if name in inputs}
        if "attention_mask" in self.names:
            batch["attention_mask"] = (np.arange(width) < counts[:, None]).astype(np.int64)
        return {name: batch[name] for name in self.names}, targets


def rounded(length: int) -> int:
    """The next multiple of STEP."""
    return -(-length // STEP) * STEP


class Subset:
    """Some rows of other samples, in the order given."""

    def __init__(self, parent: Samples, rows: np.ndarray) -> None:
        self.parent, self.rows = parent, np.asarray(rows, np.int64)
        self.resident, self.place = parent.resident, parent.place
        self.lengths = None if parent.lengths is None else parent.lengths[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray, epoch: int | None = None) -> tuple[Tree, Tree | None]:
        """Inputs and targets of the samples `rows`, int64 [B], each with a leading axis of B; targets None without."""
        return self.parent.take(self.rows[rows], epoch)

    def digest(self) -> str:
        """Over the parent's and the rows."""
        return hashlib.sha256(self.parent.digest().encode() + self.rows.tobytes()).hexdigest()[:16]

    def labels(self) -> np.ndarray | None:
        """int64 [N]: the class of every sample where targets are one whole number each; None elsewhere."""
        found = self.parent.labels()
        return None if found is None else found[self.rows]


class MapSamples:
    """A user's dataset with `__len__` and `__getitem__`, read when it is asked; `folder`: of the user's file.

    `collate`: makes one batch of a list of samples, as a DataLoader's does; None for stacking them.
    """

    resident = False
    place: Path | None = None
    lengths: np.ndarray | None = None

    def __init__(
        self, dataset: Any, what: str, folder: Path | None, collate: Callable[[list[Any]], Any] | None = None
    ) -> None:
        self.dataset, self.what, self.folder, self.collate = dataset, what, folder, collate
        self.augments = False
        self.convert: Callable[[Tree], Tree] | None = None  # of one sample's inputs, before they are stacked
        self.part: Callable[[Any, str], tuple[Tree, Tree | None]] = parted
        self._lock = threading.Lock()
        with guarded("data", f"len() of {what}", folder):
            self._count = len(dataset)

    def __len__(self) -> int:
        return self._count

    def take(self, rows: np.ndarray, epoch: int | None = None) -> tuple[Tree, Tree | None]:
        """See Samples. A dataset that augments is seeded by (epoch, rows), one reader at a time."""
        if not self.augments:
            return self._read(rows)
        with self._lock, seeded(rows, -1 if epoch is None else epoch):
            return self._read(rows)

    def _read(self, rows: np.ndarray) -> tuple[Tree, Tree | None]:
        with guarded("data", f"reading {self.what}", self.folder):
            samples = [self.dataset[int(row)] for row in rows]
        if self.collate is not None:
            with guarded("data", f"collate_fn of {self.what}", self.folder):
                batch = self.collate(samples)
            return self.part(batch, self.what)
        inputs, targets = zip(*(self.part(sample, self.what) for sample in samples), strict=True)
        if self.convert is not None:
            inputs = tuple(self.convert(each) for each in inputs)
        joined = stacked(inputs, f"{self.what}: inputs")
        return joined, None if targets[0] is None else integers(stacked(targets, f"{self.what}: targets"))

    def probe(self) -> bool:
        """Read a few samples twice, differently seeded; True, and `augments`, when they differ."""
        rows = np.unique(np.linspace(0, len(self) - 1, PROBED).astype(np.int64))
        with seeded(rows, 0):
            first = self._read(rows)
        with seeded(rows, 1):
            second = self._read(rows)
        pairs = zip(filled(first), filled(second), strict=False)
        self.augments = any(not same(a, b) for (_, a), (_, b) in pairs)
        return self.augments

    def digest(self) -> str:
        """Over the number of samples and the contents of a few; of a dataset that augments, over its number alone."""
        digest = hashlib.sha256(str(len(self)).encode())
        if not self.augments:
            rows = np.unique(np.linspace(0, len(self) - 1, 8 * PROBED).astype(np.int64))
            for row in rows:  # one by one: they may differ in shape
                for path, leaf in filled(self._read(np.array([row]))):
                    digest.update(path.encode() + content(leaf))
        return digest.hexdigest()[:16]

    def labels(self) -> np.ndarray | None:
        """Unknown without reading everything, unless the dataset has `targets`, as torchvision's have."""
        found = getattr(self.dataset, "targets", None)
        if isinstance(found, Sequence | np.ndarray) or hasattr(found, "numpy"):
            array = np.asarray(found)
            if array.shape == (len(self),) and array.dtype.kind in "iu":
                return array.astype(np.int64)
        return None


class seeded:  # noqa: N801 - used as a context manager
    """The global generators of Python, NumPy and torch seeded by rows and epoch inside, and as they were after."""

    def __init__(self, rows: np.ndarray, epoch: int) -> None:
        self.seed = int.from_bytes(hashlib.sha256(rows.tobytes() + str(epoch).encode()).digest()[:4])

    def __enter__(self) -> None:
        import random
        import sys

        self._torch = sys.modules.get("torch")
        self._states = (
            random.getstate(),
            np.random.get_state(),
            None if self._torch is None else self._torch.get_rng_state(),
        )
        random.seed(self.seed)
        np.random.seed(self.seed)
        if self._torch is not None:
            self._torch.default_generator.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        import random

        random.setstate(self._states[0])
        np.random.set_state(self._states[1])
        if self._torch is not None:
            self._torch.set_rng_state(self._states[2])


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal shapes and contents, NaN like NaN."""
    return a.shape == b.shape and content(a) == content(b)


def content(array: np.ndarray) -> bytes:
    """The bytes of an array; of text its UTF-8."""
    if array.dtype == object:
        return "\0".join(map(str, array.reshape(-1))).encode()
    return np.ascontiguousarray(array).tobytes()


def parted(sample: Any, what: str) -> tuple[Tree, Tree | None]:
    """`(inputs, target)` -> both as trees of arrays; anything else is inputs without a target.

    A mapping with `target`, `label`, `labels` or `y` beside others is parted into inputs and that target.
    """
    if isinstance(sample, tuple | list) and len(sample) == 2 and not _is_row(sample):
        return arrays(sample[0], f"{what}: inputs"), arrays(sample[1], f"{what}: target")
    if isinstance(sample, tuple | list) and len(sample) > 2 and not _is_row(sample):
        raise TaskError(
            f"{what}: a sample is a tuple of {len(sample)}; give (inputs, target), where inputs may be a tuple or a "
            "mapping of several",
            "data",
        )
    if hasattr(sample, "keys"):
        names = [name for name in ("target", "targets", "labels", "label", "y") if name in sample]
        if names and len(list(sample.keys())) > 1:
            rest = {key: sample[key] for key in sample if key != names[0]}
            return arrays(rest, f"{what}: inputs"), arrays(sample[names[0]], f"{what}: {names[0]}")
    if isinstance(sample, tuple | list) and len(sample) == 1:
        sample = sample[0]
    return arrays(sample, f"{what}: inputs"), None


def unparted(sample: Any, what: str) -> tuple[Tree, None]:
    """The whole sample as inputs."""
    return arrays(sample, what), None


def _is_row(sample: Sequence[Any]) -> bool:
    """A bare list of numbers: one input."""
    return isinstance(sample, list) and all(isinstance(value, int | float) for value in sample)
