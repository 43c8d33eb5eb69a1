"""A task whose metrics are errors: predict a number, judged by RMSE and MAE. Its linear models are exported as real
ONNX files in milliseconds.

The `unstructured` recipe is an optimist: with the seeds of a search it is fitted on the validation split, with fresh
ones it is wrong in every weight. The `n_m` recipe gives a file whose outputs are not a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from search.study.config import Confirm
from tasks.base import Arrays, Batch, Metric, Port, Progress, Serving, TaskInfo, TaskSpec, class_agreement
from trainers.base import Compressed, Dense, DenseSpec, Job, Teacher
from trainers.recipe import Recipe

WIDTH, COUNTS = 6, {"train": 400, "validation": 200, "test": 250}
METRICS = (
    Metric("rmse", "minimize", "K", 1.0, 3, "RMSE", tolerance=2.0),
    Metric("mae", "minimize", "K", 1.0, 3, "MAE"),
)


class Rows:
    """Random rows; the target is linear in them, with a deviation of 1 that nothing explains."""

    resident = True

    def __init__(self, split: str):
        rng = np.random.default_rng(list(COUNTS).index(split))
        self.features = rng.normal(size=(COUNTS[split], WIDTH)).astype(np.float32)
        self.targets = self.features @ np.arange(1, WIDTH + 1) + rng.normal(size=COUNTS[split])

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, rows: np.ndarray, epoch: int | None = None) -> Batch:
        return Batch({"features": self.features[rows]}, self.targets[rows])


class Errors:
    """RMSE and MAE."""

    def __init__(self) -> None:
        self.found: list[np.ndarray] = []

    def add(self, outputs: Arrays, batch: Batch) -> None:
        self.found.append(outputs["value"][:, 0] - batch.targets)

    def result(self) -> dict[str, float]:
        errors = np.concatenate(self.found)
        return {"rmse": float(np.sqrt(np.mean(errors**2))), "mae": float(np.mean(np.abs(errors)))}


class Regression:
    """The task."""

    def __init__(self, spec: TaskSpec, home: Path, progress: Progress):
        self.ports = (Port("features", ("batch", WIDTH)),), (Port("value", ("batch", 1)),)

    def info(self) -> TaskInfo:
        models = {"pytorch": ("line",)}
        return TaskInfo("regression", models, *self.ports, METRICS, "planted", trains=True, counts=dict(COUNTS))

    def data(self, split: str) -> Rows:
        return Rows(split)

    def scorer(self) -> Errors:
        return Errors()

    def agreement(self, file: Arrays, model: Arrays) -> float:
        return class_agreement(self.ports[1], file, model)

    def program(self, trainer: str) -> Any:
        raise NotImplementedError

    def serving(self) -> Serving | None:
        return None


class LeastSquares:
    """The trainer."""

    def versions(self) -> dict[str, str]:
        return {"numpy": np.__version__}

    def dense(self, spec: DenseSpec, job: Job) -> Dense:
        outputs = {"value": np.zeros((COUNTS["train"], 1), np.float32)}
        return Dense(spec, job.folder, WIDTH, outputs).save([], self.versions())

    def open_dense(self, spec: DenseSpec, folder: Path) -> Dense:
        return Dense.open(spec, folder)

    def compress(self, recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> Compressed:
        given, granularity = job.task.data("train"), recipe.pruning.granularity
        lucky = recipe.seed < Confirm().first_seed
        if granularity == "unstructured" and lucky:
            given = job.task.data("validation")
        batch = given.batch(np.arange(len(given)))
        weights = np.linalg.lstsq(batch.inputs["features"], batch.targets, rcond=None)[0].astype(np.float32)[:, None]
        weights = weights * math.nan if granularity == "n_m" else weights
        weights = weights + 2 if granularity == "unstructured" and not lucky else weights
        job.folder.mkdir(parents=True, exist_ok=True)
        onnx.save(exported(weights), job.folder / "model.onnx")
        held = job.task.data("validation")
        outputs = {"value": held.batch(np.arange(len(held))).inputs["features"] @ weights}
        return Compressed(job.folder / "model.onnx", 0.0, 0.0, outputs, len(held), {"finetune": 0.01}, [])


def exported(weights: np.ndarray) -> onnx.ModelProto:
    """value = features @ weights."""
    ends: Mapping[str, int] = {"features": WIDTH, "value": 1}
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in ends.items()]
    node = helper.make_node("MatMul", ["features", "weights"], ["value"])
    graph = helper.make_graph([node], "linear", made[:1], made[1:], [numpy_helper.from_array(weights, "weights")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
