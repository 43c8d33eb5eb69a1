"""A trainer without a framework: softmax regression in NumPy, exported as ONNX. It prunes weights and distils."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tasks.base import Arrays, TaskInfo, TaskSpec
from tasks.mnist.task import Mnist
from tests.conftest import CACHE
from trainers import base
from trainers.base import Capabilities, Compressed, Dense, DenseSpec, Job, Teacher, TrainingError
from trainers.recipe import Distillation, Recipe

NAME = "tests.outside.softmax:Trainer"
CLASSES, PIXELS = 10, 784
Weights = tuple[np.ndarray, np.ndarray]


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True), np.float32)


class Trainer:
    """See `trainers.base.Trainer`."""

    CAPABILITIES = Capabilities(("none", "unstructured"), ("none",), (0,), ("onnx",))

    def versions(self) -> dict[str, str]:
        return {"numpy": np.__version__}

    def dense(self, spec: DenseSpec, job: Job) -> Dense:
        weights = np.zeros((PIXELS, CLASSES), np.float32), np.zeros(CLASSES, np.float32)
        weights, curves = fitted(weights, job, "dense", spec.epochs, spec.learning_rate, spec.batch_size, spec.seed)
        np.savez(job.folder / "weights.npz", *weights)
        outputs = {"logits": predicted(weights, job, "train")}
        return Dense(spec, job.folder, PIXELS * CLASSES + CLASSES, outputs).save(curves, self.versions())

    def open_dense(self, spec: DenseSpec, folder: Path) -> Dense:
        return Dense.open(spec, folder)

    def compress(self, recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> Compressed:
        base.check_job(recipe, dense, teacher, job)
        weights, tuning = opened(dense), recipe.finetuning
        curves: list[dict[str, float]] = []
        mask = np.ones_like(weights[0])
        if recipe.pruning.granularity == "unstructured":
            order = np.argsort(np.abs(weights[0]), axis=None)[: round(recipe.pruning.sparsity * mask.size)]
            mask.reshape(-1)[order] = 0
        if recipe.trains:
            said = None
            if recipe.distillation.kind != "none" and teacher is not None:
                said = (teacher.outputs or live(teacher, job))["logits"]
            weights, curves = fitted(
                (weights[0] * mask, weights[1]),
                job,
                "fine-tune",
                tuning.epochs,
                tuning.learning_rate,
                tuning.batch_size,
                recipe.seed,
                lambda w: w * mask,
                recipe.distillation,
                said,
            )
        file = job.folder / "model.onnx"
        onnx.save(exported(weights), file)
        outputs = {"logits": predicted(weights, job, "validation")[: base.COMPARED_ROWS]}
        removed = float(np.mean(weights[0] == 0))
        pruned = removed if recipe.pruning.granularity != "none" else 0.0
        return Compressed(file, pruned, pruned, outputs, len(outputs["logits"]), {"export": 1e-3}, curves)


def opened(dense: Dense) -> Weights:
    with np.load(dense.folder / "weights.npz") as stored:
        return stored["arr_0"], stored["arr_1"]


def live(teacher: Teacher, job: Job) -> Arrays:
    assert teacher.dense is not None
    return {"logits": predicted(opened(teacher.dense), job, "train")}


def predicted(weights: Weights, job: Job, split: str) -> np.ndarray:
    data = job.task.data(split)
    pixels = data.batch(np.arange(len(data))).inputs["input"].reshape(len(data), -1)
    return np.asarray(pixels @ weights[0] + weights[1], np.float32)


def fitted(
    weights: Weights,
    job: Job,
    stage: str,
    epochs: float,
    rate: float,
    size: int,
    seed: int,
    kept: Callable[[np.ndarray], np.ndarray] = lambda weights: weights,
    how: Distillation | None = None,
    said: np.ndarray | None = None,
) -> tuple[Weights, list[dict[str, float]]]:
    """Gradient descent; one dict per epoch."""
    data, draw = job.task.data("train"), np.random.default_rng(seed)
    per_epoch = -(-len(data) // size)
    steps, step, curves = max(1, round(epochs * per_epoch)), 0, []
    matrix, bias = weights
    while step < steps:
        losses = []
        for rows in np.array_split(draw.permutation(len(data)), per_epoch)[: steps - step]:
            job.pause()
            batch = data.batch(rows)
            pixels = batch.inputs["input"].reshape(len(rows), -1)
            wanted = np.eye(CLASSES, dtype=np.float32)[batch.targets]
            if how is not None and said is not None:
                soft = softmax(said[rows] / how.temperature if how.kind == "soft" else 1e3 * said[rows])
                wanted = how.alpha * soft + (1 - how.alpha) * wanted
            given = softmax(pixels @ matrix + bias)
            losses.append(float(-np.mean(np.sum(wanted * np.log(given + 1e-9), 1))))
            if not np.isfinite(losses[-1]):
                raise TrainingError(f"{stage}: the loss is NaN; lower learning_rate (it is {rate:g})")
            slope = (given - wanted) / len(rows)
            matrix = kept(matrix - 30 * rate * pixels.T @ slope).astype(np.float32)
            bias = (bias - 30 * rate * slope.sum(0)).astype(np.float32)
            step += 1
            job.progress(stage, step / steps)
        scorer, validation = job.task.scorer(), job.task.data("validation")
        logits = predicted((matrix, bias), job, "validation")
        scorer.add({"logits": logits}, validation.batch(np.arange(len(validation))))
        curves.append({"epoch": step / per_epoch, "loss": float(np.mean(losses)), **scorer.result()})
    return (matrix, bias), curves


def exported(weights: Weights) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in (("input", [1, 28, 28]), ("logits", [CLASSES]))
    ]
    stored = [numpy_helper.from_array(weights[0], "weight"), numpy_helper.from_array(weights[1], "bias")]
    graph = helper.make_graph(nodes, "softmax", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Digits(Mnist):
    """MNIST with a model for this trainer."""

    def info(self) -> TaskInfo:
        models: Mapping[str, tuple[str, ...]] = {NAME: ("linear",), "softmax": ("linear",)}
        return replace(super().info(), models=models)

    def program(self, trainer: str) -> Any:
        return None


def digits() -> Digits:
    return Digits(TaskSpec("mnist", train_size=3000, validation_size=500), CACHE, lambda stage, fraction: None)
