"""What is wrong with a task, or odd about it: a cheap look at every step before a search begins. Only workers use this.

`search.doctor` shows the findings. Nothing is trained, and the test split stays closed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tasks import run
from tasks.base import Arrays, Batch, Dataset, Metric, Port, Progress, Task, TaskError, TaskInfo

Severity = Literal["error", "warning"]
ROWS = 64  # samples that the model, the loss and the metric are tried on
CHUNK, SCANNED_S = 256, 10.0  # samples read at a time, and seconds for which a split is read
CHANCE = 1.3  # trained weights that are not this many times better than chance are said to be odd
SHOWN = 5
IGNORED = (-1, -100, 255)


@dataclass(frozen=True)
class Finding:
    """`step`: code, data, model, loss or metric. `place`: the user's `FILE:LINE`. An `error` would stop the search."""

    step: str
    severity: Severity
    message: str
    remedy: str = ""
    place: str = ""

    def __str__(self) -> str:
        where = f" ({self.place})" if self.place else ""
        return f"{self.step}: {self.message}{where}{f'; {self.remedy}' if self.remedy else ''}"


def check(task: Task, progress: Progress = lambda stage, fraction: None) -> list[Finding]:
    """Every finding, the errors first; [] for a task in good order. What builds on a step that failed is left out."""
    found: list[Finding] = []
    info = _tried(found, "model", task.info)
    if info is None:
        return found
    for split in ("train", "validation"):
        progress(f"looking at the {split} split", 0.2)
        _tried(found, "data", lambda split=split: found.extend(_data(task, info, split)))  # type: ignore[misc]
    batch = None if _failed(found) else _tried(found, "data", lambda: _head(task.data("validation")))
    if batch is None:
        return _ordered(found)
    for trainer, models in info.models.items():
        for model in models if trainer in run.TRAINERS else ():
            progress(f"trying {model}", 0.6)
            trial = _tried(found, "model", lambda t=trainer, m=model: _Trial(task, info, t, m, batch))  # type: ignore[misc]
            steps = () if trial is None else trial.steps()
            before = len(found)
            for step, look in steps:
                if not _failed(found[before:]):
                    _tried(found, step, lambda look=look: found.extend(look()))  # type: ignore[misc]
    return _ordered(found)


def _failed(found: list[Finding]) -> bool:
    return any(finding.severity == "error" for finding in found)


def _tried(found: list[Finding], step: str, work: Callable[[], Any]) -> Any:
    """What `work` gives; None when it raises, and then what it says is among the findings."""
    try:
        return work()
    except TaskError as error:
        found.append(Finding(error.step or step, "error", error.message, "", error.place))
    return None


def _ordered(found: list[Finding]) -> list[Finding]:
    unique = list(dict.fromkeys(found))
    return sorted(unique, key=lambda finding: finding.severity != "error")


def _head(data: Dataset) -> Batch:
    return data.batch(np.arange(min(ROWS, len(data))))


def _data(task: Task, info: TaskInfo, split: str) -> Iterator[Finding]:
    """One reading of the split, as far as the time goes; then whether it repeats itself."""
    data = task.data(split)
    scan, began = _Scan(info, split), time.monotonic()
    for start in range(0, len(data), CHUNK):
        scan.add(data.batch(np.arange(start, min(start + CHUNK, len(data)))), start)
        if time.monotonic() - began > SCANNED_S:
            break
    yield from scan.findings()
    if (repeats := getattr(task, "repeats", None)) is not None and not repeats(split):
        yield Finding(
            "data",
            "error",
            f"the {split} split differs when it is made a second time: every process would have data of its own",
            "seed what is random in data(), for example numpy.random.default_rng(0)",
        )


