"""The TensorFlow trainer: dense models and their compressed versions, on tf_keras and TF-MOT."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

# Read once, when TensorFlow is imported. TF-MOT works on Keras 2 only, which TensorFlow calls legacy.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import safetensors.numpy
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow.python.framework.ops import gradient_registry

from tasks.imports import one_thread
from trainers import base
from trainers.base import CACHED_BYTES, COMPARED_BYTES, COMPARED_ROWS, Compressed, Dense, DenseSpec, Job, Teacher
from trainers.recipe import Recipe, RecipeError
from trainers.stages import numbered, timed
from trainers.tensorflow import models, prune, quantize
from trainers.tensorflow.course import Course, open_course
from trainers.tensorflow.distill import TrainingLoss
from trainers.tensorflow.export import export
from trainers.tensorflow.narrow import Narrowing, narrow, removed
from trainers.tensorflow.program import KerasProgram
from trainers.tensorflow.train import Plan, train

# A worker serves jobs that allow different numbers of threads, so it is one for all, whatever they allow.
one_thread(tf)

WEIGHTS = "weights.safetensors"
DEVICES = ("auto", "cpu", "cuda")
ROUNDS = 3  # of gradual channel pruning
CLUSTER_EPOCHS = 1  # clusters settle quickly, and their steps are slow


@dataclass
class _Trial:
    """One recipe on its way: each stage takes `model` from the last and leaves its own."""

    recipe: Recipe
    course: Course
    loss: TrainingLoss
    model: tf_keras.Model
    keep: tuple[str, ...]
    teacher: Teacher | None = None
    live: tf_keras.Model | None = None
    narrowing: Narrowing | None = None
    stages: dict[str, float] = field(default_factory=dict)
    curves: list[dict[str, float]] = field(default_factory=list)

    @property
    def sparse(self) -> bool:
        """Whether the model has zeros that later stages must keep."""
        return self.recipe.pruning.granularity in ("unstructured", "block", "n_m")

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time what happens inside as `name`, in seconds."""
        return timed(self.stages, name)

    def plan(self, stage: str, epochs: float) -> Plan:
        tuning = self.recipe.finetuning
        return Plan(
            stage,
            epochs,
            tuning.learning_rate,
            tuning.batch_size,
            self.recipe.seed,
            self.loss,
            self.teacher,
            self.live,
            tuning.weight_decay,
            _trained(self.model, self.keep) if tuning.trainable == "norm_bias_head" else lambda name: True,
        )

    def train(self, plan: Plan, *callbacks: tf_keras.callbacks.Callback) -> None:
        """Train the model of now; its epochs are counted on through all stages."""
        with self.stage(plan.stage):
            self.curves += numbered(train(self.model, plan, self.course, callbacks), self.curves)


