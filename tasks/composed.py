"""A task put together from a model, a data source, and the user's own parts: what every adapter ends in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tasks import ports, scorers
from tasks.base import (
    ACCURACY,
    Arrays,
    Batch,
    Metric,
    Port,
    Progress,
    Scorer,
    Serving,
    TaskError,
    TaskInfo,
    TaskSpec,
    class_agreement,
    digest_of,
)
from tasks.images import ImageOptions, normalized
from tasks.own import Parts
from tasks.own_scorer import OwnScorer
from tasks.ports import Form
from tasks.samples import Samples
from tasks.serving_of import serving_of
from tasks.splits import Splits
from tasks.tree import Tree, arrays, leaves

CACHED_BYTES = 1_000_000_000  # of a teacher's outputs on the training split; larger ones are computed in every step
EXAMPLES = (2, 3)  # samples in the two examples by which ports are described
LOOKED = 64  # samples among which the second example is sought, where samples differ in size


class Half(Protocol):
    """The model's half of a task, of one framework.

    `trainer`, `models`: what the driver is told. `last_axis`: whether classes stand on the last axis. `layout`: of
    inputs with four axes. `notes`: what was inferred.
    """

    trainer: str
    models: tuple[str, ...]
    last_axis: bool
    layout: str
    notes: list[str]

    def adapt(self, inputs: Tree, targets: Tree | None) -> tuple[Tree, Tree | None]:
        """Samples as the source gives them -> the network's inputs and what loss and metric need."""
        ...

    def bind(self, inputs: Tree) -> Form:
        """Names for the inputs."""
        ...

    def probe(self, examples: Sequence[Arrays]) -> Sequence[Arrays]:
        """The model's outputs on examples."""
        ...

    def outputs(self) -> Form:
        """Names of the outputs, known after `probe`."""
        ...

    def kinds(self, outputs: tuple[Port, ...]) -> tuple[Port, ...]:
        """The output ports as they are known from targets -> as the half knows them."""
        ...

    def settle(self, inputs: tuple[Port, ...], outputs: tuple[Port, ...], images: bool) -> None:
        """Take the ports as they were described."""
        ...

    def metrics(self, outputs: tuple[Port, ...], classified: bool) -> tuple[Metric, ...]:
        """The metrics where the study names none; () for the usual ones."""
        ...

    def scorer(self, metrics: tuple[Metric, ...]) -> Scorer | None:
        """The half's own scorer; None for the usual ones."""
        ...

    def trains(self) -> bool:
        """Whether there is a loss."""
        ...

    def program(self) -> Any:
        """What the trainer is given."""
        ...

    def serving(self) -> Serving | None:
        """What a request goes through; None where the source decides it."""
        ...


class TaskData:
    """See `tasks.base.Dataset`. `lengths`: as of `tasks.samples.Samples`, for batches of like lengths."""

    def __init__(self, samples: Samples, prepare: Callable[[Tree, Tree | None], Batch]) -> None:
        self.samples, self._prepare = samples, prepare
        self.resident, self.lengths = samples.resident, samples.lengths

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, rows: np.ndarray, epoch: int | None = None) -> Batch:
        """The samples `rows`, int64 [B], in that order; the same each time."""
        return self._prepare(*self.samples.take(np.asarray(rows, np.int64), epoch))


