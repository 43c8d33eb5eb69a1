"""The contract that every trainer must keep, on a small part of real MNIST; each trainer in a process of its own.

A new trainer joins by being in TRAINERS, and by a way to read the kernels out of its file in `stored_kernels`.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtimes.base
from runtimes.base import FORMATS, Artifact, run_single
from tasks.base import TaskSpec
from tasks.mnist.data import DataSet, normalized
from tasks.mnist.task import Mnist
from tests.trainer_workers import in_worker
from trainers.base import TRAINERS, Compressed, Dense, DenseSpec, Job, Teacher, Trainer, TrainingError, load
from trainers.recipe import Distillation, FineTuning, Pruning, Quantization, Recipe, RecipeError

MODEL = "lenet300"
RUNTIMES = {"pytorch": "onnxruntime", "tensorflow": "litert"}
TUNING = FineTuning(epochs=2, qat_epochs=1, learning_rate=2e-3, batch_size=100)
SPARSE = Pruning("unstructured", 0.8)


@dataclass(frozen=True)
class Result:
    """What came of one recipe. `labels`: of the file on its runtime; `content`: the file's bytes."""

    compressed: Compressed
    labels: np.ndarray
    scores: np.ndarray
    content: bytes
    kernels: list[np.ndarray]
    pauses: int
    progress: list[tuple[str, float]]
    modules: list[str]

    def agreement(self) -> float:
        return float(np.mean(self.labels == self.compressed.outputs["logits"].argmax(1)))

    def accuracy(self, data: DataSet) -> float:
        return float(np.mean(self.labels == data.validation.labels))


@cache
def task(cached: Path) -> Mnist:
    return Mnist(TaskSpec("mnist", train_size=3000, validation_size=500), cached, lambda stage, fraction: None)


def subset(cached: Path) -> DataSet:
    return task(cached).dataset


# What runs in the trainer's process.
@cache
def in_use(trainer: str) -> Trainer:
    return load(trainer)


def make_dense(trainer: str, cached: Path, folder: Path) -> Dense:
    spec = DenseSpec(trainer, MODEL, epochs=4, learning_rate=2e-3, batch_size=100)
    return in_use(trainer).dense(spec, job(trainer, cached, folder))


def job(trainer: str, cached: Path, folder: Path, **more: Any) -> Job:
    return Job(task(cached), folder, FORMATS[RUNTIMES[trainer]], device="cpu", threads=1, **more)


def carry_out(recipe: Recipe, dense: Dense, teacher: Teacher | None, cached: Path) -> Result:
    pauses: list[int] = []
    progress: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        watched = job(
            recipe.trainer,
            cached,
            Path(folder),
            pause=lambda leaving=None: pauses.append(1),
            progress=lambda stage, fraction: progress.append((stage, fraction)),
        )
        compressed = in_use(recipe.trainer).compress(recipe, dense, teacher, watched)
        artifact = Artifact.of(compressed.file)
        session = runtimes.base.load(RUNTIMES[recipe.trainer]).load(artifact, threads=1)
        scores = run_single(session, normalized(subset(cached).validation.images, artifact.layout))
        loaded: list[str] = [name for name in ("torch", "tensorflow") if name in sys.modules]
        kernels = stored_kernels(compressed.file)
        content = compressed.file.read_bytes()
        return Result(compressed, scores.argmax(1), scores, content, kernels, len(pauses), progress, loaded)


def stored_kernels(file: Path) -> list[np.ndarray]:
    """The constant matrices in an exported file, as stored."""
    if file.suffix == ".tflite":
        from runtimes.litert import kernels

        return kernels(Artifact.of(file))
    import onnx
    from onnx import numpy_helper

    stored = [numpy_helper.to_array(each) for each in onnx.load(file).graph.initializer]
    return [array for array in stored if array.ndim >= 2]


# The tests.
@pytest.fixture(scope="module", params=TRAINERS)
def trainer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def dense(trainer: str, fetched: Path, tmp_path_factory: pytest.TempPathFactory) -> Dense:
    return in_worker(trainer, make_dense, trainer, fetched, tmp_path_factory.mktemp(trainer))


@pytest.fixture(scope="module")
def carried_out(trainer: str, dense: Dense, fetched: Path) -> Any:
    """`carried_out(recipe, teacher)`: a Result; each recipe is carried out once unless `again`."""
    kept: dict[Any, Result] = {}

    def run(recipe: Recipe, teacher: Teacher | None = None, again: bool = False) -> Result:
        key = (recipe, None if teacher is None else id(teacher))
        if again or key not in kept:
            kept[key] = in_worker(trainer, carry_out, recipe, dense, teacher, fetched)
        return kept[key]

    return run


