"""Mistakes in a study's `task` section that can be seen without running anything. The driver imports this."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from tasks import scorers
from tasks.address import EXTRAS, Address, install, located, nearest, read
from tasks.base import TaskError, TaskSpec
from tasks.describe import BUILT_IN, GROUP, is_plain
from tasks.describe import addresses as addresses_of
from tasks.sources.csv import first_file, header
from tasks.user_code import defined, parsed

LOSSES = ("cross_entropy", "mse", "l1", "bce")
WHOLE = ("onnx", "keras", "hf")  # kinds of model that hold their weights themselves
FIELDS = ("name", "model", "data", "loss", "metric", "optimizer")


def problems(spec: TaskSpec) -> list[str]:
    """Every mistake in the `task` section that can be seen without running anything; each names field and remedy."""
    found = []
    for check in (_incomplete, _unreadable, _not_there, _not_defined, _not_installed, _not_fitting):
        try:
            found += list(check(spec))
        except TaskError as error:
            found.append(str(error))
        if found:
            break  # what follows builds on it
    return list(dict.fromkeys(problem.removeprefix("task.") for problem in found))


def _incomplete(spec: TaskSpec) -> Iterator[str]:
    if not spec.name and not spec.model and not spec.data:
        yield "task.name: missing; name a task, or write task.model and task.data"
    elif not spec.name and not spec.model:
        yield "task.model: missing; write timm:NAME, torchvision:NAME, hf:FOLDER, FILE.py:NAME, FILE.keras or FILE.onnx"
    elif not spec.name and not spec.data:
        yield "task.data: missing; write imagefolder:PATH, csv:PATH, npz:PATH, datasets:PATH or FILE.py:NAME"


def _unreadable(spec: TaskSpec) -> Iterator[str]:
    for field in FIELDS:
        if text := getattr(spec, field):
            try:
                address = read(field, text)
            except TaskError as error:
                yield str(error)
                continue
            if field == "name" and address.kind == "name":
                known = sorted({*BUILT_IN, *importlib.metadata.entry_points(group=GROUP).names})
                if address.place not in known:
                    yield f"task.name: {text!r} is not a task{nearest(text, known)}, or FILE.py"


def _not_there(spec: TaskSpec) -> Iterator[str]:
    for field in filter(lambda field: getattr(spec, field), FIELDS):
        address = read(field, getattr(spec, field))
        path = address.path(spec)
        if address.kind in ("file", "keras", "onnx", "imagefolder", "csv", "npz") and not path.exists():
            yield f"task.{field}: {path} is not there{_beside(path)}"
        elif address.kind == "imagefolder" and not path.is_dir():
            yield f"task.{field}: {path} is a file; name a folder with one folder of images per class"
    whole = bool(spec.model) and read("model", spec.model).kind in WHOLE
    if spec.weights and spec.weights != "pretrained" and not whole and not located(spec, spec.weights).is_file():
        path = located(spec, spec.weights)
        yield f"task.weights: {path} is not there{_beside(path)}"


def _beside(path: Path) -> str:
    """` (did you mean …?)`, or what of the path is there."""
    if not path.parent.is_dir():
        there = next(parent for parent in path.parents if parent.exists())
        return f"; {there} is there, and has no {path.relative_to(there).parts[0]}"
    names = [each.name for each in path.parent.iterdir()]
    near = get_close_matches(path.name, names, 1)
    return f" (did you mean {near[0]}?)" if near else f"; correct the path, which begins in {path.parent}"


def _not_defined(spec: TaskSpec) -> Iterator[str]:
    for field, address in addresses_of(spec).items():
        if address.kind != "file" or not address.name:
            continue
        if field == "name" or (field == "model" and address.name == "model" and not spec.model):
            continue
        file = address.path(spec)
        parsed(file)
        if address.name not in defined(file) and not _stars(file):
            names = [name for name in defined(file) if not name.startswith("_")]
            yield f"task.{field}: {address.place} has no {address.name!r}{nearest(address.name, names)}"
    named = read("name", spec.name) if spec.name else None
    if named is None or named.kind != "file" or named.name:
        return
    if not {"model", "MODELS", "task", "Task"} & set(defined(named.path(spec))):
        yield (
            f"task.name: {named.place} has no model(); write model(), data(split), and where they are needed "
            "loss(outputs, batch) and metric(outputs, targets)"
        )


def _stars(file: Path) -> bool:
    """Whether the file imports `*`, so that its names are not known without running it."""
    return "*" in defined(file)


def _not_installed(spec: TaskSpec) -> Iterator[str]:
    for field, address in addresses_of(spec).items():
        if address.kind in EXTRAS:
            package, extra = EXTRAS[address.kind]
            if importlib.util.find_spec(package) is None:
                yield f"task.{field}: {package} is not installed; run {install(extra)}"


def _not_fitting(spec: TaskSpec) -> Iterator[str]:
    """Fields that do not go together."""
    addresses = addresses_of(spec)
    model, data, metric = addresses.get("model"), addresses.get("data"), addresses.get("metric")
    if model is None or data is None or (spec.name and not is_plain(spec)):
        return
    if spec.text and model.kind != "hf":
        yield "task.text: only a text model (hf:) reads text; leave it out"
    if spec.length and model.kind != "hf":
        yield "task.length: only a text model (hf:) has a length in tokens; leave it out"
    if spec.weights and model.kind in WHOLE:
        yield f"task.weights: {model.place} holds its weights itself; leave task.weights out"
    if data.kind == "csv":
        yield from _columns(spec, data.path(spec))
    if spec.direction and (metric is None or metric.place in scorers.METRICS) and not metric_is_code(metric):
        yield f"task.direction: belongs to a metric of your own; {spec.metric or 'the usual one'} has its own"
    lightning = model.kind in ("file", "module")
    if metric is not None and metric.kind == "name" and not lightning:
        unknown = [n.strip() for n in spec.metric.split(",") if n.strip() not in scorers.METRICS]
        for name in unknown:
            yield f"task.metric: {name!r} is not a metric{nearest(name, list(scorers.METRICS))}, or FILE.py:NAME"
    loss = addresses.get("loss")
    if loss is not None and loss.kind == "name" and loss.place not in LOSSES:
        yield f"task.loss: {loss.place!r} is not a loss{nearest(loss.place, LOSSES)}, or FILE.py:NAME"
    yield from _optimizer(addresses)


def _optimizer(addresses: Mapping[str, Address]) -> Iterator[str]:
    """An optimizer of one's own: a function for PyTorch models, or what a LightningModule configures."""
    optimizer, model = addresses.get("optimizer"), addresses["model"]
    if optimizer is None:
        return
    if model.kind in ("keras", "onnx"):
        yield f"task.optimizer: {model.place} is not trained by PyTorch; leave it out"
    elif optimizer.kind == "name" and optimizer.place != "configure_optimizers":
        yield f"task.optimizer: {optimizer.place!r} is not valid; write FILE.py:NAME or configure_optimizers"
    elif optimizer.kind == "name" and model.kind not in ("file", "module"):
        yield "task.optimizer: only a LightningModule has configure_optimizers; write FILE.py:NAME"


def metric_is_code(metric: Address | None) -> bool:
    """Whether the metric is a function of the user's."""
    return metric is not None and metric.is_code


def _columns(spec: TaskSpec, path: Path) -> Iterator[str]:
    """Columns that the study names and the file does not have."""
    columns = header(first_file(spec, path))
    for field in ("text", "label"):
        for name in filter(None, (each.strip() for each in getattr(spec, field).split(","))):
            if name not in columns:
                yield f"task.{field}: {path.name} has no column {name!r}{nearest(name, columns)}"
