"""Recipes for few bytes: density, score and group, channels first, weights on a grid, moved copies, their teacher."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import optuna
import pytest
import torch
from onnx import numpy_helper

from packing.decode import STEP16
from packing.measure import nonzeros
from packing.payloads import codings
from runtimes import onnxruntime
from runtimes.base import Artifact
from search.study.parse import parse
from search.study.space import SpaceError
from tasks.base import TaskSpec
from tasks.mnist.pytorch import Program
from tasks.mnist.task import MODELS, Mnist
from trainers.base import Dense, DenseSpec, Job, Teacher, capabilities
from trainers.pytorch import affine, models
from trainers.pytorch.copies import COPIES, Copies, lectures, with_copies
from trainers.pytorch.course import open_course
from trainers.pytorch.masks import maskable
from trainers.pytorch.sparse import ScoredPruning
from trainers.pytorch.trainer import Trainer
from trainers.recipe import Distillation, FineTuning, Pruning, Quantization, Recipe, RecipeError

SPEC = DenseSpec("pytorch", "lenet5", epochs=1, learning_rate=2e-3, batch_size=50, seed=3)
FEW = Recipe(
    "lenet5",
    pruning=Pruning("unstructured", density=0.01, score="fisher", group=0.5, channels=0.65),
    quantization=Quantization("weights_int3"),
    distillation=Distillation("soft", 3.0, 0.7),
    finetuning=FineTuning(2, 1, 8e-3, 50, qat_learning_rate=2e-3, augment="affine"),
).canonical()


@pytest.fixture(scope="module")
def task(fetched: Path) -> Mnist:
    return Mnist(TaskSpec("mnist", train_size=1200, validation_size=300), fetched, lambda stage, fraction: None)


def job(task: Mnist, folder: Path) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    return Job(task, folder, "onnx", device="cpu", threads=1)


@pytest.fixture(scope="module")
def dense(task: Mnist, tmp_path_factory: pytest.TempPathFactory) -> Dense:
    return Trainer().dense(SPEC, job(task, tmp_path_factory.mktemp("cache") / "dense" / "it"))


def test_a_density_is_a_sparsity_and_both_have_one_digest() -> None:
    dense = replace(FEW, pruning=replace(FEW.pruning, sparsity=0.0, density=0.01))
    assert dense.canonical() == FEW
    assert dense.digest() == FEW.digest()
    assert FEW.pruning.sparsity == pytest.approx(0.99)
    assert FEW.describe() == "65 % of channels, then 99.00 % of weights removed, 3-bit weights, temperature 3.0"
    channels = Recipe("lenet5", pruning=Pruning("channel", 0.5, density=0.3, score="fisher", group=0.5, channels=0.4))
    assert channels.canonical().pruning == Pruning("channel", 0.5)


def test_what_was_written_before_these_fields_has_the_digest_that_it_had() -> None:
    """A recipe of version 0.1, with all of its fields as that version spelt them."""
    old = Recipe("lenet5", pruning=Pruning("unstructured", 0.9), quantization=Quantization("qat_int8"))
    assert set(old.essence()["pruning"]) == {"granularity", "sparsity", "schedule"}
    assert set(old.essence()["finetuning"]) == {"epochs", "qat_epochs", "learning_rate", "batch_size"}


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"pruning": {"score": "taste"}}, "pruning.score: 'taste' is not valid; choose from magnitude, fisher"),
        ({"pruning": {"density": 1.5}}, "pruning.density: 1.5 must lie between 0 and 1"),
        ({"pruning": {"group": -1.0}}, "pruning.group: -1.0 must lie between 0 and 1"),
        ({"finetuning": {"augment": "mirror"}}, "finetuning.augment: 'mirror' is not valid; choose from none, affine"),
        ({"quantization": {"scheme": "weights_int5"}}, "choose from none"),
    ],
)
def test_mistakes_are_named(part: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Recipe.from_dict({"model": "lenet5", **part})


def test_the_other_trainer_says_what_it_has_not() -> None:
    problems = " ".join(capabilities("tensorflow").problems(FEW))
    for field in ("quantization.scheme", "pruning.score", "pruning.group", "pruning.channels", "finetuning.augment"):
        assert f"{field}: the" in problems
    assert capabilities("pytorch").problems(FEW) == []


def test_a_search_samples_the_density_in_place_of_the_sparsity() -> None:
    section = {
        "model": "lenet5",
        "pruning": {
            "granularity": {"choices": ["unstructured", "channel"]},
            "density": {"low": 0.002, "high": 0.1, "log": True},
            "sparsity": {"channel": {"low": 0.3, "high": 0.6}},
            "group": {"low": 0.0, "high": 1.0},
        },
        "quantization": {"scheme": {"choices": ["none", "weights_int3"]}},
        "finetuning": {"qat_learning_rate": {"low": 1e-3, "high": 1e-2}},
    }
    space = parse(section, models=MODELS)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(40):
        trial = study.ask()
        recipe = space.suggest(trial)
        names = {name.split("@")[0] for name in trial.params}
        weights = recipe.pruning.granularity == "unstructured"
        assert ("pruning.density" in names) == ("pruning.group" in names) == weights
        assert ("pruning.sparsity" in names) != weights
        assert ("finetuning.qat_learning_rate" in names) == (recipe.quantization.scheme == "weights_int3")
        if weights:
            assert recipe.pruning.sparsity == pytest.approx(1 - trial.params["pruning.density"])
    named = {"pruning": {"granularity": "unstructured", "density": 0.0056}}
    assert space.reference(named)["pruning.density"] == 0.0056
    with pytest.raises(SpaceError, match=r"outside the study's range 0\.002 to 0\.1"):
        space.reference({"pruning": {"granularity": "unstructured", "density": 0.5}})


def test_the_very_number_of_weights_is_left_however_narrow_the_network_is() -> None:
    """Of the dense model's weights: a network that lost half of its own already keeps as many."""
    torch.manual_seed(0)
    model = Program().build("lenet300").train()
    total = 3 * sum(weight.numel() for weight in maskable(model).values())
    pruning = Pruning("unstructured", 0.997, score="fisher", group=0.5)
    constraint = ScoredPruning(model, pruning, total)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    constraint.optimized_by(optimizer)
    kept = []
    for step in range(60):
        assert not constraint.before_step(step, 60)
        optimizer.zero_grad()
        model(torch.randn(16, 1, 28, 28)).square().mean().backward()
        optimizer.step()
        constraint.after_step()
        kept.append(sum(int(torch.count_nonzero(weight)) for weight in maskable(model).values()))
    masks = constraint.finish()
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.003 * total)
    assert all(a >= b for a, b in itertools.pairwise(kept)), "what is gone stays gone"
    assert kept[-1] == round(0.003 * total)


