"""The metrics that need no code of the user's, computed batch by batch over a whole split. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.address import nearest
from tasks.base import ACCURACY, AGREEMENT, Arrays, Batch, Metric, Port, Scorer, TaskError, class_agreement

METRICS: dict[str, Metric] = {
    "accuracy": ACCURACY,
    "top5": Metric("top5", "maximize", "%", 100.0, 2, "Top-5 accuracy"),
    "f1": Metric("f1", "maximize", "%", 100.0, 2, "F1 (macro)"),
    "miou": Metric("miou", "maximize", "%", 100.0, 2, "Mean IoU"),
    "mse": Metric("mse", "minimize", "", 1.0, 4, "Mean squared error"),
    "rmse": Metric("rmse", "minimize", "", 1.0, 4, "Root mean squared error"),
    "mae": Metric("mae", "minimize", "", 1.0, 4, "Mean absolute error"),
    "ndcg": Metric("ndcg", "maximize", "", 1.0, 4, "NDCG@10"),
    "agreement": AGREEMENT,
}
NDCG_AT = 10


def metrics_named(text: str) -> tuple[Metric, ...]:
    """`f1, accuracy` -> the metrics, the objective first; raises TaskError for a name that is none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in METRICS:
            raise TaskError(f"task.metric: {name!r} is not a metric{nearest(name, list(METRICS))}, or FILE.py:NAME")
    return tuple(METRICS[name] for name in dict.fromkeys(names))