@pytest.fixture
def recipe(trainer: str) -> Recipe:
    return Recipe(MODEL, trainer, finetuning=TUNING)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_dense_model_has_learned_and_its_logits_say_so(dense: Dense, fetched: Path) -> None:
    train = subset(fetched).train
    assert dense.parameters == 266_610
    assert dense.outputs is not None
    logits = dense.outputs["logits"]
    assert logits.dtype == np.float32
    assert logits.shape == (len(train), 10)
    assert np.mean(logits.argmax(1) == train.labels) > 0.9


def test_the_dense_model_is_found_again(trainer: str, dense: Dense) -> None:
    found = in_worker(trainer, reopen, dense)
    assert (found.spec, found.parameters) == (dense.spec, dense.parameters)
    assert found.outputs is not None
    assert dense.outputs is not None
    assert np.array_equal(found.outputs["logits"], dense.outputs["logits"])
    with pytest.raises(ValueError, match="holds the dense model of"):
        in_worker(trainer, reopen, replace(dense, spec=replace(dense.spec, seed=1)))


def reopen(dense: Dense) -> Dense:
    return in_use(dense.spec.trainer).open_dense(dense.spec, dense.folder)


@pytest.mark.parametrize("scheme", ["none", "dynamic_int8", "static_int8", "qat_int8"])
def test_a_recipe_gives_a_file_that_says_what_the_model_says(
    carried_out: Any, recipe: Recipe, fetched: Path, scheme: str
) -> None:
    data = subset(fetched)
    result = carried_out(replace(recipe, quantization=Quantization(scheme)))
    assert result.scores.dtype == np.float32
    assert result.scores.shape == (len(data.validation), 10)
    assert result.compressed.outputs["logits"].dtype == np.float32
    assert result.compressed.rows == len(data.validation)
    assert result.agreement() >= 0.97
    assert result.accuracy(data) > 0.85
    assert result.compressed.stages["export"] > 0


def test_the_dense_recipe_is_the_dense_model(carried_out: Any, recipe: Recipe, dense: Dense) -> None:
    result = carried_out(recipe)
    assert result.compressed.curves == []
    assert (result.compressed.sparsity, result.compressed.pruned) == (0.0, 0.0)
    assert sum(kernel.size for kernel in result.kernels) == 784 * 300 + 300 * 100 + 100 * 10


@pytest.mark.parametrize(
    ("pruning", "sparsity"),
    [(SPARSE, 0.8), (Pruning("unstructured", 0.9, "one_shot"), 0.9), (Pruning("n_m"), 0.5)],
)
def test_the_sparsity_is_reached_in_the_file(
    carried_out: Any, recipe: Recipe, fetched: Path, pruning: Pruning, sparsity: float
) -> None:
    result = carried_out(replace(recipe, pruning=pruning))
    assert result.compressed.sparsity == pytest.approx(sparsity, abs=0.005)
    assert result.compressed.pruned == pytest.approx(sparsity, abs=0.005)
    assert zeros(result.kernels) == pytest.approx(sparsity, abs=0.005)
    assert result.accuracy(subset(fetched)) > 0.85


def zeros(kernels: list[np.ndarray]) -> float:
    return sum(int(np.sum(kernel == 0)) for kernel in kernels) / sum(kernel.size for kernel in kernels)


@pytest.mark.parametrize("schedule", ["one_shot", "gradual"])
def test_channels_are_really_removed(carried_out: Any, recipe: Recipe, fetched: Path, schedule: str) -> None:
    result = carried_out(replace(recipe, pruning=Pruning("channel", 0.5, schedule)))
    left = 784 * 144 + 144 * 48 + 48 * 10  # 300 and 100, halved and rounded to 16
    assert sum(kernel.size for kernel in result.kernels) == left
    assert result.compressed.sparsity == pytest.approx(1 - left / 266_200, abs=1e-6)
    assert result.compressed.pruned == pytest.approx(1 - (144 + 48) / 400)
    assert result.accuracy(subset(fetched)) > 0.85