class _Scan:
    """What a split's batches hold that they should not."""

    def __init__(self, info: TaskInfo, split: str) -> None:
        self.info, self.split = info, split
        self.not_numbers: dict[str, list[int]] = {}
        self.span: dict[str, tuple[float, float]] = {}
        self.strange: list[tuple[int, int]] = []
        self.labels: set[int] = set()
        port = next((each for each in info.outputs if each.kind == "logits"), None)
        size = port.shape[port.axis] if port is not None else None
        self.classes = size if isinstance(size, int) else None

    def add(self, batch: Batch, start: int) -> None:
        for name, array in batch.inputs.items():
            self._numbers(name, array, start)
        labels = label_array(batch.targets)
        if labels is not None and self.classes is not None:
            wrong = ((labels < 0) | (labels >= self.classes)) & ~np.isin(labels, IGNORED)
            for row in np.flatnonzero(wrong.reshape(len(labels), -1).any(axis=1))[: SHOWN - len(self.strange)]:
                self.strange.append((start + int(row), int(labels[row][wrong[row]].reshape(-1)[0])))
            self.labels |= {int(label) for label in np.unique(labels)}
        for path, array in _floats(batch.targets):
            self._numbers(path, array, start)

    def _numbers(self, name: str, array: np.ndarray, start: int) -> None:
        if array.dtype.kind == "f":
            bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
            if bad.any():
                self.not_numbers.setdefault(name, []).extend(start + int(row) for row in np.flatnonzero(bad))
        if array.size and array.dtype.kind in "fiu" and name not in self.not_numbers:
            low, high = self.span.get(name, (math.inf, -math.inf))
            self.span[name] = (min(low, float(np.nanmin(array))), max(high, float(np.nanmax(array))))

    def findings(self) -> Iterator[Finding]:
        """In the order of a batch: inputs, targets."""
        for name, rows in self.not_numbers.items():
            yield Finding(
                "data",
                "error",
                f"{self.split}: {name} holds NaN or infinity in {len(rows)} samples, such as {_listed(rows)}",
                "fill or remove them",
            )
        for name, (low, high) in self.span.items():
            if low == high and any(port.name == name and len(port.shape) > 1 for port in self.info.inputs):
                yield Finding("data", "warning", f"{self.split}: every value of {name} is {low:g}", "look at data()")
        if self.strange:
            shown = ", ".join(f"{label} (sample {row})" for row, label in self.strange)
            yield Finding(
                "data",
                "error",
                f"{self.split}: labels out of range: {shown}; the model has {self.classes} classes, 0 to "
                f"{(self.classes or 0) - 1}",
                "correct the labels, or give the model more classes",
            )
        if self.classes is not None and len(self.labels - set(IGNORED)) == 1:
            yield Finding(
                "data",
                "error" if self.split == "train" else "warning",
                f"{self.split}: every label is {next(iter(self.labels - set(IGNORED)))}: there is one class only",
                "give samples of two classes or more",
            )


def label_array(targets: Any) -> np.ndarray | None:
    """The whole numbers among the targets: themselves, or called label, labels, mask, target or y."""
    if isinstance(targets, np.ndarray):
        return targets if targets.dtype.kind in "iu" else None
    if isinstance(targets, Mapping):
        for name in ("label", "labels", "target", "targets", "y", "mask"):
            if name in targets:
                return label_array(targets[name])
    return None


def _floats(targets: Any, path: str = "target") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(targets, np.ndarray):
        yield path, targets
    elif isinstance(targets, dict):
        for name, value in targets.items():
            yield from _floats(value, f"{path} {name}")
    elif isinstance(targets, tuple | list):
        for index, value in enumerate(targets):
            yield from _floats(value, f"{path} {index}")


def _listed(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:SHOWN])) + (" …" if len(rows) > SHOWN else "")