@dataclass(frozen=True)
class Wanted:
    """What a scorer reads: an output, the axis of its class scores, and `pick`, which finds the target of a batch."""

    output: Port
    pick: Callable[[Any], Any] = lambda targets: targets

    def scores(self, outputs: Arrays) -> np.ndarray:
        """The output as float, its class axis last."""
        return np.moveaxis(np.asarray(outputs[self.output.name], np.float64), self.output.axis, -1)

    def values(self, outputs: Arrays) -> np.ndarray:
        """The output as it is."""
        return np.asarray(outputs[self.output.name], np.float64)

    def target(self, batch: Batch) -> np.ndarray:
        """The batch's target; raises TaskError without one."""
        found = self.pick(batch.targets)
        if found is None:
            raise TaskError("the data has no targets, which this metric needs; use metric: agreement", "metric")
        return np.asarray(found)

    def classes(self, outputs: Arrays, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and true class, int64, equally shaped; one-hot targets are turned into classes."""
        scores, target = self.scores(outputs), self.target(batch)
        if target.shape == np.moveaxis(scores, -1, self.output.axis).shape and target.dtype.kind == "f":
            target = target.argmax(self.output.axis)
        predicted = scores.argmax(-1) if scores.shape[-1] > 1 else (scores[..., 0] > 0).astype(np.int64)
        if predicted.shape != target.shape:
            target = target.reshape(predicted.shape) if target.size == predicted.size else target
        if predicted.shape != target.shape:
            raise TaskError(
                f"the output {self.output.name} gives classes of shape {list(predicted.shape)} and the targets are "
                f"{list(target.shape)}: they must be equal",
                "metric",
            )
        return predicted, target.astype(np.int64)


class Share:
    """Fraction of targets that are among the `most` largest scores: accuracy, top5. A negative target is left out."""

    def __init__(self, name: str, wanted: Wanted, most: int = 1) -> None:
        self.name, self.wanted, self.most = name, wanted, most
        self.right = self.seen = 0

    def add(self, outputs: Arrays, batch: Batch) -> None:
        """One batch: what the model gave, by output name, and the samples themselves."""
        if self.most == 1:
            predicted, target = self.wanted.classes(outputs, batch)
            hits = predicted == target
        else:
            scores, target = self.wanted.scores(outputs), self.wanted.target(batch).astype(np.int64)
            best = np.argpartition(-scores, min(self.most, scores.shape[-1]) - 1, -1)[..., : self.most]
            hits = (best == target[..., None]).any(-1)
        counted = target >= 0
        self.right += int(hits[counted].sum())
        self.seen += int(counted.sum())

    def result(self) -> dict[str, float]:
        """Every metric of the task by name, over all that was added."""
        return {self.name: self.right / max(1, self.seen)}


class Confusion:
    """F1 (macro) or mean IoU from one confusion matrix; labels that are no class (255, -1) are left out."""

    def __init__(self, name: str, wanted: Wanted, of: Callable[[np.ndarray], float]) -> None:
        self.name, self.wanted, self.of = name, wanted, of
        self.matrix = np.zeros((0, 0), np.int64)

    def add(self, outputs: Arrays, batch: Batch) -> None:
        """One batch: what the model gave, by output name, and the samples themselves."""
        predicted, target = self.wanted.classes(outputs, batch)
        classes = max(2, self.wanted.scores(outputs).shape[-1])
        known = (target >= 0) & (target < classes)
        if len(self.matrix) < classes:
            self.matrix = np.zeros((classes, classes), np.int64)
        pairs = target[known] * classes + predicted[known]
        self.matrix += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def result(self) -> dict[str, float]:
        """Every metric of the task by name, over all that was added."""
        return {self.name: self.of(self.matrix)}


def macro_f1(matrix: np.ndarray) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN), of a confusion matrix [true, predicted]."""
    hits, wrong = _counts(matrix)
    there = 2 * hits + wrong > 0
    return float(np.mean(2 * hits[there] / (2 * hits + wrong)[there])) if there.any() else 0.0


def mean_iou(matrix: np.ndarray) -> float:
    """Mean over classes of TP / (TP + FP + FN), of a confusion matrix [true, predicted]."""
    hits, wrong = _counts(matrix)
    there = hits + wrong > 0
    return float(np.mean(hits[there] / (hits + wrong)[there])) if there.any() else 0.0


def _counts(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hits = np.diag(matrix).astype(float)
    return hits, matrix.sum(0) + matrix.sum(1) - 2 * hits


class Errors:
    """Mean squared, root mean squared or mean absolute error over all values."""

    def __init__(self, name: str, wanted: Wanted) -> None:
        self.name, self.wanted = name, wanted
        self.total, self.seen = 0.0, 0

    def add(self, outputs: Arrays, batch: Batch) -> None:
        """One batch: what the model gave, by output name, and the samples themselves."""
        values, target = self.wanted.values(outputs), self.wanted.target(batch).astype(np.float64)
        if values.shape != target.shape and values.size != target.size:
            raise TaskError(
                f"the output {self.wanted.output.name} is {list(values.shape)} and the targets are "
                f"{list(target.shape)}: they must be equal",
                "metric",
            )
        apart = values - target.reshape(values.shape)
        self.total += float(np.abs(apart).sum() if self.name == "mae" else np.square(apart).sum())
        self.seen += apart.size

    def result(self) -> dict[str, float]:
        """Every metric of the task by name, over all that was added."""
        mean = self.total / max(1, self.seen)
        return {self.name: math.sqrt(mean) if self.name == "rmse" else mean}


class Ndcg:
    """NDCG@10 (Jarvelin & Kekalainen 2002), gain 2^relevance - 1, mean over groups that hold something relevant.

    Outputs and targets [B, items]: every row is a group. Outputs [B] or [B, 1] with targets `(relevance, group)`, or
    the first input of whole numbers (the user) as the group: rows of a group may come in any batch.
    """

    def __init__(self, name: str, wanted: Wanted) -> None:
        self.name, self.wanted = name, wanted
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.total, self.groups = 0.0, 0

    def add(self, outputs: Arrays, batch: Batch) -> None:
        """One batch: what the model gave, by output name, and the samples themselves."""
        scores = self.wanted.values(outputs)
        if scores.ndim == 2 and scores.shape[1] > 1:
            for row, relevance in zip(scores, self.wanted.target(batch), strict=True):
                self._group(row, relevance)
            return
        relevance, group = _relevance(batch)
        self.parts.append((scores.reshape(-1), relevance, group))

    def _group(self, scores: np.ndarray, relevance: np.ndarray) -> None:
        gains = np.exp2(relevance) - 1
        discount = 1 / np.log2(np.arange(2, 2 + min(NDCG_AT, len(gains))))
        best = float((np.sort(gains)[::-1][:NDCG_AT] * discount).sum())
        if best > 0:
            order = np.argsort(-scores, kind="stable")[:NDCG_AT]
            self.total += float((gains[order] * discount).sum()) / best
            self.groups += 1

    def result(self) -> dict[str, float]:
        """Every metric of the task by name, over all that was added."""
        if self.parts:
            scores, relevance, group = (np.concatenate(column) for column in zip(*self.parts, strict=True))
            self.parts = []
            order = np.argsort(group, kind="stable")
            for rows in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
                self._group(scores[rows], relevance[rows])
        return {self.name: self.total / max(1, self.groups)}


def _relevance(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Relevance and group, float64 and int64 [B], of a batch."""
    targets = batch.targets
    if isinstance(targets, Mapping) and {"relevance", "group"} <= set(targets):
        targets = (targets["relevance"], targets["group"])
    if isinstance(targets, tuple):
        relevance, group = targets[:2]
    else:
        ids = [array for array in batch.inputs.values() if array.dtype.kind in "iu" and array.size == len(batch)]
        if not ids:
            raise TaskError("ndcg: no group; give targets as (relevance, group), or ids as the first input", "metric")
        relevance, group = targets, ids[0]
    return np.asarray(relevance, np.float64).reshape(-1), np.asarray(group).reshape(-1)


class Agreement:
    """How far outputs agree with those of the float file, which the batches carry as targets; see `class_agreement`."""

    def __init__(self, name: str, outputs: Sequence[Port]) -> None:
        self.name, self.outputs = name, outputs
        self.total, self.seen = 0.0, 0

    def add(self, outputs: Arrays, batch: Batch) -> None:
        """One batch: what the model gave, by output name, and the samples themselves."""
        self.total += class_agreement(self.outputs, outputs, batch.targets) * len(batch)
        self.seen += len(batch)

    def result(self) -> dict[str, float]:
        """Every metric of the task by name, over all that was added."""
        return {self.name: self.total / max(1, self.seen)}


class Several:
    """Several scorers as one."""

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        self.scorers = scorers

    def add(self, outputs: Arrays, batch: Batch) -> None:
        """One batch: what the model gave, by output name, and the samples themselves."""
        for scorer in self.scorers:
            scorer.add(outputs, batch)

    def result(self) -> dict[str, float]:
        """Every metric of the task by name, over all that was added."""
        return {name: value for scorer in self.scorers for name, value in scorer.result().items()}


def scorer(metrics: Sequence[Metric], outputs: Sequence[Port], pick: Callable[[Any], Any]) -> Scorer:
    """A new scorer of known metrics, over the first output that holds class scores, else the first."""
    port = next((each for each in outputs if each.kind == "logits"), outputs[0])
    wanted = Wanted(port, pick)
    made: dict[str, Callable[[], Scorer]] = {
        "accuracy": lambda: Share("accuracy", wanted),
        "top5": lambda: Share("top5", wanted, 5),
        "f1": lambda: Confusion("f1", wanted, macro_f1),
        "miou": lambda: Confusion("miou", wanted, mean_iou),
        "mse": lambda: Errors("mse", wanted),
        "rmse": lambda: Errors("rmse", wanted),
        "mae": lambda: Errors("mae", wanted),
        "ndcg": lambda: Ndcg("ndcg", wanted),
        "agreement": lambda: Agreement("agreement", outputs),
    }
    return Several([made[metric.name]() for metric in metrics])
