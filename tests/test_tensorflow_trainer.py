"""What is TensorFlow's own: the models, TF-MOT's schemes, and that a worker can serve many trials."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtimes import litert
from runtimes.base import Artifact, run_single
from tasks.base import Port, TaskSpec
from tasks.mnist.data import normalized
from tasks.mnist.task import Mnist
from tests.trainer_workers import in_worker
from trainers.base import Dense, DenseSpec, Job, Teacher, load, narrowed
from trainers.recipe import Distillation, FineTuning, Pruning, Quantization, Recipe

ROOT = Path(__file__).parent.parent
TUNING = FineTuning(epochs=1, qat_epochs=1, learning_rate=2e-3, batch_size=100)
CLUSTERS = 8


def in_tensorflow(work: Any, *args: Any) -> Any:
    return in_worker("tensorflow", after_loading, work, *args)


def after_loading(work: Any, *args: Any) -> Any:
    load("tensorflow")  # settles threads, which TensorFlow takes only before its first operation
    return work(*args)


@cache
def subset(cached: Path) -> Mnist:
    return Mnist(TaskSpec("mnist", train_size=1500, validation_size=200), cached, lambda stage, fraction: None)


# What runs in TensorFlow's process.


def make_dense(model: str, cached: Path, folder: Path) -> Dense:
    spec = DenseSpec("tensorflow", model, epochs=2, learning_rate=3e-3, batch_size=50)
    return load("tensorflow").dense(spec, Job(subset(cached), folder, "tflite"))


def carry_out(recipe: Recipe, dense: Dense, cached: Path) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Kernels in the file, its labels, the exported model's labels."""
    with tempfile.TemporaryDirectory() as folder:
        task = subset(cached)
        compressed = load("tensorflow").compress(recipe, dense, Teacher.of(dense), Job(task, Path(folder), "tflite"))
        artifact = Artifact.of(compressed.file)
        scores = run_single(litert.load(artifact, threads=1), normalized(task.dataset.validation.images, "NHWC"))
        return litert.kernels(artifact), scores.argmax(1), compressed.outputs["logits"].argmax(1)


def parameter_counts() -> dict[str, int]:
    from tasks.mnist.tensorflow import MODELS, Program
    from trainers.tensorflow import models

    return {name: models.parameters(Program().build(name)) for name in MODELS}


def narrowed_and_silenced(
    name: str, sparsity: float
) -> tuple[list[np.ndarray], list[np.ndarray], dict[str, int], dict[str, str]]:
    """Outputs of the narrower model, of the whole one with the same channels silent; widths; what is left whole."""
    import tf_keras

    from tasks.mnist.tensorflow import Program
    from trainers.tensorflow import models
    from trainers.tensorflow.narrow import Narrowing, narrow

    tf_keras.utils.set_random_seed(3)
    whole = residual() if name == "residual" else Program().build(name)
    keep = ("head",) if name == "residual" else Program().keep(whole)
    weights = models.weights_of(whole)
    rng = np.random.default_rng(3)
    for key, array in weights.items():  # away from the zeros and ones of new biases and norms
        weights[key] = array + rng.uniform(0.1, 0.5, array.shape).astype(np.float32) * (array.ndim == 1)
    models.set_weights(whole, weights)
    narrowing = Narrowing.of(whole, keep)
    made = narrow(whole, narrowing, keep, sparsity)
    left = models.weights_of(made)
    silence(weights, left, list(narrowing.groups))
    models.set_weights(whole, weights)
    inputs = [rng.standard_normal((5, *shape[1:]), dtype=np.float32) for shape in shapes(whole)]
    widths = {key: kernel.shape[-1] for key, kernel in models.kernels_of(made).items()}
    outputs = [
        [np.asarray(each) for each in listed(model(inputs if len(inputs) > 1 else inputs[0]))]
        for model in (made, whole)
    ]
    return outputs[0], outputs[1], widths, dict(narrowing.reasons)


def shapes(model: Any) -> list[tuple[Any, ...]]:
    found = model.input_shape
    return found if isinstance(found, list) else [found]


def listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def silence(weights: dict[str, np.ndarray], left: dict[str, np.ndarray], groups: list[tuple[str, ...]]) -> None:
    """Zeros in the place of every channel that is no longer in `left`, found by its bias (or its norm's)."""
    for group in groups:
        for layer in group:
            norm = f"{layer}_norm"
            key = f"{norm}.beta" if f"{norm}.beta" in weights else f"{layer}.bias"
            silent = ~np.isin(weights[key], left[key])
            for name in (f"{layer}.kernel", f"{layer}.bias", f"{norm}.gamma", f"{norm}.beta"):
                if name in weights:
                    weights[name][..., silent] = 0


def residual() -> Any:
    """Sums, a concatenation, a depthwise convolution and a squeeze-excite product, as MobileNets and ResNets have."""
    import tf_keras

    layers = tf_keras.layers
    given = layers.Input((8, 8, 3), name="given")
    stem = layers.Conv2D(16, 3, padding="same", activation="relu", name="stem")(given)
    inner = layers.Conv2D(32, 1, use_bias=False, name="inner")(stem)
    inner = layers.ReLU(name="inner_relu")(layers.BatchNormalization(name="inner_norm")(inner))
    inner = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(inner)
    squeeze = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(inner)
    excite = layers.Conv2D(32, 1, activation="relu", name="excite")(squeeze)
    inner = layers.Multiply(name="scaled")([inner, excite])
    stem = layers.Add(name="sum")([stem, layers.Conv2D(16, 1, name="outer")(inner)])
    side = layers.Conv2D(16, 1, activation="relu", name="side")(stem)
    wide = layers.Concatenate(name="wide")([stem, side])
    hidden = layers.Dense(64, activation="relu", name="hidden")(layers.Flatten(name="flat")(wide))
    recurrent = layers.LSTM(8, name="lstm")(layers.Reshape((64, 16), name="rows")(side))
    joined = layers.Concatenate(name="joined")([hidden, recurrent])
    return tf_keras.Model(given, [layers.Dense(5, name="head")(joined), side], name="residual")


def goals(kernels: dict[str, np.ndarray], pruning: Pruning) -> dict[str, float]:
    from trainers.tensorflow import prune

    return prune.targets(kernels, pruning)


def distillation_loss(logits: np.ndarray, labels: np.ndarray, teacher: np.ndarray, how: Distillation) -> float:
    from tasks.mnist.task import OUTPUT
    from tasks.mnist.tensorflow import Program
    from trainers.tensorflow.distill import TrainingLoss

    loss = TrainingLoss(Program(), (OUTPUT,), how)
    return float(loss({"logits": logits}, {}, labels, {"logits": teacher}))


def distance(
    ports: tuple[Port, ...], student: dict[str, np.ndarray], teacher: dict[str, np.ndarray], how: Distillation
) -> float:
    from trainers.tensorflow.distill import divergence

    return float(divergence(ports, student, teacher, how))


def learning_rates(steps: int) -> np.ndarray:
    from trainers.tensorflow.train import cosine

    return cosine(steps, 0.1)


def graphs_left_behind(recipe: Recipe, dense: Dense, cached: Path) -> int:
    """Compiled training functions that are alive when their trial is over."""
    import gc

    from tensorflow.python.framework.func_graph import FuncGraph

    carry_out(recipe, dense, cached)
    carry_out(Recipe(recipe.model, "tensorflow"), dense, cached)  # the next trial clears up
    gc.collect()
    return sum(isinstance(each, FuncGraph) and each.name == "run" for each in gc.get_objects())


# The tests.


