"""Data sets as NumPy arrays with fixed train, validation and test splits; every source's digest is checked.

MNIST: the original 60,000 are split once and for all, stratified by label, into train 55,000 and validation
5,000; the original 10,000 are the test split. Every split keeps the order of the original files.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks import cache as cached
from tasks.fetch import Progress, SourceError
from tasks.mnist import sources
from tasks.splits import stratified

NAMES = ("mnist",)
LAYOUTS = ("NCHW", "NHWC")
MEAN, STD = 0.1307, 0.3081  # of MNIST's training pixels in [0, 1]
VALIDATION_SIZE = 5_000
SPLIT_SEED, SUBSET_SEED = 20261123, 7

log = logging.getLogger(__name__)


class DataError(RuntimeError):
    """No source gave the original data; the message names each, why it failed, and the remedy."""


@dataclass(frozen=True)
class Split:
    """`images`: uint8 [N, 28, 28]; `labels`: int64 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: np.ndarray) -> Split:
        return Split(self.images[chosen], self.labels[chosen])

    def digest(self) -> str:
        """64 hex digits: sha256 over the images' bytes, then the labels' as uint8, as the original files hold them."""
        digest = hashlib.sha256(self.images.tobytes())
        digest.update(self.labels.astype(np.uint8).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class DataSet:
    """What training and search may see; the test split is opened by `open_test` alone.

    `digest`: 16 hex digits over the arrays of train and validation as they are here.
    """

    name: str
    train: Split
    validation: Split
    digest: str
    classes: int = 10


def _silent(stage: str, fraction: float) -> None:
    pass


def load(
    name: str,
    cache: Path,
    *,
    folder: Path | None = None,
    train_size: int | None = None,
    validation_size: int | None = None,
    progress: Progress = _silent,
) -> DataSet:
    """Train and validation of the named data set, fetched once into `cache`; the test split's files are not opened.

    `folder` may hold the original files. The sizes take a stratified subset, the same every time; a smaller
    one is part of a larger one. Raises ValueError for a bad name or size, DataError when no source works.
    """
    train, validation = (_open(name, split, cache, folder, progress) for split in ("train", "validation"))
    train = _subset("train_size", train, train_size)
    validation = _subset("validation_size", validation, validation_size)
    digest = hashlib.sha256((train.digest() + validation.digest()).encode()).hexdigest()[:16]
    return DataSet(name, train, validation, digest)


def open_test(name: str, cache: Path, folder: Path | None = None, progress: Progress = _silent) -> Split:
    """The test split: read once, for the confirmed front. The only place that opens it; errors as `load`."""
    return _open(name, "test", cache, folder, progress)


def normalized(images: np.ndarray, layout: str) -> np.ndarray:
    """uint8 [N, 28, 28] -> float32 [N, 1, 28, 28] (NCHW) or [N, 28, 28, 1] (NHWC), (x / 255 - MEAN) / STD.

    The one preprocessing step: it stays outside the exported file, in the tool that feeds it.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: {layout!r} is not valid; choose from {', '.join(LAYOUTS)}")
    scaled = (images.astype(np.float32) / 255.0 - MEAN) / STD
    return np.ascontiguousarray(scaled[:, None] if layout == "NCHW" else scaled[..., None], dtype=np.float32)


def _subset(field: str, split: Split, size: int | None) -> Split:
    if size is None or size == len(split):
        return split
    least = len(np.unique(split.labels))
    if not least <= size <= len(split):
        raise ValueError(f"{field}: {size!r} must lie between {least} and {len(split)}, or be left out for all")
    return split[stratified(split.labels, size, SUBSET_SEED)]


def _open(name: str, split: str, cache: Path, folder: Path | None, progress: Progress) -> Split:
    if name not in NAMES:
        raise ValueError(f"data: {name!r} is not a data set; choose from {', '.join(NAMES)}")
    home = cache / "data" / name
    if not cached.get(home / split):
        _prepare(home, split, folder, progress)
    return Split(np.load(home / split / "images.npy"), np.load(home / split / "labels.npy"))


def _prepare(home: Path, wanted: str, folder: Path | None, progress: Progress) -> None:
    """Write every split that is not there; whoever comes second waits and finds them."""
    with cached.locked(home / "originals", progress):
        if cached.get(home / wanted):
            return
        scratch = home / ".fetch"
        shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
        try:
            original = _fetch(home.name, scratch, folder, progress)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        chosen = stratified(original["train"].labels, VALIDATION_SIZE, SPLIT_SEED)
        rest = np.setdiff1d(np.arange(len(original["train"])), chosen)
        parts = {
            "train": (original["train"], rest),
            "validation": (original["train"], chosen),
            "test": (original["test"], np.arange(len(original["test"]))),
        }
        for done, (name, (source, positions)) in enumerate(parts.items()):
            progress("writing the splits", done / len(parts))
            if name == wanted or not (home / name).exists():  # an existing test split stays closed
                cached.fill(home / name, functools.partial(_save, source, positions))
        progress("writing the splits", 1.0)


def _save(source: Split, positions: np.ndarray, folder: Path) -> None:
    """`positions.npy` says where each sample stands in the original files, for whoever repeats the split."""
    np.save(folder / "images.npy", source.images[positions])
    np.save(folder / "labels.npy", source.labels[positions])
    np.save(folder / "positions.npy", positions)


def _fetch(name: str, scratch: Path, folder: Path | None, progress: Progress) -> dict[str, Split]:
    """The original train and test arrays from the first source whose digests are right."""
    failures = []
    for source, fetch in sources.sources(folder):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            arrays = fetch(scratch, progress)
            splits = {part: Split(images, labels.astype(np.int64)) for part, (images, labels) in arrays.items()}
            for part, split in splits.items():
                if split.digest() != sources.DIGESTS[part]:
                    raise SourceError(f"its {part} images and labels are not those of the original files")
            return splits
        except SourceError as error:
            log.warning("%s: %s was not used: %s", name, source, error)
            failures.append(f"  {source}: {error}")
    tried = "\n".join(failures)
    raise DataError(
        f"{name}: no source gave the original data\n{tried}\n"
        f"Put {', '.join(sources.FILES)} into a folder and name it with study.task.source=FOLDER, "
        "or connect to a network"
    )
