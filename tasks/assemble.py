"""A model and a data source by address -> a ComposedTask. Runs in a worker; imports frameworks as they are needed."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.address import Address
from tasks.base import Progress, Task, TaskError, TaskSpec, code_digest
from tasks.composed import ComposedTask, Half
from tasks.describe import addresses, model_names, user_files
from tasks.own import Parts, parts_of
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
        return Splits(source_of(self, wants), self.spec)

    def task(self, name: str, half: Half, splits: Splits) -> Task:
        """The finished task."""
        return ComposedTask(self.spec, self.home, self.progress, name, half, splits, self.parts, self.code)


def assembled(spec: TaskSpec, home: Path, progress: Progress) -> Task:
    """See `tasks.load.load`."""
    progress("loading the task", 0.0)
    # Read once, when TensorFlow is imported: tf.keras is then tf_keras, which the compression library works on.
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    found = addresses(spec)
    bench = Bench(spec, home, progress, parts_of(spec), found["model"], found["data"], code_digest(user_files(spec)))
    kind = found["model"].kind
    if kind in ("timm", "torchvision"):
        return _vision(bench)
    if kind == "hf":
        return _hugging_face(bench)
    if kind == "onnx":
        from tasks.onnx import onnx_task

        return onnx_task(bench)
    if kind == "keras":
        from tasks.keras import keras_task

        return keras_task(bench)
    return _own(bench)


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


def _vision(bench: Bench) -> Task:
    from tasks.torch_half import TorchHalf
    from tasks.vision import VisionSubject

    subject = VisionSubject(bench.spec, bench.model)
    splits = bench.open(Wants(image=subject.image))
    subject.settle(class_count(splits))
    half = TorchHalf(bench.spec, subject, bench.parts, subject.notes)
    return bench.task(subject.name, half, splits)


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


def _hugging_face(bench: Bench) -> Task:
    from tasks.text import HuggingFaceSubject
    from tasks.torch_half import TorchHalf

    subject = HuggingFaceSubject(bench.spec, bench.model, bench.home)
    if subject.takes_images:
        splits = bench.open(Wants(image=subject.image(), labels=subject.known_labels))
        subject.settle(class_count(splits))
        half = TorchHalf(bench.spec, subject, bench.parts, subject.notes, subject.metrics())
        return bench.task(subject.name, half, splits)
    splits = bench.open(Wants(text=subject.encoder, inputs=subject.encoder.names, labels=subject.known_labels))
    subject.length = int(splits.source.facts["length"])
    subject.settle(None if subject.regression else class_count(splits))
    half = TorchHalf(bench.spec, subject, bench.parts, subject.notes, subject.metrics(), subject.serving())
    return bench.task(subject.name, half, splits)


def _own(bench: Bench) -> Task:
    """A model of the user's Python: a module, a LightningModule, a Keras model, or a function that makes one."""
    factories, folder = _factories(bench)
    framework = _framework(next(iter(factories.values())), bench, folder)
    if framework == "lightning":
        from tasks.lightning import lightning_task

        return lightning_task(bench, factories)
    if framework == "keras":
        from tasks.keras import keras_task

        return keras_task(bench, factories)
    from tasks.own_torch import own_task

    return own_task(bench, factories, folder)


def _factories(bench: Bench) -> tuple[dict[str, Callable[[], Any]], Path | None]:
    """Model name -> what makes it: the functions of MODELS, else the one that the address names."""
    names = model_names(bench.spec, bench.model)
    if len(names) > 1 or (bench.model.kind == "file" and names != (bench.model.name,)):
        several = _several(bench)
        if several is not None:
            return several
    made, folder = fetch(bench.spec, "model", bench.model)
    return {names[0]: made if callable(made) and not _is_model(made) else lambda: made}, folder


def _several(bench: Bench) -> tuple[dict[str, Callable[[], Any]], Path | None] | None:
    try:
        found, folder = fetch(bench.spec, "model", Address(bench.model.kind, bench.model.place, "MODELS"))
    except TaskError as error:
        if error.step != "code" or "MODELS" not in error.message:
            raise
        return None
    if not isinstance(found, Mapping) or not found or not all(callable(make) for make in found.values()):
        raise TaskError(f"{bench.model.place}: MODELS must map names to functions that make a model", "model")
    return {str(name): make for name, make in found.items()}, folder


def lineage(value: Any) -> list[str]:
    """`module.Name` of the classes of a value, or of a class itself."""
    classes = inspect.getmro(value) if inspect.isclass(value) else inspect.getmro(type(value))
    return [f"{each.__module__}.{each.__name__}" for each in classes]


def _is_model(value: Any) -> bool:
    """Whether it is a model already, and no function or class that makes one."""
    return not inspect.isclass(value) and kind_of(value) != ""


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


def _framework(factory: Callable[[], Any], bench: Bench, folder: Path | None) -> str:
    """lightning, torch or keras: by the class that makes the model, else by the model it makes."""
    if inspect.isclass(factory) and (kind := kind_of(factory)):
        return kind
    name = f"{Path(bench.model.place).name}:{bench.model.name}"
    made = instance(factory, name, folder)
    if kind := kind_of(made):
        return kind
    raise TaskError(
        f"{name} gives a {type(made).__name__}; return a torch.nn.Module, a LightningModule or a Keras model", "model"
    )


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
