"""What a trainer is told and what it gives back: the Trainer protocol and the data around it.

No framework is imported: the driver process reads this module too.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tasks.base import Arrays, Task, TaskInfo, digest_of
from trainers.recipe import Recipe, RecipeError, choice

# Of a dense model's outputs on the training split: what is larger is not kept, and the teacher runs in every step.
CACHED_BYTES = 1_000_000_000
# Of an exported model's outputs on the first rows of the validation split, by which the file is judged.
COMPARED_BYTES, COMPARED_ROWS = 32_000_000, 5_000
# Folder beside an exported file where the trainer writes the network itself, in a form that needs none of our code.
NETWORK = "network"


class TrainingError(RuntimeError):
    """Training ended without a usable model (NaN loss, sparsity not reached); the message is the reason."""


@dataclass(frozen=True)
class DenseSpec:
    """How a dense model is made: the baseline of its recipes, and a teacher.

    `task`: what `task_digest` gives, so that the model of one task is never taken for another's. Epochs may be a
    fraction. `augment`: as FineTuning's, for a teacher that is asked about moved images. Of a task whose model is
    trained already nothing but trainer, model and task has a meaning.
    """

    trainer: str
    model: str
    epochs: float = 8
    learning_rate: float = 1e-3
    batch_size: int = 128
    seed: int = 0
    task: str = ""
    augment: str = "none"

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as JSON takes them; without `augment` where there is none, as version 0.1 wrote them."""
        values = asdict(self)
        return values if self.augment != "none" else {k: v for k, v in values.items() if k != "augment"}


class Pause(Protocol):
    """Asked before every batch: returns at once, or when a measurement on this host has ended.

    `leaving` is called before a measurement is let in: whatever works beside the training finishes in it.
    """

    def __call__(self, leaving: Callable[[], object] | None = None) -> None:
        """Wait where a measurement waits."""
        ...


def _no_pause(leaving: Callable[[], object] | None = None) -> None:
    pass


class Timer(Protocol):
    """Measures exported files side by side on what the study deploys to. `target`: what that is, in words."""

    target: str

    def __call__(self, files: Sequence[Path]) -> list[float]:
        """Seconds that one call of each file takes; rough, in a second or two for all of them."""
        ...


@dataclass(frozen=True)
class Job:
    """What surrounds one piece of training: task, place, device, and whom to ask between batches.

    `progress(stage, fraction)` is told how far the stage is, fraction in [0, 1]. `checkpoints`: where the state of a
    long training is kept until it has ended; the folder itself where there is none. `timer`: how fast files are, by
    which a trainer keeps float what integers make slower; `decisions`: where it keeps what it then decides, once for
    each architecture and target, so that equal recipes give equal files. Without them nothing is decided by time.
    `networks`: where a trainer may keep fine-tuned networks, for recipes that differ only in what follows.
    """

    task: Task
    folder: Path
    format: str
    device: str = "auto"
    threads: int = 1
    pause: Pause = _no_pause
    progress: Callable[[str, float], None] = lambda stage, fraction: None
    checkpoints: Path | None = None
    timer: Timer | None = None
    decisions: Path | None = None
    networks: Path | None = None


