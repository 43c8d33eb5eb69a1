"""What a trainer is told and what it gives back: the Trainer protocol and the data around it.

No framework is imported: the driver process reads this module too.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tasks.mnist.data import DataSet
from trainers.recipe import Recipe, RecipeError, choice


class TrainingError(RuntimeError):
    """Training ended without a usable model (NaN loss, sparsity not reached); the message is the reason."""


@dataclass(frozen=True)
class DenseSpec:
    """How a dense model is trained: the baseline of its recipes, and a teacher."""

    trainer: str
    model: str
    epochs: int = 8
    learning_rate: float = 1e-3
    batch_size: int = 128
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as JSON takes them."""
        return asdict(self)


@dataclass(frozen=True)
class Job:
    """What surrounds one piece of training: where, on which device, and whom to ask between batches.

    `pause` is called before every batch: it returns at once, or when a measurement on this host has ended.
    `progress(stage, fraction)` is told how far the stage is, fraction in [0, 1].
    """

    data: DataSet
    folder: Path
    format: str
    device: str = "auto"
    threads: int = 1
    pause: Callable[[], None] = lambda: None
    progress: Callable[[str, float], None] = lambda stage, fraction: None


@dataclass(frozen=True)
class Dense:
    """A trained dense model in the cache: `folder` holds the weights in the trainer's own format.

    `logits`: float32 [train size, classes], the model's outputs on the training split in its order: what a
    student of any framework learns from. `parameters`: number of trainable parameters.
    """

    spec: DenseSpec
    folder: Path
    logits: np.ndarray
    parameters: int

    def save(self, curve: list[dict[str, float]], versions: Mapping[str, str]) -> Dense:
        """Write `logits.npy` and `record.json` beside the weights; returns the model itself."""
        np.save(self.folder / "logits.npy", self.logits)
        record = {
            "spec": self.spec.to_dict(),
            "parameters": self.parameters,
            "curve": curve,
            "versions": dict(versions),
        }
        (self.folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")
        return self

    @staticmethod
    def open(spec: DenseSpec, folder: Path) -> Dense:
        """What `save` wrote; raises ValueError when the folder holds another model."""
        record = json.loads((folder / "record.json").read_text())
        if record["spec"] != spec.to_dict():
            raise ValueError(f"{folder}: holds the dense model of {record['spec']}, not of {spec.to_dict()}")
        return Dense(spec, folder, np.load(folder / "logits.npy"), record["parameters"])


@dataclass(frozen=True)
class Compressed:
    """What a recipe gave. `file`: the exported model in the job's folder.

    `sparsity`: share of the dense model's prunable weights that are zero or removed, counted in the final weights.
    `pruned`: what the recipe's `pruning.sparsity` asked for, as reached (for `channel`: channels removed).
    `labels`: int64 [validation size], predictions of the in-framework model that was exported (fake-quantized
    for QAT): the exported file is compared with them. `stages`: seconds each. `curves`: one dict per epoch.
    """

    file: Path
    sparsity: float
    pruned: float
    labels: np.ndarray
    stages: dict[str, float]
    curves: list[dict[str, float]]


@dataclass(frozen=True)
class Capabilities:
    """What a trainer can do, as data: the driver checks a study against it without importing the framework."""

    models: tuple[str, ...]
    granularities: tuple[str, ...]
    schemes: tuple[str, ...]
    clusters: tuple[int, ...]
    formats: tuple[str, ...]

    def problems(self, recipe: Recipe) -> list[str]:
        """Every reason, in words, why this trainer cannot carry out the recipe; empty when it can."""
        asked = (
            ("model", recipe.model, self.models),
            ("pruning.granularity", recipe.pruning.granularity, self.granularities),
            ("quantization.scheme", recipe.quantization.scheme, self.schemes),
            ("quantization.clusters", recipe.quantization.clusters, self.clusters),
        )
        return [
            f"{name}: the {recipe.trainer} trainer has no {value!r}; choose from {', '.join(map(str, valid))}"
            for name, value, valid in asked
            if value not in valid
        ]


class Trainer(Protocol):
    """Trains dense models and compresses them. Each lives in `trainers/NAME`, class `Trainer` in `trainer.py`."""

    def versions(self) -> dict[str, str]:
        """Package name -> version of what decides the result."""
        ...

    def dense(self, spec: DenseSpec, job: Job) -> Dense:
        """Train the dense model, write it to `job.folder` with its logits; deterministic in `spec` and the data."""
        ...

    def open_dense(self, spec: DenseSpec, folder: Path) -> Dense:
        """A dense model that `dense` wrote to `folder` earlier."""
        ...

    def compress(self, recipe: Recipe, dense: Dense, teacher: np.ndarray | None, job: Job) -> Compressed:
        """Carry out the recipe and export one file `model.<format>` into `job.folder`.

        `teacher`: float32 [train size, classes] logits, None without distillation. Raises RecipeError for a
        recipe this trainer cannot do, TrainingError when training fails. The dense files are left unchanged.
        """
        ...


TRAINERS = ("pytorch", "tensorflow")


def capabilities(trainer: str) -> Capabilities:
    """The named trainer's capabilities; imports no framework."""
    choice("trainer", trainer, TRAINERS)
    found: Capabilities = importlib.import_module(f"trainers.{trainer}").CAPABILITIES
    return found


def load(trainer: str) -> Trainer:
    """The named trainer; imports its framework."""
    choice("trainer", trainer, TRAINERS)
    made: Trainer = importlib.import_module(f"trainers.{trainer}.trainer").Trainer()
    return made


def check(recipe: Recipe) -> None:
    """Raise RecipeError with every reason why the recipe's trainer cannot carry it out."""
    if problems := capabilities(recipe.trainer).problems(recipe):
        raise RecipeError("; ".join(problems))


def narrowed(channels: int, sparsity: float) -> int:
    """Channels kept of a layer with `channels` when `sparsity` of them are removed: rounded, never below one step.

    Widths are rounded to 16 for layers of 64 and more channels, to 4 for smaller ones: vector kernels work in
    such groups (ResNet-18 at 50 % ran twice as fast rounded as unrounded).
    """
    step = 16 if channels >= 64 else 4
    if channels <= step:
        return channels
    return min(channels, max(step, step * round(channels * (1 - sparsity) / step)))
