"""A model and a data source by address -> a ComposedTask. Runs in a worker; imports frameworks as they are needed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tasks.address import Address
from tasks.base import Progress, Task, TaskError, TaskSpec, code_digest
from tasks.bench import Bench, class_count, instance, kind_of
from tasks.describe import addresses, model_names, user_files
from tasks.own import parts_of
from tasks.sources import Wants
from tasks.user_code import fetch, trainers_in


def assembled(spec: TaskSpec, home: Path, progress: Progress) -> Task:
    """See `tasks.load.load`."""
    progress("loading the task", 0.0)
    found, files = addresses(spec), user_files(spec)
    if "tensorflow" in trainers_in([file for file in files if file.suffix == ".py"]):
        # Before the user's own import of it: it settles which Keras tf.keras is, and how many threads there are.
        importlib.import_module("tasks.keras_files")
    bench = Bench(spec, home, progress, parts_of(spec), found["model"], found["data"], code_digest(files))
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


def _vision(bench: Bench) -> Task:
    from tasks.torch_half import TorchHalf
    from tasks.vision import VisionSubject

    subject = VisionSubject(bench.spec, bench.model)
    splits = bench.open(Wants(image=subject.image))
    subject.settle(class_count(splits))
    half = TorchHalf(bench.spec, subject, bench.parts, subject.notes)
    return bench.task(subject.name, half, splits)


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


def _is_model(value: Any) -> bool:
    """Whether it is a model already, and no function or class that makes one."""
    return not inspect.isclass(value) and kind_of(value) != ""


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