@pytest.fixture(scope="module")
def dense(fetched: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`dense(model)`: trained once."""
    made: dict[str, Dense] = {}

    def train(model: str) -> Dense:
        if model not in made:
            made[model] = in_tensorflow(make_dense, model, fetched, tmp_path_factory.mktemp(model))
        return made[model]

    return train


@pytest.fixture(scope="module")
def carried_out(dense: Any, fetched: Path) -> Any:
    def run(recipe: Recipe) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        return in_tensorflow(carry_out, recipe, dense(recipe.model), fetched)

    return run


def recipe(model: str = "mlp128", **parts: Any) -> Recipe:
    return Recipe(model, "tensorflow", **{"finetuning": TUNING, **parts})


def test_the_package_alone_loads_no_tensorflow() -> None:
    code = "import sys, trainers.tensorflow; print('tensorflow' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def test_parameter_counts() -> None:
    counts = {"lenet5": 431_080, "lenet300": 266_610, "convnet": 24_058, "mlp128": 101_770}
    assert in_tensorflow(parameter_counts) == counts


@pytest.mark.parametrize("model", ["lenet5", "convnet", "mlp128"])
def test_a_narrower_model_computes_what_the_whole_one_does_with_those_channels_silent(model: str) -> None:
    narrow, silent, widths, _ = in_tensorflow(narrowed_and_silenced, model, 0.5)
    np.testing.assert_allclose(narrow[0], silent[0], rtol=1e-3, atol=1e-3)
    full = {"lenet5": (20, 50, 500), "convnet": (16, 32, 64), "mlp128": (128,)}[model]
    assert list(widths.values()) == [*(narrowed(channels, 0.5) for channels in full), 10]


def test_branches_are_narrowed_together_and_what_cannot_be_is_said() -> None:
    narrow, silent, widths, reasons = in_tensorflow(narrowed_and_silenced, "residual", 0.5)
    for one, other in zip(narrow, silent, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
    assert widths == {"stem": 8, "outer": 8, "inner": 16, "excite": 16, "side": 16, "hidden": 32, "head": 5}
    assert reasons == {"side": "rows (Reshape) behind it cannot be narrowed", "head": "it is kept"}


@pytest.mark.parametrize("granularity", ["unstructured", "block"])
def test_layers_with_small_weights_lose_more_and_all_together_what_was_asked(granularity: str) -> None:
    rng = np.random.default_rng(1)
    kernels = {
        "first": rng.normal(0, 1.0, (5, 5, 4, 8)).astype(np.float32),
        "second": rng.normal(0, 0.1, (400, 20)).astype(np.float32),
    }
    found = in_tensorflow(goals, kernels, Pruning(granularity, 0.8))
    sizes = {name: kernel.size for name, kernel in kernels.items()}
    assert sum(found[name] * sizes[name] for name in sizes) / sum(sizes.values()) == pytest.approx(0.8, abs=0.002)
    assert found["first"] < 0.2 < 0.8 < found["second"]


@pytest.mark.parametrize("model", ["mlp128", "lenet5"])
def test_blocks_of_four_inputs_are_zero_together(carried_out: Any, model: str) -> None:
    kernels, _, _ = carried_out(recipe(model, pruning=Pruning("block", 0.75)))
    zeros = total = 0
    for kernel in kernels:
        rows = kernel.reshape(len(kernel), -1) == 0  # one row per output, as the file holds them
        for start in range(0, rows.shape[1], 4):
            counts = rows[:, start : start + 4].sum(axis=1)
            assert set(counts) <= {0, rows[:, start : start + 4].shape[1]}
            zeros += int(counts.sum())
        total += rows.size
    assert zeros / total == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("batch_size", [1500, 700, 300])  # 1, 2 and 5 steps
def test_a_very_short_run_prunes_too(carried_out: Any, batch_size: int) -> None:
    short = FineTuning(epochs=1, batch_size=batch_size)
    kernels, _, _ = carried_out(recipe(pruning=Pruning("unstructured", 0.9), finetuning=short))
    assert sparsity(kernels) == pytest.approx(0.9, abs=0.002)


def test_without_epochs_the_dense_model_is_pruned_as_it_is(carried_out: Any) -> None:
    untrained = FineTuning(epochs=0)
    kernels, _, _ = carried_out(recipe(pruning=Pruning("unstructured", 0.5), finetuning=untrained))
    whole, _, _ = carried_out(recipe())
    assert sparsity(kernels) == pytest.approx(0.5, abs=0.002)
    for pruned, kernel in zip(kernels, whole, strict=True):
        assert np.array_equal(pruned[pruned != 0], kernel[pruned != 0])


def sparsity(kernels: list[np.ndarray]) -> float:
    return sum(int(np.sum(kernel == 0)) for kernel in kernels) / sum(kernel.size for kernel in kernels)


@pytest.mark.parametrize("scheme", ["none", "qat_int8"])
@pytest.mark.parametrize("pruning", [Pruning(), Pruning("unstructured", 0.8)])
def test_kernels_share_few_values(carried_out: Any, scheme: str, pruning: Pruning) -> None:
    kernels, labels, exported = carried_out(recipe(pruning=pruning, quantization=Quantization(scheme, CLUSTERS)))
    assert max(len(np.unique(kernel)) for kernel in kernels) <= CLUSTERS
    assert np.mean(labels == exported) >= 0.98
    if pruning.sparsity:
        assert sparsity(kernels) >= 0.79
    if scheme == "qat_int8":
        assert {kernel.dtype.name for kernel in kernels} == {"int8"}


def test_float16_halves_the_kernels_and_keeps_the_interface(carried_out: Any) -> None:
    kernels, labels, exported = carried_out(recipe(quantization=Quantization("float16")))
    assert {kernel.dtype.name for kernel in kernels} == {"float16"}
    assert np.mean(labels == exported) >= 0.99


def test_batch_normalization_is_folded_into_int8_convolutions(carried_out: Any) -> None:
    pruned = Pruning("unstructured", 0.5)
    kernels, labels, exported = carried_out(recipe("convnet", pruning=pruned, quantization=Quantization("qat_int8")))
    assert sorted(kernel.shape for kernel in kernels) == [(10, 64), (16, 3, 3, 1), (32, 3, 3, 16), (64, 3, 3, 32)]
    assert {kernel.dtype.name for kernel in kernels} == {"int8"}
    assert sparsity(kernels) >= 0.49
    assert np.mean(labels == exported) >= 0.97


def test_distillation_is_hintons_formula() -> None:
    rng = np.random.default_rng(2)
    logits, teacher = (rng.normal(0, 3, (7, 10)).astype(np.float32) for _ in range(2))
    labels = rng.integers(0, 10, 7).astype(np.int32)

    def logs(values: np.ndarray) -> np.ndarray:
        return values - np.log(np.exp(values).sum(axis=1, keepdims=True))

    by_labels = -logs(logits)[np.arange(7), labels].mean()
    by_argmax = -logs(logits)[np.arange(7), teacher.argmax(1)].mean()
    soft = np.exp(logs(teacher / 4))
    divergence = (soft * (logs(teacher / 4) - logs(logits / 4))).sum(axis=1).mean()
    for how, expected in (
        (Distillation(), by_labels),
        (Distillation("hard", 4.0, 0.3), 0.3 * by_argmax + 0.7 * by_labels),
        (Distillation("soft", 4.0, 0.3), 0.3 * 16 * divergence + 0.7 * by_labels),
    ):
        assert in_tensorflow(distillation_loss, logits, labels, teacher, how) == pytest.approx(expected, rel=1e-4)


def test_maps_and_values_are_compared_each_in_its_way() -> None:
    rng = np.random.default_rng(4)
    ports = (Port("map", ("batch", 3, 2, 2), layout="NCHW", kind="logits"), Port("value", ("batch",)))
    student, teacher = (
        {"map": rng.normal(0, 2, (5, 3, 2, 2)).astype(np.float32), "value": rng.normal(0, 1, 5).astype(np.float32)}
        for _ in range(2)
    )
    squares = float(np.mean((student["value"] - teacher["value"]) ** 2))
    flat = [{"map": np.moveaxis(each["map"], 1, -1).reshape(-1, 3)} for each in (student, teacher)]
    for how in (Distillation("soft", 3.0, 1.0), Distillation("hard", 1.0, 1.0)):
        by_pixel = in_tensorflow(distance, (Port("map", ("batch", 3), kind="logits"),), *flat, how)
        assert in_tensorflow(distance, ports, student, teacher, how) == pytest.approx(by_pixel + squares, rel=1e-4)


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    rates = in_tensorflow(learning_rates, 100)
    assert rates.argmax() in (4, 5)
    assert rates[0] == pytest.approx(0.02)
    assert rates.max() == pytest.approx(0.1)
    assert np.all(np.diff(rates[5:]) < 0)
    assert rates[-1] < 0.001


def test_a_trial_leaves_no_training_graph_behind(dense: Any, fetched: Path) -> None:
    everything = recipe(pruning=Pruning("unstructured", 0.8), quantization=Quantization("qat_int8", CLUSTERS))
    assert in_tensorflow(graphs_left_behind, everything, dense("mlp128"), fetched) == 0