def test_qat_keeps_the_zeros_in_the_file(carried_out: Any, recipe: Recipe) -> None:
    result = carried_out(replace(recipe, pruning=SPARSE, quantization=Quantization("qat_int8")))
    assert {kernel.dtype.name for kernel in result.kernels} <= {"int8", "uint8"}
    assert zeros(result.kernels) == pytest.approx(0.8, abs=0.01)
    assert result.agreement() >= 0.99


def test_the_same_recipe_gives_the_same_file(carried_out: Any, recipe: Recipe) -> None:
    everything = replace(recipe, pruning=SPARSE, quantization=Quantization("qat_int8"))
    assert carried_out(everything, again=True).content == carried_out(everything).content


def test_another_seed_gives_another_file(carried_out: Any, recipe: Recipe) -> None:
    pruned = replace(recipe, pruning=SPARSE)
    assert carried_out(replace(pruned, seed=1)).content != carried_out(pruned).content


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_student_learns_what_the_teacher_says(carried_out: Any, recipe: Recipe, fetched: Path, kind: str) -> None:
    data = subset(fetched)
    planted = 10 * np.eye(10, dtype=np.float32)[(data.train.labels + 1) % 10]
    result = carried_out(replace(recipe, distillation=Distillation(kind, 2.0, 1.0)), Teacher({"logits": planted}))
    assert np.mean(result.labels == (data.validation.labels + 1) % 10) > 0.8


def test_a_loss_that_is_not_a_number_ends_the_trial_with_that_reason(carried_out: Any, recipe: Recipe) -> None:
    broken = Teacher({"logits": np.full((3000, 10), np.nan, np.float32)})
    with pytest.raises(TrainingError, match=r"(?i)loss.* nan.*learning_rate"):
        carried_out(replace(recipe, distillation=Distillation("soft", 2.0, 0.5)), broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "lenet301"}, "model: .* has no 'lenet301' .*; choose from lenet5, lenet300"),
        ({"model": "lenet5"}, "recipe.model: 'lenet5', but the dense model given is 'lenet300'"),
        ({"distillation": Distillation("soft", 2.0, 0.5)}, r"needs the teacher's outputs on the 3000.* given none"),
    ],
)
def test_a_bad_recipe_is_refused(carried_out: Any, recipe: Recipe, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        carried_out(replace(recipe, **change))


def test_what_only_the_other_trainer_can_do_is_refused_with_the_choices(carried_out: Any, recipe: Recipe) -> None:
    foreign = {"pytorch": Quantization("float16"), "tensorflow": Quantization("qat_int4")}[recipe.trainer]
    with pytest.raises(RecipeError, match=r"quantization\.scheme: .* choose from none, "):
        carried_out(replace(recipe, quantization=foreign))


def test_a_teacher_for_other_images_is_refused(carried_out: Any, recipe: Recipe, dense: Dense) -> None:
    with pytest.raises(RecipeError, match=r"needs the teacher's logits on the 3000.* given of shape \(2999, 10\)"):
        carried_out(
            replace(recipe, distillation=Distillation("soft", 2.0, 0.5)),
            Teacher({"logits": np.zeros((2999, 10), np.float32)}),
        )


def test_training_asks_for_pauses_and_tells_its_progress(carried_out: Any, recipe: Recipe) -> None:
    result = carried_out(replace(recipe, pruning=SPARSE, quantization=Quantization("qat_int8")))
    batches = 30 * (TUNING.epochs + TUNING.qat_epochs)
    assert result.pauses >= batches / 8
    stages = {stage for stage, _ in result.progress}
    assert len(stages) >= 2
    for each in stages:
        fractions = [fraction for stage, fraction in result.progress if stage == each]
        assert fractions == sorted(fractions)
        assert 0 <= fractions[0] <= fractions[-1] == 1.0
    assert [epoch["epoch"] for epoch in result.compressed.curves] == [1.0, 2.0, 3.0]
    assert set(result.compressed.curves[0]) >= {"epoch", "loss", "accuracy"}


def test_no_process_has_both_frameworks(carried_out: Any, recipe: Recipe, trainer: str) -> None:
    assert carried_out(recipe).modules == [{"pytorch": "torch"}.get(trainer, trainer)]


def test_the_dense_files_are_left_unchanged(carried_out: Any, recipe: Recipe, dense: Dense) -> None:
    before = digests(dense.folder)
    # A recipe not carried out before, so that at least one runs between the two looks.
    carried_out(replace(recipe, pruning=replace(SPARSE, sparsity=0.7)))
    assert digests(dense.folder) == before
    assert sorted(before) == ["output0.npy", "record.json", "weights.safetensors"]
