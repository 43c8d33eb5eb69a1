"""CIFAR-10 as a task: 32 x 32 colour images, ten classes, accuracy; ResNet-20 in PyTorch.

The original 50,000 are split once and for all, stratified by label, into train 45,000 and validation 5,000; the
original 10,000 are the test split.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np

from tasks import cache
from tasks.base import (
    ACCURACY,
    Arrays,
    Batch,
    Port,
    Progress,
    Serving,
    TaskInfo,
    TaskSpec,
    class_agreement,
    code_digest,
)
from tasks.cifar10.sources import CLASSES, originals
from tasks.mnist.task import Accuracy
from tasks.splits import stratified

NAME = "cifar10"
LICENSE = "none stated by its author (Alex Krizhevsky, 2009); widely used for research"
MODELS = {"pytorch": ("resnet20",)}
INPUT = Port("input", ("batch", 3, 32, 32), "float32", "NCHW")
OUTPUT = Port("logits", ("batch", 10), kind="logits")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training pixels in [0, 1]
VALIDATION_SIZE = 5_000
SPLIT_SEED, SUBSET_SEED = 20261125, 7


class Pictures:
    """A split: uint8 [N, 3, 32, 32] pixels that become float32, normalized, batch by batch; int64 [N] labels."""

    resident = True

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: np.ndarray, epoch: int | None = None) -> Batch:
        """The samples `rows`, int64 [B]; the same in every epoch."""
        mean, std = (np.array(each, np.float32)[:, None, None] for each in (MEAN, STD))
        pixels = (self.images[rows].astype(np.float32) / 255.0 - mean) / std
        return Batch({INPUT.name: pixels}, self.labels[rows])


class Cifar10:
    """See `tasks.base.Task`. `spec.source`: a folder with the binary version, if you have it."""

    def __init__(self, spec: TaskSpec, home: Path, progress: Progress) -> None:
        self._spec, self._home, self._progress = spec, home, progress

    def info(self) -> TaskInfo:
        """What the driver needs to know."""
        return self._info

    @functools.cached_property
    def _info(self) -> TaskInfo:
        parts = {split: self.data(split) for split in ("train", "validation")}
        digest = hashlib.sha256()
        for part in parts.values():
            digest.update(np.ascontiguousarray(part.images).tobytes() + part.labels.tobytes())
        return TaskInfo(
            name=NAME,
            models=MODELS,
            inputs=(INPUT,),
            outputs=(OUTPUT,),
            metrics=(ACCURACY,),
            data_digest=digest.hexdigest()[:16],
            code_digest=code_digest([Path(__file__).with_name("pytorch.py")]),
            classes=CLASSES,
            counts={**{split: len(part) for split, part in parts.items()}, "test": 10_000},
            places={split: f"data/{NAME}/{split}" for split in ("train", "validation", "test")},
            license=LICENSE,
        )

    @functools.cache  # noqa: B019 — a task lives as long as its worker
    def data(self, split: str) -> Pictures:
        """One of SPLITS; fetched once into the cache."""
        folder = self._home / "data" / NAME / split
        if not cache.get(folder):
            self._fetch(split)
        images, labels = np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy")
        size = {"train": self._spec.train_size, "validation": self._spec.validation_size}.get(split)
        if size is not None and size < len(labels):
            chosen = stratified(labels, size, SUBSET_SEED)
            images, labels = images[chosen], labels[chosen]
        return Pictures(images, labels)

    def _fetch(self, wanted: str) -> None:
        home = self._home / "data" / NAME
        with cache.locked(home / "originals", self._progress):
            if cache.get(home / wanted):
                return
            source = Path(self._spec.folder, Path(self._spec.source).expanduser()) if self._spec.source else None
            found = originals(source, home / ".fetch", self._progress)
            images, labels = found["train"]
            chosen = stratified(labels.astype(np.int64), VALIDATION_SIZE, SPLIT_SEED)
            rest = np.setdiff1d(np.arange(len(labels)), chosen)
            parts = {"train": (images[rest], labels[rest]), "validation": (images[chosen], labels[chosen])}
            for split, part in {**parts, "test": found["test"]}.items():
                if split == wanted or not (home / split).exists():  # an existing test split stays closed
                    cache.fill(home / split, functools.partial(_save, *part))

    def scorer(self) -> Accuracy:
        """A new one, with nothing added."""
        return Accuracy()

    def agreement(self, file: Arrays, model: Arrays) -> float:
        """Fraction of samples that both label alike."""
        return class_agreement((OUTPUT,), file, model)

    def program(self, trainer: str) -> Any:
        """The TorchProgram; imports the framework."""
        return importlib.import_module(f"tasks.{NAME}.{trainer}").Program()

    def serving(self) -> Serving:
        """Colour images are brought to 32 x 32 pixels, scaled and normalized, and answered with a class."""
        options = {"mode": "RGB", "size": [32, 32], "resize": [32, 32], "mean": list(MEAN), "std": list(STD)}
        return Serving("image", options, "label", CLASSES)


def _save(images: np.ndarray, labels: np.ndarray, folder: Path) -> None:
    np.save(folder / "images.npy", np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    np.save(folder / "labels.npy", labels.astype(np.int64))
