"""What an adapter puts a task together with: the study's addresses, its data, and what a user's model is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.address import Address
from tasks.base import Progress, Task, TaskError, TaskSpec
from tasks.composed import ComposedTask, Half
from tasks.own import Parts
from tasks.sources import Opening, Wants, guests
from tasks.splits import Source, Splits
from tasks.user_code import fetch, guarded


@dataclass(frozen=True)
class Bench:
    """What is being put together."""

    spec: TaskSpec
    home: Path
    progress: Progress
    parts: Parts
    model: Address
    data: Address
    code: str

    def open(self, wants: Wants) -> Splits:
        """The study's data, as the model wants it; notes say what was made by us."""
        return Splits(source_of(self, wants), self.spec, wants)

    def task(self, name: str, half: Half, splits: Splits) -> Task:
        """The finished task."""

        def reopen() -> Splits:
            return Splits(source_of(self, splits.wants), self.spec)

        return ComposedTask(self.spec, self.home, self.progress, name, half, splits, self.parts, self.code, reopen)


def source_of(bench: Bench, wants: Wants) -> Source:
    """The data source that the study names; on a host that has only the cache, what was brought there."""
    opening = Opening(bench.spec, bench.home, bench.progress, wants)
    if (brought := guests(opening)) is not None:
        return brought
    data, path = bench.data, bench.data.path(bench.spec)
    if data.kind == "imagefolder":
        from tasks.sources.imagefolder import open_source

        return open_source(opening, path)
    if data.kind == "csv":
        from tasks.sources.csv import open_source as open_csv

        return open_csv(opening, path)
    if data.kind == "npz":
        from tasks.sources.npz import open_source as open_npz

        return open_npz(opening, path)
    if data.kind == "datasets":
        from tasks.sources.hub import open_source as open_dataset

        return open_dataset(opening, data.place, path)
    from tasks.sources.python import open_source as open_python

    given, folder = fetch(bench.spec, "data", data)
    name = f"{Path(data.place).name}:{data.name}" if data.kind == "file" else f"{data.place}:{data.name}"
    return open_python(opening, given, name, folder, bench.code)


def class_count(splits: Splits) -> int:
    """How many classes the data has: named ones, else up to the largest label of train and validation."""
    if splits.source.classes:
        return len(splits.source.classes)
    largest = -1
    for split in ("train", "validation"):
        labels = splits.open(split).labels()
        if labels is None:
            raise TaskError(
                f"{splits.source.name}: its targets are no class labels, and a classifier needs one whole number per "
                "sample; give (image, label) samples, or write a FILE.py with model() and loss()",
                "data",
            )
        if labels.min(initial=0) < 0:
            raise TaskError(f"{splits.source.name}: holds the label {labels.min()}; labels begin at 0", "data")
        largest = max(largest, int(labels.max(initial=-1)))
    if largest < 1:
        raise TaskError(f"{splits.source.name}: has one class only; a classifier needs two or more", "data")
    return largest + 1


def lineage(value: Any) -> list[str]:
    """`module.Name` of the classes of a value, or of a class itself."""
    classes = inspect.getmro(value) if inspect.isclass(value) else inspect.getmro(type(value))
    return [f"{each.__module__}.{each.__name__}" for each in classes]


def kind_of(value: Any) -> str:
    """lightning, torch, keras or "": what kind of model a value is, or the instances of a class are."""
    names = lineage(value)
    if any(name.endswith(".LightningModule") for name in names):
        return "lightning"
    if "torch.nn.modules.module.Module" in names:
        return "torch"
    if any(name.split(".")[0] in ("keras", "tf_keras", "tensorflow") for name in names):
        return "keras"
    return ""


def instance(factory: Callable[[], Any], name: str, folder: Path | None) -> Any:
    """A new model; raises TaskError when it cannot be made without arguments."""
    needed = _needed(factory)
    if needed:
        raise TaskError(
            f"{name} needs arguments ({', '.join(needed)}); write a function without any that returns it, such as "
            f"`def model(): return {name.rpartition(':')[2]}(...)`, and name that",
            "model",
        )
    with guarded("model", f"{name}()", folder):
        return factory()


def _needed(factory: Callable[[], Any]) -> list[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return []
    usual = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [each.name for each in parameters if each.default is each.empty and each.kind in usual]
