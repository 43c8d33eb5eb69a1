"""MNIST as a task: handwritten digits, ten classes, accuracy; LeNets in both frameworks."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base import ACCURACY, SPLITS, Arrays, Batch, Port, Serving, TaskInfo, TaskSpec, class_agreement, code_digest
from tasks.mnist import data
from tasks.mnist.data import MEAN, STD, DataSet, Split, normalized

NAME = "mnist"
# Trainer -> the networks of tasks/mnist/{pytorch,tensorflow}.py, which import a framework and cannot be asked here.
MODELS = {
    "pytorch": ("lenet5", "lenet300", "convnet", "teacher"),
    "tensorflow": ("lenet5", "lenet300", "convnet", "mlp128"),
}
INPUT = Port("input", ("batch", 1, 28, 28), "float32", "NCHW")
OUTPUT = Port("logits", ("batch", 10), kind="logits")
CLASSES = tuple("0123456789")
LICENSE = "CC BY-SA 3.0 (Yann LeCun and Corinna Cortes, derived from NIST)"
SERVING = Serving(
    "image",
    {"mode": "L", "size": [28, 28], "resize": [28, 28], "mean": [MEAN], "std": [STD]},
    "label",
    CLASSES,
)
# The task of a sweep whose record names none: those of version 0.1, which knew no other.
RECORDED_WITHOUT = TaskInfo(
    NAME, MODELS, (INPUT,), (OUTPUT,), (ACCURACY,), "", classes=CLASSES, serving=SERVING.to_dict(), license=LICENSE
)


class Pixels:
    """A split as the models take it: float32 [B, 1, 28, 28] normalized pixels, int64 [B] labels."""

    resident = True
    shuffled = True

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, rows: np.ndarray, epoch: int | None = None) -> Batch:
        """The samples `rows`, int64 [B]; the same in every epoch."""
        return Batch({INPUT.name: normalized(self.split.images[rows], "NCHW")}, self.split.labels[rows])


class Accuracy:
    """The fraction of samples whose largest logit is at the label."""

    def __init__(self) -> None:
        self.right = self.seen = 0

    def add(self, outputs: Arrays, batch: Batch) -> None:
        """One batch: logits [B, 10] and the samples."""
        self.right += int(np.sum(outputs[OUTPUT.name].argmax(1) == batch.targets))
        self.seen += len(batch.targets)

    def result(self) -> dict[str, float]:
        """`{"accuracy": fraction}`."""
        return {ACCURACY.name: self.right / self.seen}


class Mnist:
    """See `tasks.base.Task`. `spec.source`: a folder with the original files, if you have them.

    `home`: the cache, where the splits lie once they are fetched. The sizes of `spec` take a stratified subset.
    """

    def __init__(self, spec: TaskSpec, home: Path, progress: Callable[[str, float], None]) -> None:
        self._spec, self._home, self._progress = spec, home, progress

    @functools.cached_property
    def dataset(self) -> DataSet:
        """Train and validation; raises ValueError for a bad size, DataError when no source works."""
        sizes = {"train_size": self._spec.train_size, "validation_size": self._spec.validation_size}
        return data.load(NAME, self._home, folder=self._folder(), **sizes, progress=self._progress)

    def info(self) -> TaskInfo:
        """What the driver needs to know."""
        return self._info

    @functools.cached_property
    def _info(self) -> TaskInfo:
        return TaskInfo(
            name=NAME,
            models=MODELS,
            inputs=(INPUT,),
            outputs=(OUTPUT,),
            metrics=(ACCURACY,),
            data_digest=self.dataset.digest,
            code_digest=code_digest([Path(__file__).with_name(f"{trainer}.py") for trainer in MODELS]),
            classes=CLASSES,
            places={split: f"data/{NAME}/{split}" for split in SPLITS},
            counts={"train": len(self.dataset.train), "validation": len(self.dataset.validation), "test": 10_000},
            license=LICENSE,
        )

    def data(self, split: str) -> Pixels:
        """One of SPLITS; `test` is read from its files here and nowhere else."""
        assert split in SPLITS
        if split == "test":
            return Pixels(data.open_test(NAME, self._home, self._folder(), self._progress))
        return Pixels(getattr(self.dataset, split))

    def scorer(self) -> Accuracy:
        """A new one, with nothing added."""
        return Accuracy()

    def agreement(self, file: Arrays, model: Arrays) -> float:
        """Fraction of samples that both label alike."""
        return class_agreement((OUTPUT,), file, model)

    def program(self, trainer: str) -> Any:
        """The TorchProgram or the KerasProgram; imports the framework."""
        return importlib.import_module(f"tasks.mnist.{trainer}").Program()

    def serving(self) -> Serving:
        """Grey images of 28 x 28 pixels in 0..255 are scaled and normalized, and answered with a digit."""
        return SERVING

    def _folder(self) -> Path | None:
        return Path(self._spec.folder, Path(self._spec.source).expanduser()) if self._spec.source else None
