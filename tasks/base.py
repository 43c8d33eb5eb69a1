"""What is compressed, as the other rooms see it: the Task protocol and the plain data around it. NumPy only.

A task is a model with its weights, data in three splits, a loss, metrics, and what a request goes through before and
after the model. `tasks.load` makes one from a TaskSpec, which is all that a study says; it does so in a worker process,
because a task runs the user's code and imports its framework. The driver sees the TaskInfo alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

Arrays = Mapping[str, np.ndarray]
Progress = Callable[[str, float], None]
Direction = Literal["maximize", "minimize"]
SPLITS = ("train", "validation", "test")


class TaskError(RuntimeError):
    """A task that cannot work as it stands; the message says what was found and the remedy, in the user's terms.

    `step`: model, weights, data, loss, metric or export. `place`: the user's `FILE:LINE` where their code raised.
    """

    def __init__(self, message: str, step: str = "", place: str = "") -> None:
        super().__init__(message, step, place)
        self.message, self.step, self.place = message, step, place

    def __str__(self) -> str:
        step = f"{self.step}: " if self.step else ""
        return f"{step}{self.message}{f' ({self.place})' if self.place else ''}"


@dataclass(frozen=True)
class Metric:
    """A figure of quality that the task defines, such as accuracy.

    `unit` and `scale`: how people read it (`%` and 100 for a fraction). `tolerance`: the loss of quality, in the
    metric's own unit, that the hypervolume's reference point allows where the study sets no bound; None for 0.05 of a
    fraction, a twentieth of the dense model's value of anything else.
    """

    name: str
    direction: Direction = "maximize"
    unit: str = ""
    scale: float = 1.0
    digits: int = 2
    title: str = ""
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.direction not in ("maximize", "minimize"):
            raise ValueError(
                f"metric {self.name}: direction {self.direction!r} is not valid; write maximize or minimize"
            )
        if not self.name.isidentifier():
            raise ValueError(f"metric: {self.name!r} is not a name; use letters, digits and _")

    @property
    def fraction(self) -> bool:
        """Whether it is a share between 0 and 1, shown in per cent."""
        return self.unit == "%" and self.scale == 100

    def tolerated(self, dense: float) -> float:
        """The loss of quality that is tolerated of a dense model with this value; above 0."""
        if self.tolerance is not None:
            return self.tolerance
        return 0.05 if self.fraction else 0.05 * abs(dense) or 0.05


ACCURACY = Metric("accuracy", "maximize", "%", 100.0, 2, "Accuracy")
AGREEMENT = Metric("agreement", "maximize", "%", 100.0, 2, "Agreement with the float file")


@dataclass(frozen=True)
class Port:
    """One input or output of a model, by name.

    `shape` includes the batch; a text is a free axis: `("batch", 3, 224, 224)`, `("batch", "length")`. `layout`: NCHW
    where the axes have this meaning and a runtime may want another, else "". Of outputs alone: `kind` is `logits` where
    axis `axis` holds one score per class (what distillation softens and agreement takes the largest of), else `values`.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    layout: str = ""
    kind: Literal["logits", "values"] = "values"
    axis: int = 1


@dataclass(frozen=True)
class TaskSpec:
    """The `task` section of a study: what a user writes, as plain data. `tasks.load` reads it.

    `name`: a built-in task (`mnist`), an entry point of `pare.tasks`, `package.module:NAME` or `FILE.py[:NAME]`; empty
    where `model` and `data` say it all. `model`, `data`: addresses such as `timm:resnet18` and `imagefolder:PATH`.
    `source`: a folder with a built-in task's original files. `license`: of the data, as the user states it. `folder`:
    where relative paths of the study begin.
    """

    name: str = ""
    model: str = ""
    data: str = ""
    weights: str = ""
    loss: str = ""
    metric: str = ""
    optimizer: str = ""
    direction: str = ""
    text: str = ""
    label: str = ""
    train: str = ""
    validation: str = ""
    test: str = ""
    size: int | None = None
    length: int | None = None
    train_size: int | None = None
    validation_size: int | None = None
    keep: tuple[str, ...] = ()
    source: str = ""
    license: str = ""
    folder: str = "."
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {**asdict(self), "keep": list(self.keep)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TaskSpec:
        """What `to_dict` gave -> TaskSpec."""
        return TaskSpec(**{**values, "keep": tuple(values.get("keep", ()))})


@dataclass(frozen=True)
class TaskInfo:
    """All that the driver sees of a task: plain data that travels as JSON.

    `models`: trainer -> names of the models that it can compress. The first of `metrics` is the task's own objective.
    `trains`: whether there is a loss and a training split; without, recipes are post-training only. `data_digest`: over
    train and validation as they are used; `code_digest`: over the user's own files, "" without. `counts`: samples per
    split. `places`: split -> its folder below ROOT/cache, which travels to other hosts; a split that is not there is
    read where it is. `serving`: what `Serving.to_dict` gives. `teacher`: whether a teacher's outputs are computed once
    (`cached`) or in every step (`online`). `notes`: what was inferred or made by us (splits, head replaced), in words.
    `license`: of the data, as its source states it, "" where it is not known.
    """

    name: str
    models: Mapping[str, tuple[str, ...]]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metrics: tuple[Metric, ...]
    data_digest: str
    code_digest: str = ""
    trains: bool = True
    teacher: Literal["cached", "online"] = "cached"
    classes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    serving: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    license: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as JSON takes them."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TaskInfo:
        """What `to_dict` gave, or its JSON, -> TaskInfo."""
        made = dict(values)
        made["models"] = {trainer: tuple(names) for trainer, names in values["models"].items()}
        for ends in ("inputs", "outputs"):
            made[ends] = tuple(Port(**{**port, "shape": tuple(port["shape"])}) for port in values[ends])
        made["metrics"] = tuple(Metric(**metric) for metric in values["metrics"])
        made["classes"], made["notes"] = tuple(values["classes"]), tuple(values["notes"])
        return TaskInfo(**made)


@dataclass(frozen=True)
class Batch:
    """Some samples. `inputs`: by the names of the task's input ports, already preprocessed, as the model takes them.

    `targets`: an array, or a tuple or mapping of arrays, as the task's loss and metrics take them; None without.
    """

    inputs: Arrays
    targets: Any = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


class Dataset(Protocol):
    """One split. `resident`: whether all of it lies in memory (or a memory-mapped file), so that any row is cheap.

    Without it a trainer fetches batches ahead of time, from several threads.
    """

    resident: bool

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray, epoch: int | None = None) -> Batch:
        """The samples `rows`, int64 [B], in that order; the same each time.

        `epoch`: given while training; a task that augments by itself then may, deterministic in (epoch, rows).
        """
        ...