class _Trial:
    """One model on some validation samples."""

    def __init__(self, task: Task, info: TaskInfo, trainer: str, model: str, batch: Batch) -> None:
        self.task, self.info, self.model, self.batch = task, info, model, batch
        self.runner = run.runner(trainer, task.program(trainer), model, info)
        self.outputs: Arrays | None = None

    def steps(self) -> tuple[tuple[str, Callable[[], Iterator[Finding]]], ...]:
        """What is looked at, in the order in which one builds on another."""
        return ("model", self.model_findings), ("loss", self.loss_findings), ("metric", self.metric_findings)

    def model_findings(self) -> Iterator[Finding]:
        """Outputs that are finite, repeat themselves, and do not depend on the rest of the batch."""
        outputs, again = self.runner.outputs(self.batch), self.runner.outputs(self.batch)
        self.outputs = outputs
        lone = self.runner.outputs(_row(self.batch))
        for port in self.info.outputs:
            array = np.asarray(outputs[port.name], np.float64)
            if not np.isfinite(array).all():
                yield Finding(
                    "model",
                    "error",
                    f"{self.model}: its output {port.name} holds NaN or infinity on validation samples",
                )
            elif not np.allclose(array, again[port.name], 1e-3, 1e-4):
                yield Finding(
                    "model",
                    "error",
                    f"{self.model}: two runs on the same samples differ in {port.name}: it is random in eval mode",
                    "use dropout and noise in training mode only (self.training)",
                )
            elif not _free(port) and not np.allclose(array[:1], lone[port.name], 1e-2, 1e-3):
                yield Finding(
                    "model",
                    "warning",
                    f"{self.model}: a sample's {port.name} depends on the other samples of its batch",
                    "normalise with stored statistics in eval mode",
                )

    def loss_findings(self) -> Iterator[Finding]:
        """A finite number that depends on the weights, and is a mean."""
        if not self.info.trains:
            return
        value, reached = self.runner.loss(self.batch)
        if not math.isfinite(value):
            yield Finding("loss", "error", f"{self.model}: the loss is {value} on validation samples")
        elif not reached:
            yield Finding(
                "loss", "error", f"{self.model}: the loss depends on no weight", "compute it from the outputs"
            )
        half = self.runner.loss(_doubled(self.batch))[0]
        if math.isfinite(half) and value and 1.8 < half / value < 2.2:
            yield Finding(
                "loss",
                "warning",
                f"{self.model}: the loss grows with the batch ({value:.4g}, {half:.4g} for the samples twice): a sum",
                "return the mean over the batch, or the learning rate depends on the batch size",
            )

    def metric_findings(self) -> Iterator[Finding]:
        """Every metric a finite number; trained weights better than chance."""
        if self.outputs is None:
            return
        scorer = self.task.scorer()
        scorer.add(self.outputs, self.batch)
        result = scorer.result()
        for metric in self.info.metrics:
            value = result.get(metric.name)
            if value is None or not math.isfinite(value):
                yield Finding("metric", "error", f"{metric.name} is {value}", "return one finite number")
            elif (found := self._at_chance(metric, value)) is not None:
                yield found

    def _at_chance(self, metric: Metric, value: float) -> Finding | None:
        classes = len(self.info.classes)
        if metric.name != "accuracy" or not self.runner.pretrained or classes < 2:
            return None
        if value > min(0.9, CHANCE / classes):
            return None
        return Finding(
            "model",
            "warning",
            f"{self.model}: its trained weights are right in {value:.1%} of {len(self.batch)} samples, and chance "
            f"is {1 / classes:.1%}",
            "compare preprocessing (mean, std, size, channel order) and the order of the classes with the training's",
        )


def _row(batch: Batch) -> Batch:
    return Batch({name: array[:1] for name, array in batch.inputs.items()}, run.rows_of(batch.targets, np.arange(1)))


def _doubled(batch: Batch) -> Batch:
    rows = np.tile(np.arange(len(batch)), 2)
    return Batch({name: array[rows] for name, array in batch.inputs.items()}, run.rows_of(batch.targets, rows))


def _free(port: Port) -> bool:
    return any(isinstance(axis, str) for axis in port.shape[1:])
