"""The TensorFlow trainer: dense models and their compressed versions, on tf_keras and TF-MOT."""

from __future__ import annotations

import os
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

from tasks.mnist import tensorflow as networks
from trainers import base
from trainers.base import Compressed, Dense, DenseSpec, Job, Teacher
from trainers.recipe import Distillation, Recipe, RecipeError
from trainers.stages import timed
from trainers.tensorflow import models, prune, quantize
from trainers.tensorflow.export import export
from trainers.tensorflow.train import Plan, dataset, predict, train

# TensorFlow takes the number of threads once per process, and it decides the order of sums: what two threads make
# is not what one makes. A worker serves jobs that allow different numbers, so it is one for all, whatever they allow.
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)

WEIGHTS = "weights.safetensors"
DEVICES = ("auto", "cpu", "cuda")
ROUNDS = 3  # of gradual channel pruning
CLUSTER_EPOCHS = 1  # clusters settle quickly, and their steps are slow


@dataclass
class _Trial:
    """One recipe on its way: each stage takes `model` from the last and leaves its own."""

    recipe: Recipe
    teacher: np.ndarray | None
    job: Job
    model: tf_keras.Model
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
            round(epochs),
            tuning.learning_rate,
            tuning.batch_size,
            self.recipe.seed,
            self.recipe.distillation,
            self.teacher,
        )

    def train(self, plan: Plan, *callbacks: tf_keras.callbacks.Callback) -> None:
        """Train the model of now; its epochs are counted on through all stages."""
        with self.stage(plan.stage):
            for epoch in train(self.model, plan, self.job, callbacks):
                self.curves.append({"epoch": float(len(self.curves) + 1), **epoch})


class Trainer:
    """See `trainers.base.Trainer`. One process serves many trials, all on one thread and on the device of the first."""

    def versions(self) -> dict[str, str]:
        """Package name -> version of what decides the result."""
        packages = ("tensorflow", "tf-keras", "tensorflow-model-optimization")
        return {package: metadata.version(package) for package in packages}

    def dense(self, spec: DenseSpec, job: Job) -> Dense:
        """Train the dense model; writes its weights, its logits on the training split and a record."""
        _start(job, spec.seed)
        model = networks.build(spec.model)
        plan = Plan(
            "dense", round(spec.epochs), spec.learning_rate, spec.batch_size, spec.seed, Distillation(), teacher=None
        )
        curve = train(model, plan, job)
        logits = predict(model, dataset(job).train.images, job)
        safetensors.numpy.save_file(models.weights_of(model), job.folder / WEIGHTS)
        made = Dense(spec, job.folder, models.parameters(model), {"logits": logits})
        return made.save(curve, self.versions())

    def open_dense(self, spec: DenseSpec, folder: Path) -> Dense:
        """A dense model that `dense` wrote earlier; raises ValueError when the folder holds another."""
        return Dense.open(spec, folder)

    def compress(self, recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> Compressed:
        """Prune and fine-tune, cluster, train with fake quantization, export: what the recipe asks for, in order."""
        base.check_job(recipe, dense, teacher, job)
        _start(job, recipe.seed)
        weights = safetensors.numpy.load_file(dense.folder / WEIGHTS)
        before = models.kernels_of(weights)
        taught = None if teacher is None or teacher.outputs is None else teacher.outputs["logits"]
        trial = _Trial(recipe, taught, job, networks.build(recipe.model))
        models.set_weights(trial.model, weights)
        _prune(trial)
        _cluster(trial)
        _fake_quantize(trial)
        with trial.stage("predict"):
            outputs = predict(trial.model, dataset(job).validation.images[: base.COMPARED_ROWS], job)
        with trial.stage("export"):
            job.pause()
            file = export(trial.model, recipe.quantization.scheme, job)
        kernels = _kernels(trial.model)
        return Compressed(
            file,
            prune.sparsity(kernels, before),
            _reached(recipe, kernels, before),
            {"logits": outputs},
            len(outputs),
            trial.stages,
            trial.curves,
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


def _prune(trial: _Trial) -> None:
    recipe, epochs = trial.recipe, trial.recipe.finetuning.epochs
    if recipe.pruning.granularity == "channel":
        _narrow(trial)
    elif recipe.pruning.granularity != "none":
        plan = trial.plan("fine-tune", epochs)
        trial.model = prune.wrapped(trial.model, recipe.pruning, plan.steps(trial.job))
        trial.train(plan, tfmot.sparsity.keras.UpdatePruningStep())
        trial.model = prune.stripped(trial.model)
        _reached(recipe, _kernels(trial.model), {})
    elif recipe.distillation.kind != "none":
        trial.train(trial.plan("fine-tune", epochs))


def _narrow(trial: _Trial) -> None:
    """Remove channels at once, or along the cubic ramp in rounds with training after each."""
    recipe, epochs = trial.recipe, round(trial.recipe.finetuning.epochs)
    rounds = max(1, min(epochs, ROUNDS)) if recipe.pruning.schedule == "gradual" else 1
    for done in range(1, rounds + 1):
        goal = recipe.pruning.sparsity * (1 - (1 - done / rounds) ** 3)
        weights = prune.narrow(recipe.model, models.weights_of(trial.model), goal)
        trial.model = networks.build(recipe.model, prune.widths_of(weights))
        models.set_weights(trial.model, weights)
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
        trial.model = quantize.fake_quantized(trial.model, trial.sparse, quantization.clusters)
        trial.train(trial.plan("qat", trial.recipe.finetuning.qat_epochs))


def _kernels(model: tf_keras.Model) -> dict[str, np.ndarray]:
    """Layer name -> kernel, of a plain or a fake-quantized model."""
    kernels = {}
    for layer in model.layers:
        for variable in layer.weights:
            # Wrappers put tensors in the place of `layer.kernel`; the variable keeps its name.
            if variable.name.split("/")[-1] == "kernel:0":
                kernels[getattr(layer, "layer", layer).name] = variable.numpy()
    return kernels


def _reached(recipe: Recipe, kernels: dict[str, np.ndarray], before: dict[str, np.ndarray]) -> float:
    """What `Compressed.pruned` says: share of zeros, or of channels removed."""
    if recipe.pruning.granularity == "none":
        return 0.0
    if recipe.pruning.granularity != "channel":
        return prune.reached(kernels, recipe.pruning, clustered=recipe.quantization.clusters > 0)
    prunable = [layer.name for layer in networks.weighted(recipe.model)[:-1]]
    kept = sum(kernels[name].shape[-1] for name in prunable)
    return 1 - kept / sum(before[name].shape[-1] for name in prunable)