class Scorer(Protocol):
    """Computes the task's metrics over a split, batch by batch."""

    def add(self, outputs: Arrays, batch: Batch) -> None:
        """One batch: what the model gave, by output name, and the samples themselves."""
        ...

    def result(self) -> dict[str, float]:
        """Every metric of the task by name, over all that was added."""
        ...


@dataclass(frozen=True)
class Serving:
    """How a raw request becomes inputs and outputs an answer: plain data that travels beside the artifact.

    `kind`: image, text, row or arrays (no preprocessing). `options`: what the kind needs, JSON values (image: mode,
    size, resize, crop, mean, std; text: length, inputs; row: columns). `answer`: label (of `classes`), mask, values.
    `files`: name -> file that travels along, such as a tokenizer's.
    """

    kind: Literal["image", "text", "row", "arrays"]
    options: Mapping[str, Any] = field(default_factory=dict)
    answer: Literal["label", "mask", "values"] = "values"
    classes: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {**asdict(self), "classes": list(self.classes)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Serving:
        """What `to_dict` gave, or its JSON, -> Serving."""
        return Serving(**{**values, "classes": tuple(values["classes"])})


class Task(Protocol):
    """A model, its data, loss and metrics. Made in a worker; nothing of it reaches the driver but `info`."""

    def info(self) -> TaskInfo:
        """What the driver needs to know; computed once."""
        ...

    def data(self, split: str) -> Dataset:
        """One of SPLITS; `test` is opened for the confirmed front alone. Raises TaskError when it cannot be read."""
        ...

    def scorer(self) -> Scorer:
        """A new one, with nothing added."""
        ...

    def agreement(self, file: Arrays, model: Arrays) -> float:
        """Fraction in [0, 1] in which an exported file's outputs say the same as those of the model it was made of."""
        ...

    def program(self, trainer: str) -> Any:
        """The trainer's own half of the task (a TorchProgram, a KerasProgram); imports the framework."""
        ...

    def serving(self) -> Serving | None:
        """Pre- and postprocessing for serving; None where the task has none."""
        ...


def digest_of(values: Any) -> str:
    """First 16 hex digits of the sha256 of the value's canonical JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def code_digest(files: Sequence[Path]) -> str:
    """First 16 hex digits of the sha256 over the files' names and contents; "" for none."""
    if not files:
        return ""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def known_fields() -> list[str]:
    """The names that a study's `task` section may hold."""
    return [each.name for each in fields(TaskSpec) if each.name != "folder"]


def class_agreement(outputs: Sequence[Port], file: Arrays, model: Arrays) -> float:
    """The default agreement, the least over outputs: of `logits` the share of equal argmax, else 1 - relative error.

    The relative error is the root of the mean square of the difference over that of the model's values.
    """
    found = []
    for port in outputs:
        a, b = np.asarray(file[port.name], np.float64), np.asarray(model[port.name], np.float64)
        if port.kind == "logits":
            found.append(float(np.mean(a.argmax(port.axis) == b.argmax(port.axis))))
        else:
            scale = float(np.sqrt(np.mean(b**2))) or 1.0
            found.append(max(0.0, 1.0 - float(np.sqrt(np.mean((a - b) ** 2))) / scale))
    return min(found, default=1.0)
