"""The PyTorch trainer: dense models, and recipes carried out on them."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import fx, nn

from tasks.mnist.data import DataSet
from trainers import base
from trainers.base import Compressed, Dense, DenseSpec, Job, Teacher
from trainers.pytorch import models, prune, quantize, train
from trainers.pytorch.distill import TrainingLoss
from trainers.pytorch.export import dynamic_int8, export
from trainers.pytorch.train import Plan, Resident, fit, predict
from trainers.recipe import Distillation, Recipe, RecipeError
from trainers.stages import timed

WEIGHTS = "weights.safetensors"
PACKAGES = ("torch", "torchao", "torch-pruning", "onnx", "onnxscript", "onnxruntime")
CALIBRATION_SIZE = 1000  # training images
QAT_RATE = 0.3  # of the fine-tuning's learning rate: the network is nearly where it should be


@dataclass
class _Trial:
    """One recipe on its way: each stage takes `model` from the last and leaves its own."""

    recipe: Recipe
    job: Job
    data: Resident
    loss: TrainingLoss
    model: nn.Module
    masks: prune.Masks = field(default_factory=dict)
    pruned: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    curves: list[dict[str, float]] = field(default_factory=list)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time what happens inside as `name`, in seconds."""
        return timed(self.stages, name)

    def fit(self, stage: str, epochs: int, rate: float, constraint: train.Constraint | None) -> None:
        """Train the model of now; its epochs are counted on through all stages."""
        plan = Plan(stage, epochs, rate, self.recipe.finetuning.batch_size, self.recipe.seed)
        with self.stage(stage):
            for epoch in fit(self.model, self.data, plan, self.job, self.loss, constraint):
                self.curves.append({"epoch": float(len(self.curves) + 1), **epoch})


class Trainer:
    """See `trainers.base.Trainer`."""

    def versions(self) -> dict[str, str]:
        """Package name -> version of what decides the result."""
        return {package: metadata.version(package) for package in PACKAGES}

    def dense(self, spec: DenseSpec, job: Job) -> Dense:
        """Train the dense model; writes its weights, its logits on the training split and a record."""
        data = _start(job, spec.seed)
        model = _placed(job.task.program("pytorch").build(spec.model), data).train()
        plan = Plan("dense", round(spec.epochs), spec.learning_rate, spec.batch_size, spec.seed, augment=True)
        curve = fit(model, data, plan, job, TrainingLoss(data.labels, Distillation(), None))
        logits = predict(model.eval(), data.images, job).cpu().numpy()
        weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, job.folder / WEIGHTS)
        made = Dense(spec, job.folder, models.trainable(model), {"logits": logits})
        return made.save(curve, self.versions())

    def open_dense(self, spec: DenseSpec, folder: Path) -> Dense:
        """A dense model that `dense` wrote earlier; raises ValueError when the folder holds another."""
        return Dense.open(spec, folder)

    def compress(self, recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> Compressed:
        """Prune and fine-tune, quantize, export: what the recipe asks for, in that order."""
        base.check_job(recipe, dense, teacher, job)
        if recipe.quantization.scheme == "dynamic_int8" and job.format != "onnx":
            raise RecipeError(
                "quantization.scheme: dynamic_int8 is ONNX Runtime's own; choose another, or the format onnx"
            )
        data = _start(job, recipe.seed)
        taught = None
        if teacher is not None and teacher.outputs is not None:
            taught = torch.tensor(teacher.outputs["logits"], device=data.device)
        model = job.task.program("pytorch").build(recipe.model)
        model.load_state_dict(load_file(dense.folder / WEIGHTS))
        loss = TrainingLoss(data.labels, recipe.distillation, taught)
        trial = _Trial(recipe, job, data, loss, _placed(model, data))
        prunable = sum(layer.weight.numel() for layer in models.prunable(trial.model).values())
        _prune(trial)
        _quantize(trial)
        with trial.stage("predict"):
            rows = base.COMPARED_ROWS
            outputs = predict(trial.model, data.validation_images[:rows], job).cpu().numpy()
        file = job.folder / f"model.{job.format}"
        with trial.stage("export"):
            weights = _write(trial, file, self.versions())
        sparsity = prune.sparsity(weights, prunable)
        return Compressed(file, sparsity, trial.pruned, {"logits": outputs}, len(outputs), trial.stages, trial.curves)


def _start(job: Job, seed: int) -> Resident:
    """Threads, seed and data for what follows: it depends on nothing that this process did before."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(seed)
    return train.resident(dataset(job), train.device_of(job.device))


def dataset(job: Job) -> DataSet:
    """MNIST's arrays."""
    found: DataSet = job.task.dataset  # type: ignore[attr-defined]
    return found


def _placed(model: nn.Module, data: Resident) -> nn.Module:
    return model.to(data.device, memory_format=torch.channels_last)


def _prune(trial: _Trial) -> None:
    """Prune, fine-tune where the recipe trains; leaves the model in eval mode."""
    recipe, pruning = trial.recipe, trial.recipe.pruning
    masked = prune.MaskedPruning(trial.model, pruning) if pruning.granularity in ("unstructured", "n_m") else None
    narrowing = None
    if pruning.granularity == "channel":
        narrowing = prune.ChannelPruning(trial.model, pruning, trial.data.images[:2])
    if recipe.trains:
        trial.model.train()
        tuning = recipe.finetuning
        trial.fit("fine-tune", tuning.epochs, tuning.learning_rate, masked or narrowing)
    if masked is not None:
        trial.masks = masked.finish()
        trial.pruned = prune.sparsity(masked.weights)
    if narrowing is not None:
        trial.pruned = narrowing.finish()
        prune.reestimate(trial.model, trial.data.images[: 4 * CALIBRATION_SIZE])
    trial.model.eval()


def _quantize(trial: _Trial) -> None:
    """Fold batch norm; make the network an integer one where the scheme asks for it."""
    scheme, tuning = trial.recipe.quantization.scheme, trial.recipe.finetuning
    if scheme in ("none", "dynamic_int8"):
        trial.model = quantize.fold_batch_norm(trial.model)
        return
    with trial.stage("quantize"):
        calibration = trial.data.images[:CALIBRATION_SIZE]
        trial.model = quantize.prepare(trial.model, calibration, bits=4 if scheme == "qat_int4" else 8)
    if scheme.startswith("qat"):
        quantize.unfreeze(trial.model)
        held = prune.HeldMasks(trial.model, trial.masks)
        trial.fit("qat", tuning.qat_epochs, QAT_RATE * tuning.learning_rate, held)
        quantize.freeze(trial.model, calibration)


def _write(trial: _Trial, file: Path, versions: dict[str, str]) -> dict[str, torch.Tensor]:
    """Export to `file`; returns the weights in it, as they count for the sparsity."""
    about = {
        "recipe": json.dumps(trial.recipe.to_dict(), sort_keys=True),
        "versions": json.dumps(versions, sort_keys=True),
        "data": trial.job.task.info().data_digest,
    }
    model = trial.model.cpu()
    if isinstance(model, fx.GraphModule):
        model = quantize.convert(model)
        weights = quantize.integer_weights(model)
    else:
        weights = {name: layer.weight for name, layer in models.prunable(model).items()}
    export(model, trial.data.images[:2], file, about)
    if trial.recipe.quantization.scheme == "dynamic_int8":
        dynamic_int8(file)
    return weights
