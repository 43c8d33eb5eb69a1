"""The metrics that a LightningModule logs, as a Scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from tasks.base import Arrays, Batch, Metric, TaskError
from tasks.lightning_steps import hook, overridden, quiet, tensors
from tasks.ports import Form
from tasks.user_code import guarded

STEPS = ("validation_step", "test_step")


class Stepper(Protocol):
    """The half of the task that runs the module's steps. `folder`: of the user's file."""

    name: str
    folder: Path | None

    def fresh(self) -> Any:
        """The module again: its metrics start empty."""
        ...

    def outputs(self) -> Form:
        """Names of the network's outputs."""
        ...

    def step(self, name: str, outputs: Any, batch: Any, logged: dict[str, Any], module: Any) -> Any:
        """Run a step with the network's outputs given."""
        ...


class LoggedScorer:
    """What validation_step (or test_step) logs: numbers as means over samples, metric objects computed at the end."""

    def __init__(self, half: Stepper, metrics: Sequence[Metric]) -> None:
        self.half, self.metrics = half, metrics
        self.module = half.fresh()
        self.name = next((name for name in STEPS if overridden(self.module, name)), "")
        if not self.name:
            raise TaskError(f"{half.name} has no validation_step() that could log {metrics[0].name!r}", "metric")
        self.sums: dict[str, float] = {}
        self.seen: dict[str, int] = {}
        self.objects: dict[str, Any] = {}
        self.all_logged: set[str] = set()
        hook(self.module, "on_validation_epoch_start", half.folder)

    def add(self, outputs: Arrays, batch: Batch) -> None:
        """One batch: what the model gave, by output name, and the samples themselves."""
        logged: dict[str, Any] = {}
        form = self.half.outputs()
        given = form.nested({name: torch.as_tensor(np.ascontiguousarray(a)) for name, a in outputs.items()})
        with torch.no_grad():
            self.half.step(self.name, given, tensors(batch.targets), logged, self.module)
        self._take(logged, len(batch))

    def _take(self, logged: Mapping[str, Any], weight: int) -> None:
        for name, value in logged.items():
            self.all_logged.add(name)
            if hasattr(value, "compute"):
                self.objects[name] = value
            else:
                with guarded("metric", f"{self.name}() logs {name}", self.half.folder):
                    self.sums[name] = self.sums.get(name, 0.0) + float(value) * weight
                self.seen[name] = self.seen.get(name, 0) + weight

    def result(self) -> dict[str, float]:
        """Every metric of the task by name, over all that was added."""
        logged: dict[str, Any] = {}
        with quiet(self.module, logged), torch.no_grad():
            hook(self.module, "on_validation_epoch_end", self.half.folder)
        for name in logged:
            self.sums.pop(name, None)
        self._take(logged, 1)
        return {metric.name: self._value(metric.name) for metric in self.metrics}

    def _value(self, name: str) -> float:
        if name in self.objects:
            with guarded("metric", f"computing {name}", self.half.folder):
                return float(self.objects[name].compute())
        if name not in self.sums:
            shown = ", ".join(sorted(self.all_logged)) or "nothing"
            raise TaskError(f"task.metric: {self.name}() logs no {name!r}; it logs {shown}", "metric")
        return self.sums[name] / max(1, self.seen[name])