class Trainer:
    """See `trainers.base.Trainer`. One process serves many trials, all on one thread and on the device of the first."""

    def versions(self) -> dict[str, str]:
        """Package name -> version of what decides the result."""
        packages = ("tensorflow", "tf-keras", "tensorflow-model-optimization")
        return {package: metadata.version(package) for package in packages}

    def dense(self, spec: DenseSpec, job: Job) -> Dense:
        """Train the dense model, or take it as it is; writes its weights, outputs on the training split, a record."""
        _start(job, spec.seed)
        program: KerasProgram = job.task.program("tensorflow")
        model = models.checked(program.build(spec.model))
        course, curves = open_course(model, program, job), []
        if not program.pretrained(spec.model):
            loss = TrainingLoss(program, course.info.outputs)
            plan = Plan("dense", spec.epochs, spec.learning_rate, spec.batch_size, spec.seed, loss)
            curves = numbered(train(model, plan, course), [])
        outputs = None
        if course.info.trains and course.info.teacher == "cached":
            outputs = course.all_outputs(model, course.split("train"), CACHED_BYTES)
        safetensors.numpy.save_file(models.weights_of(model), job.folder / WEIGHTS)
        return Dense(spec, job.folder, models.parameters(model), outputs).save(curves, self.versions())

    def open_dense(self, spec: DenseSpec, folder: Path) -> Dense:
        """A dense model that `dense` wrote earlier; raises ValueError when the folder holds another."""
        return Dense.open(spec, folder)

    def compress(self, recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> Compressed:
        """Prune and fine-tune, cluster, train with fake quantization, export: what the recipe asks for, in order."""
        base.check_job(recipe, dense, teacher, job)
        _start(job, recipe.seed)
        trial = _begin(recipe, dense, teacher, job)
        course, before = trial.course, models.kernels_of(trial.model)
        _prune(trial)
        _cluster(trial)
        _fake_quantize(trial)
        with trial.stage("predict"):
            outputs = course.first_outputs(trial.model, course.split("validation"), COMPARED_ROWS, COMPARED_BYTES)
        with trial.stage("export"):
            job.pause()
            file = export(trial.model, recipe.quantization.scheme, course)
        kernels = models.kernels_of(trial.model)
        return Compressed(
            file=file,
            sparsity=prune.sparsity(kernels, before) if before else 0.0,
            pruned=_reached(trial, kernels),
            outputs=outputs,
            rows=len(next(iter(outputs.values()))),
            stages=trial.stages,
            curves=trial.curves,
            notes=tuple(course.notes),
        )


def _start(job: Job, seed: int) -> None:
    """Forget the last trial and make what follows depend on the seed alone."""
    _settle(job.device)
    tf_keras.backend.clear_session()
    # TensorFlow keeps every custom gradient for ever, and each of TF-MOT's clustering holds its whole graph.
    for name in [name for name in gradient_registry.list() if name.startswith("CustomGradient-")]:
        del gradient_registry._registry[name]
    tf_keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def _settle(device: str) -> None:
    """Take the device, which TensorFlow does once per process; RecipeError for one that it cannot give."""
    if device not in DEVICES:
        raise RecipeError(f"device: {device!r} is not valid; choose from {', '.join(DEVICES)}")
    if device == "cuda" and not tf.config.list_physical_devices("GPU"):
        raise RecipeError("device: 'cuda' is asked for and TensorFlow finds no CUDA device; choose auto or cpu")
    if device == "cpu" and tf.config.get_visible_devices("GPU"):
        tf.config.set_visible_devices([], "GPU")


def _begin(recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> _Trial:
    """The dense model with its weights, and all that its training needs."""
    program: KerasProgram = job.task.program("tensorflow")
    model = _with_weights(program, recipe.model, dense)
    course, keep = open_course(model, program, job), tuple(program.keep(model))
    loss = TrainingLoss(program, course.info.outputs, recipe.distillation, recipe.finetuning.label_smoothing)
    trial = _Trial(recipe, course, loss, model, keep)
    if recipe.distillation.kind != "none" and teacher is not None:
        trial.teacher = teacher
        if teacher.outputs is None and teacher.dense is not None:
            trial.live = _with_weights(program, teacher.dense.spec.model, teacher.dense)
    return trial


def _with_weights(program: KerasProgram, name: str, dense: Dense) -> tf_keras.Model:
    model = models.checked(program.build(name))
    models.set_weights(model, safetensors.numpy.load_file(dense.folder / WEIGHTS))
    return model


def _trained(model: tf_keras.Model, keep: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a variable is trained when only norms, biases and the head are."""
    heads = {getattr(layer, "layer", layer).name for layer in model.layers} & set(keep)

    def trained(name: str) -> bool:
        path = name.partition(":")[0].split("/")
        return path[-1] in ("bias", "gamma", "beta") or any(part.removeprefix("quant_") in heads for part in path[:-1])

    return trained


def _prune(trial: _Trial) -> None:
    recipe, epochs = trial.recipe, trial.recipe.finetuning.epochs
    if recipe.pruning.granularity == "channel":
        _narrow(trial)
    elif recipe.pruning.granularity != "none":
        _mask(trial)
    elif recipe.distillation.kind != "none":
        trial.train(trial.plan("fine-tune", epochs))


def _mask(trial: _Trial) -> None:
    recipe, course = trial.recipe, trial.course
    kernels = models.kernels_of(trial.model)
    if not kernels:
        raise RecipeError(
            f"pruning.granularity: {recipe.pruning.granularity!r} masks kernels of Dense and Conv layers, and "
            f"{recipe.model} has none; choose none"
        )
    covered = sum(kernel.size for kernel in kernels.values()) / models.parameters(trial.model)
    course.note(f"masks cover {covered:.1%} of the parameters")
    plan = trial.plan("fine-tune", recipe.finetuning.epochs)
    trial.model = prune.wrapped(trial.model, recipe.pruning, plan.steps(course.split("train")))
    trial.train(plan, tfmot.sparsity.keras.UpdatePruningStep())
    trial.model = prune.stripped(trial.model)
    _reached(trial, models.kernels_of(trial.model))


def _narrow(trial: _Trial) -> None:
    """Remove channels at once, or along the cubic ramp in rounds with training after each."""
    recipe, epochs = trial.recipe, trial.recipe.finetuning.epochs
    trial.narrowing = narrowing = Narrowing.of(trial.model, trial.keep)
    whole = [f"{name}: {reason}" for name, reason in narrowing.reasons.items() if name not in trial.keep]
    if not narrowing.groups:
        raise RecipeError(
            f"pruning.granularity: 'channel' can narrow no layer of {recipe.model} ({'; '.join(whole)}); choose none, "
            "unstructured, block or n_m"
        )
    for reason in whole:
        trial.course.note(f"left whole: {reason}")
    rounds = max(1, min(int(epochs), ROUNDS)) if recipe.pruning.schedule == "gradual" else 1
    for done in range(1, rounds + 1):
        goal = recipe.pruning.sparsity * (1 - (1 - done / rounds) ** 3)
        trial.model = narrow(trial.model, narrowing, trial.keep, goal)
        left = epochs - epochs // rounds * (rounds - 1)
        trial.train(trial.plan("fine-tune", left if done == rounds else epochs // rounds))


def _cluster(trial: _Trial) -> None:
    clusters = trial.recipe.quantization.clusters
    if clusters:
        trial.model = quantize.clustered(trial.model, clusters, trial.sparse)
        trial.train(trial.plan("cluster", CLUSTER_EPOCHS))
        trial.model = quantize.stripped(trial.model)


def _fake_quantize(trial: _Trial) -> None:
    quantization = trial.recipe.quantization
    if quantization.scheme == "qat_int8":
        trial.model, floats = quantize.fake_quantized(trial.model, trial.sparse, quantization.clusters)
        if floats:
            trial.course.note(f"stays float under qat_int8: {', '.join(floats)}")
        trial.train(trial.plan("qat", trial.recipe.finetuning.qat_epochs))


def _reached(trial: _Trial, kernels: dict[str, np.ndarray]) -> float:
    """What `Compressed.pruned` says: share of zeros, or of channels removed."""
    recipe = trial.recipe
    if recipe.pruning.granularity == "none":
        return 0.0
    if trial.narrowing is not None:
        return removed(trial.narrowing, kernels)
    return prune.reached(kernels, recipe.pruning, clustered=recipe.quantization.clusters > 0)
