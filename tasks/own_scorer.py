"""A user's own metric as a Scorer: a function over a whole split, or an object that is fed batch by batch."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.base import Arrays, Batch, Metric, TaskError
from tasks.own import Parts
from tasks.ports import Form
from tasks.tree import Tree, mapped
from tasks.user_code import guarded

MOST_OUTPUTS = 2_000_000_000  # bytes of a split's outputs that a metric function is given at once


class OwnScorer:
    """The user's metric: a function over a whole split, or an object with add and result, or update and compute.

    A function is given NumPy arrays, outputs in the model's own structure and targets as the data gives them; it
    returns a number, or a mapping by the names of METRICS.
    """

    def __init__(self, parts: Parts, metrics: Sequence[Metric], outputs: Form) -> None:
        self.parts, self.metrics, self.form = parts, metrics, outputs
        metric = parts.metric
        if inspect.isclass(metric):
            with guarded("metric", "metric()", parts.folder):
                metric = metric()
        self.metric = copy.deepcopy(metric) if hasattr(metric, "update") or hasattr(metric, "add") else metric
        self.outputs: list[Tree] = []
        self.targets: list[Tree] = []
        self.bytes = 0

    def add(self, outputs: Arrays, batch: Batch) -> None:
        """One batch: what the model gave, by output name, and the samples themselves."""
        given = self.form.nested(outputs)
        with guarded("metric", "metric()", self.parts.folder):
            if hasattr(self.metric, "add"):
                self.metric.add(given, batch.targets)
                return
            if hasattr(self.metric, "update") and hasattr(self.metric, "compute"):
                self.metric.update(_tensors(given), _tensors(batch.targets))
                return
        self.bytes += sum(np.asarray(array).nbytes for array in outputs.values())
        if self.bytes > MOST_OUTPUTS:
            raise TaskError(
                f"metric(): the split's outputs take more than {MOST_OUTPUTS / 1e9:.0f} GB, too much for one call; "
                "write a class with add(outputs, targets) and result() instead",
                "metric",
            )
        self.outputs.append(given)
        self.targets.append(batch.targets)

    def result(self) -> dict[str, float]:
        """Every metric of the task by name, over all that was added."""
        with guarded("metric", "metric()", self.parts.folder):
            if hasattr(self.metric, "add"):
                value = self.metric.result()
            elif hasattr(self.metric, "update") and hasattr(self.metric, "compute"):
                value = self.metric.compute()
            else:
                value = self._whole()
        return self._named(value)

    def _whole(self) -> Any:
        outputs, targets = _joined(self.outputs), _joined(self.targets)
        try:
            return self.metric(outputs, targets)
        except (AttributeError, TypeError) as error:
            if "numpy" in str(error) or "ndarray" in str(error):
                error.args = (f"{error} [metric() is given NumPy arrays; torch.from_numpy makes a tensor]",)
            raise

    def _named(self, value: Any) -> dict[str, float]:
        if isinstance(value, Mapping):
            missing = [metric.name for metric in self.metrics if metric.name not in value]
            if missing:
                raise TaskError(
                    f"metric() returned {', '.join(map(str, value))} and not {', '.join(missing)}; name what it "
                    'returns in METRICS = {"name": "maximize"}',
                    "metric",
                )
            return {metric.name: _number(value[metric.name], metric.name) for metric in self.metrics}
        if len(self.metrics) != 1:
            raise TaskError(f"metric() returned one value for {len(self.metrics)} METRICS; return a mapping", "metric")
        return {self.metrics[0].name: _number(value, self.metrics[0].name)}


def _number(value: Any, name: str) -> float:
    """A float of a number, or of an array or tensor that holds one."""
    if value is None:
        raise TaskError(f"metric() returned None as {name}; return one number", "metric")
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, np.float64)
        number = float(array.reshape(-1)[0]) if array.size == 1 else math.nan
    except (TypeError, ValueError):
        array, number = np.zeros(0), math.nan
    if array.size != 1:
        kind = f"an array of shape {list(array.shape)}" if array.size else f"a {type(value).__name__}"
        raise TaskError(f"metric() returned {kind} as {name}; return one number", "metric")
    if not math.isfinite(number):
        raise TaskError(f"metric() returned {number} as {name}; return a finite number", "metric")
    return number


def _joined(trees: Sequence[Tree]) -> Tree:
    """Batches as one, leaf by leaf."""
    first = trees[0]
    if first is None:
        return None
    if isinstance(first, Mapping):
        return type(first)({key: _joined([tree[key] for tree in trees]) for key in first})  # type: ignore[call-arg]
    if isinstance(first, tuple | list):
        return tuple(_joined([tree[index] for tree in trees]) for index in range(len(first)))
    return np.concatenate([np.asarray(tree) for tree in trees])


def _tensors(tree: Tree) -> Tree:
    import torch

    return None if tree is None else mapped(lambda leaf: torch.as_tensor(np.ascontiguousarray(leaf)), tree)
