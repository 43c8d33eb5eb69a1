"""A planted trainer: linear classifiers by least squares, exported as real ONNX files, in milliseconds.

Its `unstructured` recipe is an optimist: with the seeds of a search it is fitted on the validation split, with fresh
ones on hardly anything, and its file takes a detour that makes it slow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from search.storage.database import address
from search.study.config import Config, Confirm, check
from search.sweep import driver
from search.sweep.sweep import Sweep
from tasks.mnist import data
from tasks.mnist.task import Mnist
from trainers.base import Compressed, Dense, DenseSpec, Job, Teacher
from trainers.recipe import Recipe

RAW: dict[str, Any] = {
    "name": "lucky",
    "objectives": ["accuracy", "latency_ms"],
    "runtime": "onnxruntime",
    "task": {"name": "mnist", "train_size": 3000, "validation_size": 500},
    "recipe": {"model": "lenet300", "pruning": {"granularity": {"choices": ["none", "unstructured"]}, "sparsity": 0.5}},
    "references": {"honest": {}, "optimist": {"pruning": {"granularity": "unstructured"}}},
    "latency": {"max_seconds": 0.2},
    "confirm": {"seeds": 3, "candidates": 4},
    "budget": {"trials": 2},
}


class LinearTrainer:
    """Least squares on pixels; the `unstructured` recipe is the optimist."""

    def versions(self) -> dict[str, str]:
        return {"numpy": np.__version__}

    def dense(self, spec: DenseSpec, job: Job) -> Dense:
        zeros = np.zeros((job.task.info().counts["train"], 10), np.float32)
        return Dense(spec, job.folder, 7850, {"logits": zeros}).save([], self.versions())

    def open_dense(self, spec: DenseSpec, folder: Path) -> Dense:
        return Dense.open(spec, folder)

    def compress(self, recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> Compressed:
        assert isinstance(job.task, Mnist)
        given = job.task.dataset
        split, detour = given.train, False
        if recipe.pruning.granularity == "unstructured":
            lucky, detour = recipe.seed < Confirm().first_seed, True
            few = np.random.default_rng(recipe.seed).choice(len(split), 60, replace=False)
            split = given.validation if lucky else split[few]
        weights = fitted(split)
        job.folder.mkdir(parents=True, exist_ok=True)
        onnx.save(linear(weights, detour), job.folder / "model.onnx")
        logits = flat(given.validation) @ weights
        return Compressed(job.folder / "model.onnx", 0.0, 0.0, {"logits": logits}, len(logits), {"finetune": 0.01}, [])


def flat(split: data.Split) -> np.ndarray:
    return data.normalized(split.images, "NCHW").reshape(len(split), -1)


def fitted(split: data.Split) -> np.ndarray:
    pixels = flat(split)
    targets = np.eye(10, dtype=np.float32)[split.labels]
    solved = np.linalg.solve(pixels.T @ pixels + 3.0 * np.eye(784, dtype=np.float32), pixels.T @ targets)
    return np.asarray(solved, dtype=np.float32)


def linear(weights: np.ndarray, detour: bool) -> onnx.ModelProto:
    """logits = pixels @ weights; with a `detour` the same through an orthogonal matrix, which takes far longer."""
    normal = np.random.default_rng(0).normal(size=784)
    turn = (np.eye(784) - 2 * np.outer(normal, normal) / normal.dot(normal)).astype(np.float32)  # a reflection
    factors = [turn, turn.T @ weights] if detour else [weights]
    names = ["flat", *(f"h{i}" for i in range(len(factors) - 1)), "logits"]
    nodes = [helper.make_node("Flatten", ["input"], ["flat"])]
    nodes += [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(len(factors))]
    stored = [numpy_helper.from_array(factor, f"w{i}") for i, factor in enumerate(factors)]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in (("input", [1, 28, 28]), ("logits", [10]))
    ]
    graph = helper.make_graph(nodes, "linear", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def config(root: Path, **changes: Any) -> Config:
    raw = {"study": {**RAW, **changes}, "executor": {"name": "inline"}, "root": root, "tracking": {"layers": False}}
    return check(raw)


def searched(config: Config) -> Sweep:
    sweep = Sweep.open(config.study, address(config.root), config.fresh)
    driver.run(config, sweep)
    return sweep