def test_batches_of_copies_are_moved_images_and_say_which_they_are(task: Mnist, tmp_path: Path) -> None:
    work = job(task, tmp_path)
    plain = open_course(Program().build("lenet300"), work, torch.device("cpu"), "")
    train = with_copies(plain).train
    count = len(train)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).split(25)
    images = torch.from_numpy(task.data("train").batch(np.arange(count)).inputs["input"])
    copies = [images, *(affine.affine_copy(images, seed) for seed in range(1, COPIES + 1))]
    seen = []
    for rows, batch in zip(order, train.batches(order, work), strict=True):
        copy = int(batch.rows[0]) // count
        assert torch.equal(batch.rows, rows + copy * count)
        torch.testing.assert_close(batch.inputs["input"], copies[copy][rows], atol=1e-5, rtol=0)
        assert np.array_equal(batch.targets, task.dataset.train.labels[rows])
        seen.append(copy)
    assert 0.25 < seen.count(0) / len(seen) < 0.75
    assert len(set(seen)) > 4
    again = [int(batch.rows[0]) // count for batch in train.batches(order, work)]
    assert again == seen, "a training that continues sees what it would have seen"


def test_the_teacher_is_asked_about_every_copy_once(task: Mnist, dense: Dense, tmp_path: Path) -> None:
    work = job(task, tmp_path)
    network = Program().build("lenet5")
    course = open_course(network, work, torch.device("cpu"), "")
    said = lectures(course, network, dense.folder)["logits"]
    count = len(course.train)
    assert said.shape == ((COPIES + 1) * count, 10)
    images = torch.from_numpy(task.data("train").batch(np.arange(50)).inputs["input"])
    by = affine.matrices(count, (28, 28), affine.Affine(), 3)[:50]
    with torch.no_grad():
        expected = network.eval()(affine.moved(images, by)).numpy()
    np.testing.assert_allclose(said[3 * count : 3 * count + 50], expected, atol=1e-2, rtol=1e-2)
    other = lectures(course, Program().build("lenet5"), dense.folder)["logits"]
    assert np.array_equal(other, said), "from the cache, by the teacher's name"


def test_only_images_can_be_moved() -> None:
    with pytest.raises(RecipeError, match="the task has no input of layout NCHW"):
        Copies(None, (), affine.Affine())  # type: ignore[arg-type]


def test_a_recipe_for_few_bytes_gives_a_file_of_few_bytes(task: Mnist, dense: Dense, tmp_path: Path) -> None:
    made = Trainer().compress(FEW, dense, Teacher.of(dense), job(task, tmp_path))
    model = onnx.load(made.file)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.any() and value.size >= 2:
            coding = next(codings(value.tobytes(), "float32", value.size, value.ndim))
            assert coding.what == STEP16, f"{tensor.name} is not a float16 step times small integers"
            assert coding.symbols is not None
            assert np.abs(coding.symbols).max() <= (3 if value.ndim > 1 else 15)
    found = nonzeros(made.file.read_bytes())
    assert found is not None
    assert 0.8 * 4305 < found <= 4305, "1 % of 430,500 weights, less what rounds to zero"
    assert made.pruned == pytest.approx(made.sparsity, abs=0.01)
    session = onnxruntime.load(Artifact.of(made.file), threads=1)
    said = session.run({"input": task.data("validation").batch(np.arange(made.rows)).inputs["input"]})["logits"]
    np.testing.assert_allclose(said, made.outputs["logits"], atol=1e-4, rtol=1e-4)
    about = json.loads(made.file.with_suffix(".json").read_text())
    assert json.loads(about["recipe"])["quantization"]["scheme"] == "weights_int3"
    assert set(made.stages) >= {"fine-tune", "qat", "export"}


def test_moved_copies_need_a_teacher_that_can_be_asked(task: Mnist, dense: Dense, tmp_path: Path) -> None:
    foreign = Teacher(dense.outputs, None)
    with pytest.raises(RecipeError, match="affine needs a teacher of the pytorch trainer"):
        Trainer().compress(FEW, dense, foreign, job(task, tmp_path))


def test_a_fresh_start_knows_nothing_of_the_dense_weights(task: Mnist, dense: Dense, tmp_path: Path) -> None:
    short = FineTuning(0.1, 0.1, 1e-4, 50)
    pruning = Pruning("unstructured", 0.5, score="fisher")

    def accuracy(start: str) -> float:
        recipe = Recipe("lenet5", pruning=pruning, finetuning=replace(short, start=start), seed=5)
        made = Trainer().compress(recipe, dense, None, job(task, tmp_path / start))
        labels = task.data("validation").batch(np.arange(made.rows)).targets
        return float((made.outputs["logits"].argmax(1) == labels).mean())

    assert accuracy("dense") > accuracy("fresh") + 0.2


def test_a_teacher_that_saw_moved_images_knows_them_better(task: Mnist, dense: Dense, tmp_path: Path) -> None:
    moved = replace(SPEC, augment="affine")
    assert moved.to_dict() == {**SPEC.to_dict(), "augment": "affine"}
    assert "augment" not in SPEC.to_dict(), "models that were made before have the name that they had"
    other = Trainer().dense(moved, job(task, tmp_path / "dense" / "moved"))
    images = torch.from_numpy(task.data("validation").batch(np.arange(300)).inputs["input"])
    labels = torch.from_numpy(task.data("validation").batch(np.arange(300)).targets)
    far = affine.affine_copy(images, 1, affine.Affine(turn=30.0, shift=4.0))

    def right(which: Dense) -> float:
        network = models.load(Program().build("lenet5"), which.folder / "weights.safetensors").eval()
        with torch.no_grad():
            return float((network(far).argmax(1) == labels).float().mean())

    assert right(other) > right(dense)
    assert other.outputs is not None
    assert len(other.outputs["logits"]) == 1200, "of the images as they are"
