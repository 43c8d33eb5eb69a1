"""What is known of a task from its spec and the text of files, without importing a framework or the user's code."""

from __future__ import annotations

import ast
import importlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks import own, scorers
from tasks.address import Address, located, read
from tasks.base import ACCURACY, AGREEMENT, Metric, TaskSpec, code_digest
from tasks.sources import TARGETS
from tasks.user_code import defined, files_of, trainers_in

GROUP = "pare.tasks"
# Name -> where its factory is; beside it MODELS, by trainer.
BUILT_IN = {"mnist": "tasks.mnist.task:Mnist", "cifar10": "tasks.cifar10.task:Cifar10"}


def is_plain(spec: TaskSpec) -> bool:
    """Whether the task is a model and a data source: named by addresses, or functions of a plain file."""
    if not spec.name:
        return True
    address = read("name", spec.name)
    return address.kind == "file" and not address.name and bool({"model", "MODELS"} & set(defined(address.path(spec))))


def addresses(spec: TaskSpec) -> dict[str, Address]:
    """Field -> address, of the fields that hold one. A plain file stands for model and data that are not named."""
    found: dict[str, Address] = {}
    if spec.name:
        found["name"] = read("name", spec.name)
        if found["name"].kind == "file" and not found["name"].name and is_plain(spec):
            place = found["name"].place
            found["model"], found["data"] = Address("file", place, "model"), Address("file", place, "data")
    for field in ("model", "data", "loss", "metric", "optimizer"):
        if text := getattr(spec, field):
            found[field] = read(field, text)
    return found


def model_names(spec: TaskSpec, address: Address) -> tuple[str, ...]:
    """What the models are called in recipes: MODELS of a plain file, else one by the address."""
    if address.kind == "file":
        several = literal_keys(address.path(spec), "MODELS") if address.name == "model" else ()
        stem = Path(address.place).stem
        return several or ((stem if address.name == "model" else address.name),)
    if address.kind in ("onnx", "keras", "hf"):
        return (Path(address.place).stem if address.kind != "hf" else Path(address.place).name,)
    return (address.name or address.place.rpartition("/")[2].replace(":", "-"),)


def literal_keys(file: Path, name: str) -> tuple[str, ...]:
    """The keys of a mapping that is written out at the file's top level."""
    value = getattr(defined(file).get(name), "value", None)
    if not isinstance(value, ast.Dict):
        return ()
    return tuple(key.value for key in value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


def trainers_of(spec: TaskSpec) -> tuple[str, ...] | None:
    """The trainers that can compress the task's models; None where only a worker can tell."""
    address = addresses(spec).get("model")
    if address is None or (spec.name and not is_plain(spec)):
        return tuple(found) if (found := _built_in_models(spec)) else None
    if address.kind in ("timm", "torchvision", "hf"):
        return ("pytorch",)
    if address.kind in ("keras", "onnx"):
        return ("tensorflow",) if address.kind == "keras" else ("onnx",)
    if address.kind != "file":
        return None
    trainers = trainers_in(files_of(address.path(spec)))
    return trainers if len(trainers) == 1 else None


def models_of(spec: TaskSpec) -> Mapping[str, tuple[str, ...]] | None:
    """Trainer -> names of the models that it can compress; None where only a worker can tell."""
    if spec.name and not is_plain(spec):
        return _built_in_models(spec)
    trainers, address = trainers_of(spec), addresses(spec).get("model")
    if trainers is None or address is None or address.kind == "module":
        return None
    return {trainer: model_names(spec, address) for trainer in trainers}


def _built_in_models(spec: TaskSpec) -> Mapping[str, tuple[str, ...]] | None:
    if spec.name not in BUILT_IN:
        return None
    module = importlib.import_module(BUILT_IN[spec.name].partition(":")[0])
    found: Mapping[str, tuple[str, ...]] = module.MODELS
    return found


def metrics_of(spec: TaskSpec) -> tuple[Metric, ...] | None:
    """The task's metrics, its objective first; None where only a worker can tell."""
    if spec.name and not is_plain(spec):
        return (ACCURACY,) if spec.name in BUILT_IN else None
    found = addresses(spec)
    model, name = found["model"], found.get("name")
    metric = found.get("metric")
    if metric is not None and metric.kind == "module":
        return None
    if metric is not None and metric.kind == "name" and metric.place.split(",")[0].strip() not in scorers.METRICS:
        return (own_metric(spec, metric.place),)  # what a LightningModule logs
    file = name.path(spec) if name is not None and name.kind == "file" else None
    if metrics := own.static_metrics(spec, file):
        return metrics
    if model.kind in ("timm", "torchvision"):
        return (ACCURACY,)
    if model.kind == "hf":
        return _hugging_face(model.path(spec) / "config.json")
    if model.kind == "onnx" and found["data"].kind == "npz":
        return None if _has_target(spec, found["data"].path(spec)) else (AGREEMENT,)
    return None


def _hugging_face(config: Path) -> tuple[Metric, ...] | None:
    """Accuracy, or the error of a model that gives a quantity; None where the configuration is not here."""
    try:
        about = json.loads(config.read_text())
    except (OSError, ValueError):
        return None
    regression = about.get("problem_type") == "regression" or len(about.get("id2label", {0: "", 1: ""})) == 1
    return (scorers.METRICS["mse"] if regression else ACCURACY,)


def _has_target(spec: TaskSpec, path: Path) -> bool:
    """Whether the arrays hold a target; only their names are read."""
    if spec.label:
        return True
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    try:
        with zipfile.ZipFile(files[0]) as archive:
            names = {Path(name).stem.lower() for name in archive.namelist()}
    except (OSError, IndexError, zipfile.BadZipFile):
        return True
    words = {word for name in names for word in (name, *name.split("_"))}
    return bool(words & set(TARGETS))


def own_metric(spec: TaskSpec, name: str) -> Metric:
    """A metric of the user's that is known by its name alone."""
    known = scorers.METRICS.get(name.removeprefix("val_").removeprefix("test_"))
    lower = any(word in name for word in ("loss", "error", "mse", "mae", "wer", "cer"))
    direction: Any = spec.direction or (known.direction if known else "minimize" if lower else "maximize")
    if known is not None:
        return Metric(name, direction, known.unit, known.scale, known.digits, name)
    percent = "acc" in name
    return Metric(name, direction, "%" if percent else "", 100.0 if percent else 1.0, 2 if percent else 4, name)


def user_files(spec: TaskSpec) -> list[Path]:
    """The user's own files but for the data: code with the modules beside it, weights, model files and folders.

    They travel to other machines, and the code digest covers them.
    """
    found: list[Path] = []
    for field, address in addresses(spec).items():
        if address.kind == "file":
            found += files_of(address.path(spec))
        elif field == "model" and address.kind in ("onnx", "keras", "hf"):
            path = address.path(spec)
            found += sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else []
            found += [path] if path.is_file() else []
            found += [beside for beside in [Path(f"{path}.data")] if address.kind == "onnx" and beside.is_file()]
    if spec.weights and (weights := located(spec, spec.weights)).is_file():
        found.append(weights)
    return list(dict.fromkeys(found))


def digest(spec: TaskSpec) -> str:
    """16 hex digits over the user's files, "" without any: `TaskInfo.code_digest`."""
    return code_digest(user_files(spec))
