"""The PyTorch trainer as a whole: a recipe against its steps by hand, formats, refusals, threads."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from onnx import numpy_helper

from tasks.base import TaskSpec
from tasks.mnist.data import normalized
from tasks.mnist.pytorch import Program
from tasks.mnist.task import Mnist
from trainers.base import Dense, DenseSpec, Job, Teacher
from trainers.onnx.graph import described
from trainers.pytorch import export, masks, models, quantize, train
from trainers.pytorch.course import open_course
from trainers.pytorch.distill import Cached, TrainingLoss
from trainers.pytorch.trainer import Trainer
from trainers.recipe import QAT_RATE, Distillation, FineTuning, Pruning, Quantization, Recipe, RecipeError

ROOT = Path(__file__).parents[1]
SPEC = DenseSpec("pytorch", "lenet300", epochs=2, learning_rate=2e-3, batch_size=50, seed=3)
EVERYTHING = Recipe(
    "lenet300",
    pruning=Pruning("unstructured", 0.8, "one_shot"),
    quantization=Quantization("qat_int8"),
    distillation=Distillation("soft", 2.0, 0.5),
    finetuning=FineTuning(epochs=1, qat_epochs=1, learning_rate=2e-3, batch_size=50),
    seed=7,
)


@pytest.fixture(scope="module")
def task(fetched: Path) -> Mnist:
    return Mnist(TaskSpec("mnist", train_size=1500, validation_size=300), fetched, lambda stage, fraction: None)


def job(task: Mnist, folder: Path, **more: object) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    return replace(Job(task, folder, "onnx", device="cpu", threads=1), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def dense(task: Mnist, tmp_path_factory: pytest.TempPathFactory) -> Dense:
    return Trainer().dense(SPEC, job(task, tmp_path_factory.mktemp("dense")))


def test_the_dense_model_comes_out_the_same_twice(task: Mnist, dense: Dense, tmp_path: Path) -> None:
    Trainer().dense(SPEC, job(task, tmp_path))
    names = {"weights.safetensors", "output0.npy", "record.json"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert all((tmp_path / name).read_bytes() == (dense.folder / name).read_bytes() for name in names)


def test_the_logits_are_what_the_saved_weights_say(task: Mnist, dense: Dense) -> None:
    model = Program().build("lenet300").eval()
    model.load_state_dict(safetensors.torch.load_file(dense.folder / "weights.safetensors"))
    with torch.no_grad():
        said = model(torch.from_numpy(normalized(task.dataset.train.images, "NCHW"))).numpy()
    assert dense.outputs is not None
    np.testing.assert_allclose(said, dense.outputs["logits"], atol=1e-4, rtol=1e-4)


def test_a_recipe_is_its_steps_by_hand(task: Mnist, dense: Dense, tmp_path: Path) -> None:
    made = Trainer().compress(EVERYTHING, dense, Teacher.of(dense), job(task, tmp_path))

    work, tuning, ports = job(task, tmp_path / "by_hand"), EVERYTHING.finetuning, task.info().outputs
    assert dense.outputs is not None
    model = Program().build("lenet300")
    model.load_state_dict(safetensors.torch.load_file(dense.folder / "weights.safetensors"))
    course = open_course(model, work, torch.device("cpu"), "")
    loss_of = TrainingLoss(Program(), ports, EVERYTHING.distillation, Cached(dense.outputs, course.device))
    weights = {f"{name}.weight": layer.weight for name, layer in models.prunable(model).items()}
    held = masks.HeldMasks(model, masks.magnitude_masks(weights, 0.8))
    held.after_step()
    plan = train.Plan("fine-tune", 1, tuning.learning_rate, tuning.batch_size, EVERYTHING.seed)
    train.fit(model.train(), course, plan, loss_of, held)
    prepared = quantize.prepare(model.eval(), course.samples())
    quantize.unfreeze(prepared)
    plan = replace(plan, stage="qat", learning_rate=QAT_RATE * tuning.learning_rate)
    final = dict(zip(weights, held.masks, strict=True))
    train.fit(prepared, course, plan, loss_of, masks.HeldMasks(prepared, final))
    quantize.freeze(prepared, course.samples()[0])
    validation = torch.from_numpy(normalized(task.dataset.validation.images, "NCHW"))
    with torch.no_grad():
        logits = prepared(validation.to(memory_format=torch.channels_last)).numpy()
    file, info = work.folder / "model.onnx", task.info()
    export.export(quantize.convert(prepared), course.samples(2)[0], file, {}, info.inputs, info.outputs)

    assert np.array_equal(made.outputs["logits"], logits)
    assert described(onnx.load(made.file), {}).SerializeToString() == file.read_bytes()
    assert made.sparsity == pytest.approx(0.8, abs=0.005)
    assert made.pruned == pytest.approx(0.8, abs=1e-5)
    assert set(made.stages) == {"fine-tune", "quantize", "place", "qat", "predict", "export"}


def test_the_file_tells_its_recipe(task: Mnist, dense: Dense, tmp_path: Path) -> None:
    recipe = Recipe("lenet300", quantization=Quantization("static_int8"))
    made = Trainer().compress(recipe, dense, None, job(task, tmp_path))
    about = {prop.key: prop.value for prop in onnx.load(made.file).metadata_props}
    assert Recipe.from_dict(json.loads(about["recipe"])) == recipe
    assert json.loads(about["versions"])["torch"] == str(torch.__version__)
    assert about["data"] == task.dataset.digest


@pytest.mark.parametrize("scheme", ["none", "static_int8"])
def test_pt2_holds_the_same_network(task: Mnist, dense: Dense, tmp_path: Path, scheme: str) -> None:
    recipe = Recipe("lenet300", quantization=Quantization(scheme))
    made = Trainer().compress(recipe, dense, None, job(task, tmp_path, format="pt2"))
    assert made.file == tmp_path / "model.pt2"
    program = torch.export.load(made.file).module()
    with torch.no_grad():
        said = program(torch.from_numpy(normalized(task.dataset.validation.images, "NCHW"))).argmax(1).numpy()
    assert np.mean(said == made.outputs["logits"].argmax(1)) >= 0.99


def test_what_a_format_cannot_hold_is_refused(task: Mnist, dense: Dense, tmp_path: Path) -> None:
    recipe = Recipe("lenet300", quantization=Quantization("dynamic_int8"))
    with pytest.raises(RecipeError, match=r"dynamic_int8 changes an ONNX file; choose another, or the format onnx"):
        Trainer().compress(recipe, dense, None, job(task, tmp_path, format="pt2"))
    with pytest.raises(RecipeError, match=r"job\.format: .* has no 'tflite'; choose from onnx, pt2"):
        Trainer().compress(recipe, dense, None, job(task, tmp_path, format="tflite"))


def test_a_four_bit_network_has_sixteen_levels_and_its_zeros(task: Mnist, dense: Dense, tmp_path: Path) -> None:
    recipe = replace(EVERYTHING, quantization=Quantization("qat_int4"))
    made = Trainer().compress(recipe, dense, Teacher.of(dense), job(task, tmp_path))
    stored = [numpy_helper.to_array(i) for i in onnx.load(made.file).graph.initializer]
    weights = [array for array in stored if array.ndim == 2]
    assert [array.dtype.name for array in weights] == ["int8"] * 3
    assert all(len(np.unique(array)) <= 15 for array in weights)
    assert made.pruned == pytest.approx(0.8, abs=1e-5)
    zeros = sum(int((array == 0).sum()) for array in weights) / sum(array.size for array in weights)
    assert made.sparsity == pytest.approx(zeros)
    assert zeros >= 0.8 - 1e-5


def test_training_stays_on_the_threads_of_the_job(task: Mnist, dense: Dense, tmp_path: Path) -> None:
    Trainer().compress(Recipe("lenet300"), dense, None, job(task, tmp_path, threads=2))
    assert torch.get_num_threads() == 2
    Trainer().compress(Recipe("lenet300"), dense, None, job(task, tmp_path, threads=1))
    assert torch.get_num_threads() == 1


def test_what_the_trainer_can_do_is_told_without_torch() -> None:
    code = "import sys, trainers.pytorch; print('torch' in sys.modules, trainers.pytorch.CAPABILITIES.formats)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert said.stdout.strip() == "False ('onnx', 'pt2')"


@pytest.mark.parametrize("scheme", ["float16", "weight_only_int8", "weight_only_int4"])
def test_schemes_of_the_file_make_it_smaller_and_say_the_same(
    task: Mnist, dense: Dense, tmp_path: Path, scheme: str
) -> None:
    plain = Trainer().compress(Recipe("lenet300"), dense, None, job(task, tmp_path / "plain"))
    made = Trainer().compress(
        Recipe("lenet300", quantization=Quantization(scheme)), dense, None, job(task, tmp_path / scheme)
    )
    assert made.file.stat().st_size < 0.55 * plain.file.stat().st_size
    images = normalized(task.dataset.validation.images, "NCHW")
    logits = onnxruntime.InferenceSession(made.file).run(["logits"], {"input": images})[0]
    assert np.mean(logits.argmax(1) == made.outputs["logits"].argmax(1)) >= 0.98