@dataclass(frozen=True)
class Dense:
    """A trained dense model in the cache: `folder` holds the weights in the trainer's own format.

    `outputs`: float32 [train size, ...] by output name, the model's outputs on the training split in its order: what
    a student of any framework learns from. None where they are larger than CACHED_BYTES or the task says that a
    teacher runs `online`. `parameters`: number of trainable parameters.
    """

    spec: DenseSpec
    folder: Path
    parameters: int
    outputs: Arrays | None = None

    def save(self, curve: list[dict[str, float]], versions: Mapping[str, str]) -> Dense:
        """Write the outputs, one `.npy` each, and `record.json` beside the weights; returns the model itself."""
        names = None if self.outputs is None else list(self.outputs)
        for index, name in enumerate(names or ()):
            np.save(self.folder / _file(index), (self.outputs or {})[name])
        record = {
            "spec": self.spec.to_dict(),
            "parameters": self.parameters,
            "outputs": names,
            "curve": curve,
            "versions": dict(versions),
        }
        (self.folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")
        return self

    @staticmethod
    def open(spec: DenseSpec, folder: Path) -> Dense:
        """What `save` wrote, of any trainer; the outputs stay on disk until they are read.

        Raises ValueError when the folder holds another model.
        """
        record = json.loads((folder / "record.json").read_text())
        if record["spec"] != spec.to_dict():
            raise ValueError(f"{folder}: holds the dense model of {record['spec']}, not of {spec.to_dict()}")
        names = record["outputs"]
        outputs = None
        if names is not None:
            outputs = {name: np.load(folder / _file(index), mmap_mode="r") for index, name in enumerate(names)}
        return Dense(spec, folder, record["parameters"], outputs)


def _file(index: int) -> str:
    """Where an output is kept: by its place, since its name may hold what no file's name can."""
    return f"output{index}.npy"


@dataclass(frozen=True)
class Teacher:
    """Whom a student learns from: `outputs` as `Dense.outputs`, else `dense`, which then runs in every step.

    A model of another trainer teaches by its outputs alone.
    """

    outputs: Arrays | None = None
    dense: Dense | None = None

    @staticmethod
    def of(dense: Dense) -> Teacher:
        """The dense model as a teacher."""
        return Teacher(dense.outputs, dense)

    def check(self, recipe: Recipe, info: TaskInfo) -> None:
        """Raise RecipeError where the recipe's student cannot learn from this teacher."""
        rows = info.counts.get("train", 0)
        if self.outputs is None:
            if self.dense is None or self.dense.spec.trainer != recipe.trainer:
                given = "none" if self.dense is None else f"a live model of the {self.dense.spec.trainer} trainer"
                raise RecipeError(
                    f"distillation: needs the teacher's outputs on the {rows} training samples, or a teacher of the "
                    f"{recipe.trainer} trainer itself; given {given}"
                )
            return
        for port in info.outputs:
            given = "none" if port.name not in self.outputs else f"of shape {self.outputs[port.name].shape}"
            if port.name not in self.outputs or len(self.outputs[port.name]) != rows:
                raise RecipeError(
                    f"distillation: needs the teacher's {port.name} on the {rows} training samples; given {given}"
                )


@dataclass(frozen=True)
class Compressed:
    """What a recipe gave. `file`: the exported model in the job's folder.

    `sparsity`: share of the dense model's prunable weights that are zero or removed, counted in the final weights.
    `pruned`: what the recipe's `pruning.sparsity` asked for, as reached (for `channel`: channels removed).
    `outputs`: by output name, of the in-framework model that was exported (fake-quantized for QAT) on the first `rows`
    samples of the validation split: the exported file is compared with them. `stages`: seconds each. `curves`: one
    dict per epoch. `notes`: what was decided on the way and what could not be done, in words.
    """

    file: Path
    sparsity: float
    pruned: float
    outputs: Arrays
    rows: int
    stages: dict[str, float]
    curves: list[dict[str, float]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Capabilities:
    """What a trainer can do, as data: the driver checks a study against it without importing the framework.

    Which models it can do it with is the task's business: `TaskInfo.models`. `tuning`: what of FineTuning beyond
    epochs, learning rate and batch size. `trains`: without it all recipes are applied after training, pruning too.
    """

    granularities: tuple[str, ...]
    schemes: tuple[str, ...]
    clusters: tuple[int, ...]
    formats: tuple[str, ...]
    tuning: tuple[str, ...] = ()
    scores: tuple[str, ...] = ("magnitude",)
    trains: bool = True
    allocations: tuple[str, ...] = ("uniform",)
    importances: tuple[str, ...] = ("magnitude",)
    recoveries: tuple[str, ...] = ("none",)
    trainables: tuple[str, ...] = ("all", "norm_bias_head")

    def problems(self, recipe: Recipe) -> list[str]:
        """Every reason, in words, why this trainer cannot carry out the recipe; empty when it can."""
        asked: list[tuple[str, object, tuple[object, ...]]] = [
            ("pruning.granularity", recipe.pruning.granularity, self.granularities),
            ("quantization.scheme", recipe.quantization.scheme, self.schemes),
            ("quantization.clusters", recipe.quantization.clusters, self.clusters),
            ("pruning.score", recipe.pruning.score, self.scores),
            ("pruning.allocation", recipe.pruning.allocation, self.allocations),
            ("pruning.importance", recipe.pruning.importance, self.importances),
            ("pruning.recovery", recipe.pruning.recovery, self.recoveries),
        ]
        if "trainable" in self.tuning:
            asked.append(("finetuning.trainable", recipe.finetuning.trainable, self.trainables))
        if self.scores == ("magnitude",):
            asked += [(f"pruning.{name}", getattr(recipe.pruning, name), (0.0,)) for name in ("group", "channels")]
        found = [
            f"{name}: the {recipe.trainer} trainer has no {value!r}; choose from {', '.join(map(str, valid))}"
            for name, value, valid in asked
            if value not in valid
        ]
        if not self.trains and recipe.distillation.kind != "none":
            found.append(
                f"distillation.kind: the {recipe.trainer} trainer trains nothing, so there is no student; choose none"
            )
        return found + [
            f"finetuning.{each.name}: the {recipe.trainer} trainer has none; leave it out"
            for each in fields(recipe.finetuning)
            if each.metadata.get("later") and each.name not in self.tuning
            if getattr(recipe.finetuning, each.name) != each.default
        ]


class Trainer(Protocol):
    """Makes dense models and compresses them. Ours live in `trainers/NAME`, class `Trainer` in `trainer.py`.

    One of another package is found by its entry point in the group `pare.trainers`, or by `package.module:NAME`: a
    class with no arguments whose attribute CAPABILITIES says what it can do. Its module imports no framework before it
    is used: the driver reads the capabilities.
    """

    def versions(self) -> dict[str, str]:
        """Package name -> version of what decides the result."""
        ...

    def dense(self, spec: DenseSpec, job: Job) -> Dense:
        """Train the dense model, or take the task's trained one as it is, and write it to `job.folder`.

        Deterministic in `spec` and the data.
        """
        ...

    def open_dense(self, spec: DenseSpec, folder: Path) -> Dense:
        """A dense model that `dense` wrote to `folder` earlier."""
        ...

    def compress(self, recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> Compressed:
        """Carry out the recipe and export one file `model.<format>` into `job.folder`.

        `teacher`: None without distillation. Raises RecipeError for a recipe this trainer cannot do with this task,
        TrainingError when training fails. The dense files are left unchanged.
        """
        ...

    def shape(self, recipe: Recipe, dense: Dense, job: Job) -> Path | None:
        """Export `model.<format>` as `compress` would, without training: equal in its graph and in every shape.

        About as many weights are zero, so the file's size is near. None where this trainer cannot know; one without
        this method never knows. Raises as `compress` does.
        """
        return None


def shape_of(trainer: Trainer, recipe: Recipe, dense: Dense, job: Job) -> Path | None:
    """What `Trainer.shape` gives; None for a trainer that has none."""
    shape: Callable[..., Path | None] | None = getattr(trainer, "shape", None)
    return None if shape is None else shape(recipe, dense, job)


TRAINERS = ("pytorch", "tensorflow", "onnx")
GROUP = "pare.trainers"


def capabilities(trainer: str) -> Capabilities:
    """The named trainer's capabilities; imports no framework. RecipeError for a trainer that is not found."""
    if trainer in TRAINERS:
        found: Capabilities = importlib.import_module(f"trainers.{trainer}").CAPABILITIES
    else:
        found = _foreign(trainer).CAPABILITIES
    return found


def load(trainer: str) -> Trainer:
    """The named trainer; imports its framework. RecipeError for a trainer that is not found."""
    if trainer in TRAINERS:
        made: Trainer = importlib.import_module(f"trainers.{trainer}.trainer").Trainer()
    else:
        made = _foreign(trainer)()
    return made


def names() -> tuple[str, ...]:
    """The trainers that are installed: our own, and those of other packages by their entry points."""
    found = importlib.metadata.entry_points(group=GROUP)
    return (*TRAINERS, *sorted({point.name for point in found} - set(TRAINERS)))


@functools.cache
def _foreign(trainer: str) -> Any:
    """The class that an entry point or `package.module:NAME` names."""
    module, _, name = trainer.partition(":")
    points = importlib.metadata.entry_points(group=GROUP)
    if trainer not in points.names and not name:
        choice("trainer", trainer, names())
    try:
        if trainer in points.names:
            return points[trainer].load()
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"trainer: {trainer!r} cannot be used: {error}") from None


def task_digest(info: TaskInfo) -> str:
    """16 hex digits over what of a task decides a dense model: its name, data, code and ports."""
    return digest_of([info.name, info.data_digest, info.code_digest, *map(asdict, (*info.inputs, *info.outputs))])


def check(recipe: Recipe, info: TaskInfo) -> None:
    """Raise RecipeError with every reason why the recipe's trainer cannot run it on this task."""
    problems = capabilities(recipe.trainer).problems(recipe)
    models = info.models.get(recipe.trainer, ())
    if recipe.model not in models:
        problems.insert(
            0,
            f"model: the task {info.name} has no {recipe.model!r} for the {recipe.trainer} trainer; choose from "
            f"{', '.join(models) or 'the models of another trainer'}",
        )
    if recipe.seeded and not info.trains and capabilities(recipe.trainer).trains:
        problems.append(
            f"recipe: {recipe.describe()} trains, and the task {info.name} has no loss or no training data; leave out "
            "pruning, distillation, clusters and qat, or give the task a loss and a training split"
        )
    if problems:
        raise RecipeError("; ".join(problems))


def check_job(recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> None:
    """As `check`, and with every reason why what is given does not belong together."""
    info = job.task.info()
    check(recipe, info)
    if recipe.model != dense.spec.model:
        raise RecipeError(f"recipe.model: {recipe.model!r}, but the dense model given is {dense.spec.model!r}")
    formats = capabilities(recipe.trainer).formats
    if job.format not in formats:
        raise RecipeError(
            f"job.format: the {recipe.trainer} trainer has no {job.format!r}; choose from {', '.join(formats)}"
        )
    if recipe.distillation.kind != "none":
        (teacher or Teacher()).check(recipe, info)


def step_of(channels: int) -> int:
    """What widths of a layer with `channels` are multiples of: 16 for 64 and more, 4 for fewer.

    Vector kernels work in such groups (ResNet-18 at 50 % ran twice as fast rounded as unrounded).
    """
    return 16 if channels >= 64 else 4


def narrowed(channels: int, sparsity: float, step: int | None = None) -> int:
    """Channels kept of `channels` when `sparsity` of them are removed: a multiple of `step`, never below one step.

    `step`: without it, what `step_of` says; 1 for attention heads.
    """
    step = step_of(channels) if step is None else step
    if channels <= step:
        return channels
    return min(channels, max(step, step * round(channels * (1 - sparsity) / step)))
