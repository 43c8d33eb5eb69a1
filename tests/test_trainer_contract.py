"""The contract of trainers, kept by ours on two tasks: MNIST, and one with two inputs and two outputs.

A new trainer of ours joins by two classes of its own here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pare.testing.trainer_work import Result
from pare.testing.trainers import TrainerContract
from runtimes.base import Artifact
from tasks.base import TaskInfo, TaskSpec
from tasks.mnist.task import Mnist
from tests.conftest import CACHE
from tests.onnx_task import bars
from tests.tiny_task import Regions
from trainers.base import capabilities
from trainers.recipe import FineTuning, Pruning, Quantization, Recipe


class TestPyTorchOnRegions(TrainerContract):
    trainer, task, model, pretrained = "pytorch", staticmethod(Regions), "patches", "given"
    learned, sparsity = 0.85, 0.5
    dense_training: ClassVar[dict[str, Any]] = {"epochs": 6, "learning_rate": 1e-2, "batch_size": 40}
    tuning = FineTuning(epochs=4, qat_epochs=1, learning_rate=1e-2, batch_size=40)


class TestTensorFlowOnRegions(TestPyTorchOnRegions):
    trainer = "tensorflow"


class TestOnnxOnBars(TrainerContract):
    trainer, task, model = "onnx", staticmethod(bars), "bars"
    learned, sparsity = 0.9, 0.3
    tuning = FineTuning()
    dense_training: ClassVar[dict[str, Any]] = {}


def few_digits() -> Mnist:
    return Mnist(TaskSpec("mnist", train_size=3000, validation_size=500), CACHE, lambda stage, fraction: None)


def stored_kernels(result: Result, tmp_path: Path) -> list[np.ndarray]:
    """The constant matrices in an exported file, as stored."""
    file = tmp_path / result.compressed.file.name
    file.write_bytes(result.content)
    if file.suffix == ".tflite":
        from runtimes.litert import kernels

        return kernels(Artifact.of(file))
    import onnx
    from onnx import numpy_helper

    stored = [numpy_helper.to_array(each) for each in onnx.load(file).graph.initializer]
    return [array for array in stored if array.ndim >= 2]


def zeros(kernels: list[np.ndarray]) -> float:
    return sum(int(np.sum(kernel == 0)) for kernel in kernels) / sum(kernel.size for kernel in kernels)


@pytest.mark.cluster
class TestPyTorchOnMnist(TrainerContract):
    trainer, task, model = "pytorch", staticmethod(few_digits), "lenet300"
    sparsity = 0.8

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _fetched(cls, fetched: Path) -> None:
        """MNIST lies in the cache."""

    def test_the_dense_file_holds_every_weight(self, carried_out: Any, recipe: Recipe, tmp_path: Path) -> None:
        kernels = stored_kernels(carried_out(recipe), tmp_path)
        assert sum(kernel.size for kernel in kernels) == 784 * 300 + 300 * 100 + 100 * 10

    @pytest.mark.parametrize(
        ("pruning", "sparsity"),
        [(Pruning("unstructured", 0.8), 0.8), (Pruning("unstructured", 0.9, "one_shot"), 0.9), (Pruning("n_m"), 0.5)],
    )
    def test_the_sparsity_is_reached_in_the_file(
        self, carried_out: Any, recipe: Recipe, tmp_path: Path, pruning: Pruning, sparsity: float
    ) -> None:
        result = carried_out(replace(recipe, pruning=pruning))
        assert result.compressed.pruned == pytest.approx(sparsity, abs=0.005)
        assert zeros(stored_kernels(result, tmp_path)) == pytest.approx(sparsity, abs=0.005)

    def test_the_channels_are_gone_from_the_file(self, carried_out: Any, recipe: Recipe, tmp_path: Path) -> None:
        result = carried_out(replace(recipe, pruning=Pruning("channel", 0.5)))
        left = 784 * 144 + 144 * 48 + 48 * 10  # 300 and 100, halved and rounded to 16
        assert sum(kernel.size for kernel in stored_kernels(result, tmp_path)) == left
        assert result.compressed.sparsity == pytest.approx(1 - left / 266_200, abs=1e-6)
        assert result.compressed.pruned == pytest.approx(1 - (144 + 48) / 400)

    def test_qat_keeps_the_zeros_in_the_file(self, carried_out: Any, recipe: Recipe, tmp_path: Path) -> None:
        pruned = replace(recipe, pruning=Pruning("unstructured", 0.8), quantization=Quantization("qat_int8"))
        result = carried_out(pruned)
        kernels = stored_kernels(result, tmp_path)
        assert {kernel.dtype.name for kernel in kernels} <= {"int8", "uint8"}
        assert zeros(kernels) == pytest.approx(0.8, abs=0.01)
        assert result.agreement >= 0.99

    def test_label_smoothing_is_part_of_the_loss(self, carried_out: Any, recipe: Recipe, info: TaskInfo) -> None:
        pruned = replace(recipe, pruning=Pruning("unstructured", 0.8))
        smooth = replace(pruned, finetuning=replace(self.tuning, label_smoothing=0.2))
        losses = [carried_out(each).compressed.curves[-1]["loss"] for each in (pruned, smooth)]
        assert losses[1] > losses[0] + 0.2


@pytest.mark.cluster
class TestTensorFlowOnMnist(TestPyTorchOnMnist):
    trainer = "tensorflow"


def test_what_the_trainers_can_do_is_told_in_words() -> None:
    asked = Recipe("lenet5", "tensorflow", quantization=Quantization("qat_int4"), finetuning=FineTuning(micro_batch=8))
    assert capabilities("tensorflow").problems(asked) == [
        "quantization.scheme: the tensorflow trainer has no 'qat_int4'; choose from none, float16, dynamic_int8, "
        "static_int8, qat_int8",
        "finetuning.micro_batch: the tensorflow trainer has none; leave it out",
    ]
