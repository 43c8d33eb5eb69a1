"""Samples decoded once: arrays written into the cache, from any iterator, and read back memory-mapped."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from tasks import cache
from tasks.base import Progress, TaskError
from tasks.samples import ArraySamples, content
from tasks.tree import Tree, form, leaves, of_form, rebuilt

META = "samples.json"
MAPPED_BYTES = 256_000_000  # a larger array is memory-mapped, a smaller one read into memory
FREE_SHARE = 0.8  # of the free disk that decoded samples may take

Pair = tuple[Tree, Tree | None]


@dataclass
class _Column:
    """One leaf under way to its file."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    file: IO[bytes]
    rows: int = 0
    not_numbers: list[int] = field(default_factory=list)
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, block: np.ndarray, what: str) -> None:
        """Append rows [B, ...]."""
        if block.shape[1:] != self.shape or block.dtype != self.dtype:
            raise TaskError(
                f"{what} {self.path!r}: sample {self.rows} and the next differ from the first: {block.dtype} "
                f"{list(block.shape[1:])}, not {self.dtype} {list(self.shape)}; bring all samples to one shape and "
                "type, or give a DataLoader whose collate_fn pads them",
                "data",
            )
        if block.dtype.kind == "f" and not np.isfinite(block).all():
            flat = ~np.isfinite(block).reshape(len(block), -1).all(axis=1)
            self.not_numbers += [self.rows + int(i) for i in np.flatnonzero(flat)][: 5 - len(self.not_numbers)]
        if block.size and block.dtype.kind in "fiu":
            with np.errstate(invalid="ignore"):
                self.low, self.high = min(self.low, float(block.min())), max(self.high, float(block.max()))
        self.file.write(np.ascontiguousarray(block).tobytes())
        self.rows += len(block)

    def about(self) -> dict[str, Any]:
        """What is written beside the files."""
        span = [self.low, self.high] if self.low <= self.high else None
        return {
            "path": self.path,
            "shape": list(self.shape),
            "dtype": str(self.dtype),
            "not_numbers": self.not_numbers,
            "span": span,
        }


class Writer:
    """Writes batches of samples into a folder of the cache."""

    def __init__(self, folder: Path, what: str) -> None:
        self.folder, self.what = folder, what
        self._columns: list[_Column] = []
        self._forms: Any = None
        self._digest = hashlib.sha256()
        self.count = 0

    def add(self, inputs: Tree, targets: Tree | None) -> None:
        """Samples with a leading axis."""
        pair = {"inputs": inputs} if targets is None else {"inputs": inputs, "targets": targets}
        found = list(leaves(pair))
        if self._forms is None:
            self._forms = form(pair)
            self._columns = [self._column(index, path, leaf) for index, (path, leaf) in enumerate(found)]
        elif form(pair) != self._forms:
            raise TaskError(f"{self.what}: sample {self.count} has another structure than the first", "data")
        for column, (_, leaf) in zip(self._columns, found, strict=True):
            column.add(leaf, self.what)
            self._digest.update(content(leaf))
        self.count += len(found[0][1])

    def _column(self, index: int, path: str, leaf: np.ndarray) -> _Column:
        if leaf.dtype == object:
            raise TaskError(f"{self.what}: {path!r} is text; only a text model (hf:) takes text", "data")
        return _Column(path, leaf.shape[1:], leaf.dtype, (self.folder / f"{index}.bin").open("wb"))

    def close(self, facts: Mapping[str, Any]) -> None:
        """Write what is needed to read the arrays back."""
        for column in self._columns:
            column.file.close()
        if not self.count:
            raise TaskError(f"{self.what}: has no samples", "data")
        shapes = json.dumps([column.about() for column in self._columns], sort_keys=True)
        self._digest.update(shapes.encode())
        meta = {
            "form": self._forms,
            "count": self.count,
            "columns": [column.about() for column in self._columns],
            "digest": self._digest.hexdigest()[:16],
            "facts": dict(facts),
        }
        (self.folder / META).write_text(json.dumps(meta, indent=1) + "\n")


def stored(
    home: Path,
    key: Mapping[str, Any],
    batches: Callable[[], Iterable[Pair]],
    what: str,
    progress: Progress,
    facts: Callable[[], Mapping[str, Any]] = dict,
) -> ArraySamples:
    """The samples of `batches`, written once into the cache below `home` and read from there.

    `key`: what decides their contents. `facts`: asked for after the last batch and kept beside them.
    """
    folder = cache.entry(home, "data", key)

    def make(partial: Path) -> None:
        writer = Writer(partial, what)
        for inputs, targets in batches():
            writer.add(inputs, targets)
        writer.close(facts())

    cache.fill(folder, make, key, progress)
    return opened(folder)


def opened(folder: Path) -> ArraySamples:
    """What `stored` wrote."""
    meta = about(folder)
    columns = []
    for index, column in enumerate(meta["columns"]):
        shape, dtype = (meta["count"], *column["shape"]), np.dtype(column["dtype"])
        columns.append(_read(folder / f"{index}.bin", shape, dtype))
    pair = rebuilt(of_form(meta["form"]), iter(columns))
    return ArraySamples(pair["inputs"], pair.get("targets"), meta["digest"], folder)


def about(folder: Path) -> dict[str, Any]:
    """What was written beside the samples: columns with dtype, shape, span and rows that are no numbers; facts."""
    return dict(_meta(folder / META))


@functools.lru_cache(maxsize=64)
def _meta(file: Path) -> Mapping[str, Any]:
    meta: Mapping[str, Any] = json.loads(file.read_text())
    return meta


def _read(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if not np.prod(shape):
        return np.zeros(shape, dtype)
    if file.stat().st_size > MAPPED_BYTES:
        return np.memmap(file, dtype, "r", shape=shape)
    return np.fromfile(file, dtype).reshape(shape)


def travelled(home: Path, wanted: Mapping[str, Any]) -> list[Path]:
    """Folders of samples whose key holds all of `wanted`: how they are found where the source itself is not."""
    found = []
    for file in sorted((home / "data").glob(f"*/{cache.KEY}")):
        key = json.loads(file.read_text())
        holds_samples = (file.parent / META).is_file()
        if holds_samples and all(key.get(name) == value for name, value in wanted.items()) and cache.get(file.parent):
            found.append(file.parent)
    return found


def fits(home: Path, size: int) -> bool:
    """Whether `size` bytes may be written below `home`."""
    home.mkdir(parents=True, exist_ok=True)
    return size < FREE_SHARE * shutil.disk_usage(home).free