class ComposedTask:
    """See `tasks.base.Task`."""

    def __init__(
        self,
        spec: TaskSpec,
        home: Path,
        progress: Progress,
        name: str,
        half: Half,
        splits: Splits,
        parts: Parts,
        code: str = "",
        reopen: Callable[[], Splits] | None = None,
    ) -> None:
        self.spec, self.home, self.progress, self.name = spec, home, progress, name
        self.half, self.splits, self.parts, self.code, self._reopen = half, splits, parts, code, reopen

    def info(self) -> TaskInfo:
        """What the driver needs to know; computed once."""
        return self._info

    @functools.cached_property
    def _info(self) -> TaskInfo:
        train, validation = self.splits.open("train"), self.splits.open("validation")
        inputs, outputs = self._ports
        places = {split: self._place(self.splits.open(split)) for split in ("train", "validation")}
        return TaskInfo(
            name=self.name,
            models={self.half.trainer: self.half.models},
            inputs=inputs,
            outputs=outputs,
            metrics=self._metrics,
            data_digest=digest_of([train.digest(), validation.digest()]),
            code_digest=self.code,
            trains=self.half.trains(),
            teacher=self._teacher(train),
            classes=self._classes,
            counts={"train": len(train), "validation": len(validation)},
            places={split: place for split, place in places.items() if place},
            notes=(*self.half.notes, *self.splits.notes),
        )

    def _place(self, samples: Samples) -> str:
        place = samples.place
        return str(place.relative_to(self.home)) if place is not None and place.is_relative_to(self.home) else ""

    @functools.cached_property
    def _form(self) -> Form:
        inputs, _ = self._adapted(np.arange(1))
        return self.half.bind(inputs)

    def _adapted(self, rows: np.ndarray) -> tuple[Tree, Tree | None]:
        inputs, targets = self.splits.open("validation").take(rows)
        return self.half.adapt(self._processed(inputs), targets)

    @functools.cached_property
    def _image(self) -> ImageOptions | None:
        """What raw pixels go through; None where the data is what the model takes."""
        self.splits.open("validation")  # a source knows it once something was read
        found: Any = self.splits.source.facts.get("image")
        return ImageOptions.from_dict(found) if found else None

    def _processed(self, inputs: Tree) -> Tree:
        if self._image is not None and isinstance(inputs, np.ndarray) and inputs.dtype == np.uint8:
            return normalized(inputs, self._image)
        if self.parts.preprocess is not None:
            return arrays(self.parts.called("preprocess", inputs), "preprocess()")
        return inputs

    def _batch(self, inputs: Tree, targets: Tree | None) -> Batch:
        given, wanted = self.half.adapt(self._processed(inputs), targets)
        return Batch(self._form.flat(given), wanted)

    @functools.cached_property
    def _ports(self) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        samples = self.splits.open("validation")
        if len(samples) < max(EXAMPLES):
            raise TaskError(
                f"the validation split has {len(samples)} samples; it needs {max(EXAMPLES)} or more", "data"
            )
        data = TaskData(samples, self._batch)
        first = data.batch(np.arange(EXAMPLES[0]))
        second = self._unlike(samples, data, first)
        free = ports.free_axes(first.inputs, second.inputs)
        inputs = ports.ports(self._form, first.inputs, second.inputs, free)
        inputs = tuple(replace(p, layout=self.half.layout) if len(p.shape) == 4 else p for p in inputs)
        made = self.half.probe([first.inputs, second.inputs])
        outputs = ports.ports(self.half.outputs(), made[0], made[1], free)
        outputs = self.half.kinds(ports.kinds(outputs, made[0], first.targets, self.half.last_axis))
        self.half.settle(inputs, outputs, self._image is not None)
        return inputs, outputs

    def _unlike(self, samples: Samples, data: TaskData, first: Batch) -> Batch:
        """The second example: of other sizes than the first where samples differ in size."""
        few, more = EXAMPLES
        if samples.lengths is not None:
            lengths = samples.lengths[: max(LOOKED, more)]
            other = int(np.argmax(np.abs(lengths - lengths[:few].max())))
            return data.batch(np.array([other] * more))
        second = data.batch(np.arange(more))
        if samples.resident:
            return second
        for start in range(more, min(LOOKED, len(samples) - more), more):
            if any(second.inputs[name].shape[1:] != array.shape[1:] for name, array in first.inputs.items()):
                break
            second = data.batch(np.arange(start, start + more))
        return second

    def _teacher(self, train: Samples) -> Any:
        outputs = self._ports[1]
        fixed = all(isinstance(axis, int) for port in outputs for axis in port.shape[1:])
        size = sum(4 * int(np.prod([a for a in port.shape[1:] if isinstance(a, int)])) for port in outputs)
        return "cached" if train.resident and fixed and size * len(train) <= CACHED_BYTES else "online"

    @functools.cached_property
    def _metrics(self) -> tuple[Metric, ...]:
        if self.parts.metrics:
            return self.parts.metrics
        outputs = self._ports[1]
        found = self.half.metrics(outputs, self._classified)
        return found or ((ACCURACY,) if self._classified else (scorers.METRICS["mse"],))

    @property
    def _classified(self) -> bool:
        return any(port.kind == "logits" for port in self._ports[1])

    @property
    def _classes(self) -> tuple[str, ...]:
        return self.splits.source.classes or self.parts.classes

    def data(self, split: str) -> TaskData:
        """One of SPLITS; `test` is opened for the confirmed front alone."""
        return TaskData(self.splits.open(split), self._batch)

    def repeats(self, split: str) -> bool:
        """Whether the source, opened again, gives the same samples: else every worker would have data of its own."""
        return self._reopen is None or self._reopen().open(split).digest() == self.splits.open(split).digest()

    def scorer(self) -> Scorer:
        """A new one, with nothing added."""
        outputs = self._ports[1]
        if self.parts.metric is not None:
            return OwnScorer(self.parts, self._metrics, self.half.outputs())
        return self.half.scorer(self._metrics) or scorers.scorer(self._metrics, outputs, target_of)

    def agreement(self, file: Arrays, model: Arrays) -> float:
        """Fraction in [0, 1] in which an exported file's outputs say the same as those of the model it was made of."""
        return class_agreement(self._ports[1], file, model)

    def program(self, trainer: str) -> Any:
        """The trainer's own half of the task (a TorchProgram, a KerasProgram); imports the framework."""
        if trainer != self.half.trainer:
            raise TaskError(f"the {trainer} trainer cannot compress this model; {self.half.trainer} can", "model")
        _ = self._ports
        return self.half.program()

    def serving(self) -> Serving | None:
        """Pre- and postprocessing for serving; None where the task has none."""
        if (own := self.half.serving()) is not None:
            return replace(own, classes=self._classes)
        columns = self.splits.source.facts.get("columns")
        return serving_of(self._ports[1], self._classes, self._image, columns, self.parts)


def target_of(targets: Any) -> Any:
    """The target that the known metrics compare with: the lone one, or one called label, labels, target or y."""
    found = dict(leaves(targets)) if targets is not None else {}
    for name in ("", "label", "labels", "target", "targets", "y", "mask"):
        if name in found:
            return found[name]
    return next(iter(found.values()), None)
