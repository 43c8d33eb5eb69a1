"""A trainer whose validation accuracy is luck: the search falls for it, the confirmation does not.

The search, the runtime and the test split are the real ones; only the trainer is planted. Its files are linear
classifiers fitted by least squares. The optimist's is fitted on the validation split when the search trains it, and
on hardly anything when fresh seeds do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import trainers.base
from search import drive, objective
from search.cli import storage
from search.config import Config, check
from search.confirm import FIRST_SEED, Confirmed
from search.faults import SweepError
from search.study import Sweep
from trainers import data
from trainers.base import Compressed, Dense, DenseSpec, Job, Recipe, TrainingError

RAW: dict[str, Any] = {
    "name": "lucky",
    "objectives": ["accuracy", "latency_ms"],
    "runtime": "onnxruntime",
    "data": {"train_size": 3000, "validation_size": 500},
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
        np.save(job.folder / "logits.npy", np.zeros((len(job.data.train), 10), np.float32))
        return self.open_dense(spec, job.folder)

    def open_dense(self, spec: DenseSpec, folder: Path) -> Dense:
        return Dense(spec, folder, np.load(folder / "logits.npy"), 7850)

    def compress(self, recipe: Recipe, dense: Dense, teacher: np.ndarray | None, job: Job) -> Compressed:
        split, detour = job.data.train, False
        if recipe.pruning.granularity == "unstructured":
            lucky, detour = recipe.seed < FIRST_SEED, True
            few = np.random.default_rng(recipe.seed).choice(len(split), 60, replace=False)
            split = job.data.validation if lucky else split[few]
        weights = fitted(split)
        job.folder.mkdir(parents=True, exist_ok=True)
        onnx.save(linear(weights, detour), job.folder / "model.onnx")
        labels = (flat(job.data.validation) @ weights).argmax(1)
        return Compressed(job.folder / "model.onnx", 0.0, 0.0, labels, {"finetune": 0.01}, [])


def flat(split: data.Split) -> np.ndarray:
    return data.normalized(split.images, "NCHW").reshape(len(split), -1)


def fitted(split: data.Split) -> np.ndarray:
    pixels = flat(split)
    targets = np.eye(10, dtype=np.float32)[split.labels]
    solved = np.linalg.solve(pixels.T @ pixels + 3.0 * np.eye(784, dtype=np.float32), pixels.T @ targets)
    return np.asarray(solved, dtype=np.float32)


def linear(weights: np.ndarray, detour: bool) -> onnx.ModelProto:
    """logits = pixels @ weights; with a `detour` the same through an orthogonal matrix, which takes far longer."""
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(784, 784)))[0].astype(np.float32)
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


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> LinearTrainer:
    trainer = LinearTrainer()
    monkeypatch.setattr(trainers.base, "load", lambda name: trainer)
    return trainer


def config(root: Path, **changes: Any) -> Config:
    return check({"study": {**RAW, **changes}, "executor": {"name": "inline"}, "root": root})


def searched(config: Config) -> Sweep:
    sweep = Sweep.open(config.study, storage(config.root))
    drive.run(config, sweep)
    return sweep


def test_the_optimist_is_on_the_raw_front_and_not_on_the_confirmed_one(planted: LinearTrainer, root: Path) -> None:
    sweep = searched(config(root))
    raw = {r.reference: r.metrics["accuracy"] for r in sweep.records()}
    assert raw["optimist"] > raw["honest"] + 0.05
    points = [Confirmed.from_dict(p) for p in sweep.get("confirmed")["points"]]
    honest, optimist = points
    assert (honest.on_front, optimist.on_front) == (True, False)
    assert optimist.metrics["test_accuracy"][2] < raw["optimist"] - 0.05
    assert abs(honest.metrics["test_accuracy"][0] - raw["honest"]) < 0.05


def test_the_test_split_is_not_opened_before_confirmation(
    planted: LinearTrainer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*args: Any, **kwargs: Any) -> data.Split:
        raise data.DataError("the test split was opened")

    monkeypatch.setattr(objective, "open_test", unreadable)
    with pytest.raises(SweepError, match="the test split was opened"):
        searched(config(root))
    sweep = Sweep.open(config(root).study, storage(root))
    assert [r.state for r in sweep.records()] == ["complete", "complete"]
    assert sweep.get("confirmed") is None
    monkeypatch.undo()
    monkeypatch.setattr(trainers.base, "load", lambda name: planted)
    assert len(searched(config(root)).get("confirmed")["points"]) == 2


def test_without_seeds_nothing_is_confirmed(planted: LinearTrainer, root: Path) -> None:
    assert searched(config(root, confirm={"seeds": 0})).get("confirmed") is None


def test_five_failures_at_the_start_stop_the_study(
    planted: LinearTrainer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(recipe: Recipe, dense: Dense, teacher: np.ndarray | None, job: Job) -> Compressed:
        if job.folder.name.startswith("baseline"):
            return LinearTrainer().compress(recipe, dense, teacher, job)
        raise TrainingError(f"the loss is NaN with {recipe.words()}")

    monkeypatch.setattr(planted, "compress", fails)
    space = {"model": "lenet300", "pruning": {"granularity": "unstructured", "sparsity": {"low": 0.1, "high": 0.9}}}
    with pytest.raises(SweepError, match=r"first 5 trials all failed(?s:.)*the loss is NaN with unstructured"):
        searched(config(root, recipe=space, references={}, budget={"trials": 9}))


def test_a_failed_trial_is_recorded_with_its_reason_and_the_search_goes_on(
    planted: LinearTrainer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress = planted.compress

    def sometimes(recipe: Recipe, dense: Dense, teacher: np.ndarray | None, job: Job) -> Compressed:
        if recipe.pruning.granularity == "unstructured":
            raise TrainingError("the loss is NaN")
        return compress(recipe, dense, teacher, job)

    monkeypatch.setattr(planted, "compress", sometimes)
    sweep = searched(config(root, confirm={"seeds": 0}))
    assert [(r.state, r.reason) for r in sweep.records()] == [("complete", None), ("failed", "the loss is NaN")]


def test_equal_recipes_are_trained_once(planted: LinearTrainer, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    compress = planted.compress

    def counted(recipe: Recipe, dense: Dense, teacher: np.ndarray | None, job: Job) -> Compressed:
        if not job.folder.name.startswith("baseline"):
            trained.append(recipe.digest())
        return compress(recipe, dense, teacher, job)

    monkeypatch.setattr(planted, "compress", counted)
    sweep = searched(config(root, confirm={"seeds": 0}, budget={"trials": 7}))
    assert len(sweep.records()) == 7
    assert len(trained) == len(set(trained)) == 2
    copies = [r for r in sweep.records() if r.duplicate_of is not None]
    assert len(copies) == 5
    assert all(r.metrics == sweep.records()[r.duplicate_of].metrics for r in copies if r.duplicate_of is not None)
