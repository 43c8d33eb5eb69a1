"""The PyTorch trainer: dense models, and recipes carried out on them, of any task."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch
from torch import fx, nn

from tasks.base import digest_of
from trainers import base
from trainers.base import (
    CACHED_BYTES,
    COMPARED_BYTES,
    COMPARED_ROWS,
    NETWORK,
    Compressed,
    Dense,
    DenseSpec,
    Job,
    Teacher,
)
from trainers.bits import FLOAT, allocated
from trainers.onnx.place import not_slower
from trainers.onnx.weights import FILE_SCHEMES, weight_only_int8
from trainers.pytorch import clusters, grid, models, quantize, saved
from trainers.pytorch.capture import CaptureError
from trainers.pytorch.channels import ChannelPruning
from trainers.pytorch.copies import lectures, with_copies
from trainers.pytorch.course import Course, open_course
from trainers.pytorch.device import device_of
from trainers.pytorch.distill import TrainingLoss, lecture_of
from trainers.pytorch.export import TORCHSCRIPT, export
from trainers.pytorch.fallback import quantized_file
from trainers.pytorch.finetuned import TAKEN, Finetuned, finetuned, restore, state_of
from trainers.pytorch.lora import low_rank
from trainers.pytorch.masks import HeldMasks, MaskedPruning, Masks, coverage, maskable, sparsity
from trainers.pytorch.mixed import levels_of, losses_by_bits
from trainers.pytorch.narrowing import Narrowing, mean_loss
from trainers.pytorch.place import placed
from trainers.pytorch.program import TorchProgram
from trainers.pytorch.recover import reestimate
from trainers.pytorch.sparse import ScoredPruning
from trainers.pytorch.train import Constraint, Plan, fit
from trainers.pytorch.weights_only import parameters_of, settle, shrink
from trainers.recipe import PLACED, Pruning, Recipe, RecipeError
from trainers.stages import numbered, timed

WEIGHTS = "weights.safetensors"
PACKAGES = ("torch", "torchao", "torch-pruning", "onnx", "onnxscript", "onnxruntime")
STATISTICS_ROWS, STATISTICS_AT_ONCE = 4000, 500  # for batch norm


@dataclass
class _Trial:
    """One recipe on its way: each stage takes `model` from the last and leaves its own."""

    recipe: Recipe
    course: Course
    program: TorchProgram
    loss: TrainingLoss
    model: nn.Module
    frozen: set[str] = field(default_factory=set)
    masks: Masks = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)
    dense: Callable[[], nn.Module] = nn.Identity
    integer: bool = True
    uncaptured: CaptureError | None = None
    narrow: nn.Module | None = None
    pruned: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    curves: list[dict[str, float]] = field(default_factory=list)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time what happens inside as `name`, in seconds."""
        return timed(self.stages, name)

    def fit(self, stage: str, epochs: float, rate: float, constraint: Constraint | None) -> None:
        """Train the model of now; its epochs are counted on through all stages."""
        tuning = self.recipe.finetuning
        plan = Plan(
            stage,
            epochs,
            rate,
            tuning.batch_size,
            self.recipe.seed,
            tuning.micro_batch,
            tuning.weight_decay,
            tuning.ema,
        )
        models.freeze(self.model, self.frozen)
        with self.stage(stage):
            self.curves += numbered(fit(self.model, self.course, plan, self.loss, constraint), self.curves)


class Trainer:
    """See `trainers.base.Trainer`."""

    def versions(self) -> dict[str, str]:
        """Package name -> version of what decides the result."""
        return {package: metadata.version(package) for package in PACKAGES}

    def dense(self, spec: DenseSpec, job: Job) -> Dense:
        """Train the dense model, or take it as it is; writes its weights, outputs on the training split, a record."""
        device = _start(job, spec.seed)
        program: TorchProgram = job.task.program("pytorch")
        model = _placed(program.build(spec.model), device)
        parameters = models.trainable(model)
        course = open_course(model, job, device, digest_of([spec.to_dict(), self.versions()]))
        curves: list[dict[str, float]] = []
        if not program.pretrained(spec.model):
            plan = Plan("dense", spec.epochs, spec.learning_rate, spec.batch_size, spec.seed)
            seen = with_copies(course) if spec.augment == "affine" else course
            curves = numbered(fit(model.train(), seen, plan, TrainingLoss(program, course.info.outputs)), [])
        outputs = None
        if course.info.trains and course.info.teacher == "cached":
            outputs = course.evaluator.all_outputs(model.eval(), course.train, CACHED_BYTES)
        models.save(model, job.folder / WEIGHTS)
        course.checkpoints.clear()
        return Dense(spec, job.folder, parameters, outputs).save(curves, self.versions())

    def open_dense(self, spec: DenseSpec, folder: Path) -> Dense:
        """A dense model that `dense` wrote earlier; raises ValueError when the folder holds another."""
        return Dense.open(spec, folder)

    def compress(self, recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> Compressed:
        """Prune and fine-tune, quantize, export: what the recipe asks for, in that order."""
        _check(recipe, dense, teacher, job)
        device = _start(job, recipe.seed)
        trial = _begin(recipe, dense, teacher, job, device, self.versions())
        prunable = sum(weight.numel() for weight in maskable(trial.model).values())
        _fine_tune(trial, finetuned(recipe, dense, teacher, job, device, self.versions()))
        _cluster(trial)
        _quantize(trial)
        course = trial.course
        with trial.stage("predict"):
            outputs = course.evaluator.first_outputs(trial.model, course.validation, COMPARED_ROWS, COMPARED_BYTES)
        file = job.folder / f"model.{job.format}"
        with trial.stage("export"):
            weights = _write(trial, file, self.versions())
        course.checkpoints.clear()
        return Compressed(
            file=file,
            sparsity=sparsity(weights, prunable),
            pruned=trial.pruned,
            outputs=outputs,
            rows=len(next(iter(outputs.values()))),
            stages=trial.stages,
            curves=trial.curves,
            notes=tuple(course.notes),
        )

    def shape(self, recipe: Recipe, dense: Dense, job: Job) -> Path:
        """The recipe's file without its training."""
        recipe = recipe.untrained()
        _check(recipe, dense, None, job)
        trial = _begin(recipe, dense, None, job, _start(job, recipe.seed), self.versions())
        _prune(trial)
        _cluster(trial, 0)
        _quantize(trial)
        file, trial.narrow = job.folder / f"model.{job.format}", None
        _write(trial, file, self.versions())
        return file


def _check(recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> None:
    base.check_job(recipe, dense, teacher, job)
    scheme = recipe.quantization.scheme
    if scheme in FILE_SCHEMES and job.format != "onnx":
        raise RecipeError(f"quantization.scheme: {scheme} changes an ONNX file; choose another, or the format onnx")
    if recipe.finetuning.trainable == "lora" and recipe.pruning.granularity == "unstructured" and recipe.pruning.scored:
        raise RecipeError(
            "finetuning.trainable: lora trains no weight itself, which pruning.score, group and channels need; choose "
            "the score magnitude without group and channels, or trainable: all"
        )
    if recipe.quantization.clusters and scheme not in ("none", "float16"):
        raise RecipeError(
            f"quantization.clusters: {recipe.quantization.clusters} with {scheme}, which has a grid of its own; "
            "choose clusters: 0, or the scheme none or float16"
        )


def _start(job: Job, seed: int) -> torch.device:
    """Threads and seed for what follows: it depends on nothing that this process did before."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(seed)
    return device_of(job.device)


def _begin(
    recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job, device: torch.device, versions: dict[str, str]
) -> _Trial:
    """The dense model with its weights, and all that its training needs."""
    program: TorchProgram = job.task.program("pytorch")
    if recipe.finetuning.start == "fresh" and program.pretrained(recipe.model):
        raise RecipeError(f"finetuning.start: fresh, but {recipe.model} comes with its weights; write start: dense")
    model = program.build(recipe.model)
    if recipe.finetuning.start == "dense":
        model = models.load(model, dense.folder / WEIGHTS)
    model = _placed(model, device)

    def fresh() -> nn.Module:
        return _placed(models.load(program.build(recipe.model), dense.folder / WEIGHTS), device)

    course = open_course(model, job, device, digest_of([recipe.to_dict(), dense.spec.to_dict(), versions]))
    lecture = None
    if recipe.distillation.kind != "none" and teacher is not None:
        network = None
        affine = recipe.finetuning.augment == "affine"
        if (teacher.outputs is None or affine) and teacher.dense is not None:
            network = program.build(teacher.dense.spec.model)
            network = _placed(models.load(network, teacher.dense.folder / WEIGHTS), device)
        if affine and teacher.outputs is not None:
            teacher = _with_copies(course, teacher, network)
        lecture = lecture_of(teacher, job, device, network)
    if recipe.finetuning.augment == "affine":
        course = with_copies(course)
    smoothing = recipe.finetuning.label_smoothing
    loss = TrainingLoss(program, course.info.outputs, recipe.distillation, lecture, smoothing)
    trial = _Trial(recipe, course, program, loss, model, dense=fresh)
    if recipe.finetuning.trainable != "all":
        trial.frozen = models.weights_to_freeze(model, program.keep(model))
    return trial


def _with_copies(course: Course, teacher: Teacher, network: nn.Module | None) -> Teacher:
    """The teacher with what it says of the moved copies too."""
    if network is None or teacher.dense is None or teacher.dense.spec.trainer != "pytorch":
        raise RecipeError(
            "finetuning.augment: affine needs a teacher of the pytorch trainer, which can be asked about moved images"
        )
    return Teacher(lectures(course, network, teacher.dense.folder))


def _placed(model: nn.Module, device: torch.device) -> nn.Module:
    return model.to(device, memory_format=torch.channels_last)


def _fine_tune(trial: _Trial, kept: Finetuned | None) -> None:
    """As `_prune`, or take the network that an equal training gave before."""
    if kept is None:
        _prune(trial)
    elif (state := kept.load()) is None:
        _prune(trial)
        state = state_of(trial.model, trial.masks, trial.pruned, trial.curves, trial.course.notes)
        if problem := kept.save(state):
            trial.course.note(problem)
    else:
        with trial.stage("load"):
            granularity = trial.recipe.pruning.granularity
            restore(trial.model.eval(), state, plain=granularity != "none")
            trial.masks = {name: mask.to(trial.course.device) for name, mask in state["masks"].items()}
            trial.pruned, trial.curves = state["pruned"], state["curves"]
            trial.narrow = trial.model if granularity == "channel" else None
        for note in [*state["notes"], TAKEN]:
            trial.course.note(note)


def _prune(trial: _Trial) -> None:
    """Prune, fine-tune where the recipe trains; leaves the model in eval mode."""
    recipe, pruning = trial.recipe, trial.recipe.pruning
    masked, narrowing = None, None
    if pruning.granularity in ("unstructured", "n_m"):
        masked = _masked(trial)
    if pruning.granularity == "channel":
        with trial.stage("judge"):
            chosen = Narrowing(recipe, trial.program, trial.course, trial.model)
            narrowing = chosen.channels
            chosen.recover(trial.dense() if pruning.recovery != "none" else trial.model)
    if recipe.trains:
        trial.model.train()
        tuning, pruned = recipe.finetuning, masked or narrowing
        if tuning.trainable == "lora":
            if pruned is not None:
                pruned.finish()
            with low_rank(trial.model, trial.frozen, tuning.lora_rank) as changed:
                trial.course.note(f"lora: {len(changed)} weights are changed by matrices of rank {tuning.lora_rank}")
                trial.fit("fine-tune", tuning.epochs, tuning.learning_rate, None)
        else:
            trial.fit("fine-tune", tuning.epochs, tuning.learning_rate, pruned)
    if masked is not None:
        trial.masks = masked.finish()
        trial.pruned = sparsity(masked.weights, masked.total if isinstance(masked, ScoredPruning) else None)
        trial.course.note(coverage(trial.model).describe())
    if narrowing is not None:
        trial.pruned = narrowing.finish()
        trial.course.note(narrowing.coverage().describe())
        reestimate(trial.model, trial.course.samples(STATISTICS_ROWS, STATISTICS_AT_ONCE))
        trial.narrow = trial.model
    trial.model.eval()


def _masked(trial: _Trial) -> MaskedPruning:
    """What sets weights to zero; the channels that the recipe removes before are removed here, at once."""
    pruning = trial.recipe.pruning
    if not pruning.scored:
        return MaskedPruning(trial.model, pruning)
    total = sum(weight.numel() for weight in maskable(trial.model).values())
    if pruning.channels:
        example, keep = trial.course.samples(2)[0], trial.program.keep(trial.model)
        narrowing = ChannelPruning(trial.model, Pruning("channel", pruning.channels, "one_shot"), example, keep)
        narrowing.finish()
        trial.course.note(narrowing.coverage().describe())
        reestimate(trial.model, trial.course.samples(STATISTICS_ROWS, STATISTICS_AT_ONCE))
    return ScoredPruning(trial.model, pruning, total)


def _cluster(trial: _Trial, epochs: float = clusters.EPOCHS) -> None:
    """Give each weight tensor few distinct values where the recipe asks for it."""
    count, rate = trial.recipe.quantization.clusters, trial.recipe.finetuning.qat_rate
    if count:
        trial.model.train()
        clusters.share(trial.model, count, trial.masks, lambda held: trial.fit("cluster", epochs, rate, held))
        trial.model.eval()


def _quantize(trial: _Trial) -> None:
    """Make the network an integer one where the scheme asks for it."""
    scheme, tuning = trial.recipe.quantization.scheme, trial.recipe.finetuning
    if scheme == "none" or scheme in FILE_SCHEMES:
        return
    if scheme.startswith("weights_"):
        trial.model.train()
        settle(
            trial.model,
            _levels(trial, scheme),
            trial.masks,
            lambda held: trial.fit("qat", tuning.qat_epochs, tuning.qat_rate, held),
        )
        trial.model.eval()
        return
    if scheme in PLACED and trial.course.job.format == "onnx":
        try:
            _quantize_captured(trial)
        except CaptureError as problem:
            trial.uncaptured = problem  # the file is quantized instead, once it is there
    else:
        _quantize_captured(trial)


def _quantize_captured(trial: _Trial) -> None:
    """Integers in the captured program, and training with them for QAT. CaptureError where it cannot be captured."""
    scheme, tuning = trial.recipe.quantization.scheme, trial.recipe.finetuning
    trial.weights = set(maskable(trial.model))
    calibration, inputs = trial.course.samples(), trial.course.info.inputs
    keep_float: tuple[str, ...] = ()
    if scheme in PLACED:
        with trial.stage("place"):
            found = placed(trial.recipe, trial.course, trial.model, trial.dense, calibration)
        keep_float, trial.integer = found.keep_float, found.integer
        for note in found.notes:
            trial.course.note(note)
    if not trial.integer:
        return
    with trial.stage("quantize"):
        bits = 4 if scheme == "qat_int4" else 8
        trial.model = quantize.prepare(trial.model, calibration, bits, inputs, keep_float)
    if scheme.startswith("qat"):
        quantize.unfreeze(trial.model)
        held = HeldMasks(trial.model, trial.masks)
        trial.fit("qat", tuning.qat_epochs, tuning.qat_rate, held)
        quantize.freeze(trial.model, calibration[0])


def _levels(trial: _Trial, scheme: str) -> int | dict[str, int]:
    """The largest integer of the weights' grids, of each its own for weights_mixed."""
    if scheme != "weights_mixed":
        return grid.LEVELS[scheme]
    with trial.stage("judge"):
        weights = [name for name in parameters_of(trial.model) if trial.model.get_parameter(name).dim() > 1]
        losses = losses_by_bits(trial.model, weights, mean_loss(trial.program, trial.course))
    sizes = {name: trial.model.get_parameter(name).numel() for name in weights}
    bits = allocated(sizes, losses, trial.recipe.quantization.bits)
    trial.course.note(f"bits: {', '.join(f'{name} {each}' for name, each in bits.items())}")
    return {name: levels_of(each) for name, each in bits.items() if each != FLOAT}


def _write(trial: _Trial, file: Path, versions: dict[str, str]) -> dict[str, torch.Tensor]:
    """Export to `file`; returns the weights in it, as they count for the sparsity."""
    info = trial.course.info
    about = {
        "recipe": json.dumps(trial.recipe.essence(), sort_keys=True),
        "versions": json.dumps(versions, sort_keys=True),
        "data": info.data_digest,
    }
    model = trial.model.cpu()
    if trial.narrow is not None:
        example = tuple(each.cpu() for each in trial.course.samples(2)[0])
        trial.course.notes += saved.saved_or_why(trial.narrow.cpu().eval(), file.parent / NETWORK, example, info.inputs)
    if isinstance(model, fx.GraphModule):
        model = quantize.convert(model)
        weights = quantize.stored_weights(model, trial.weights)
    else:
        weights = maskable(model)
    way = export(model, trial.course.samples(2)[0], file, about, info.inputs, info.outputs)
    if way in TORCHSCRIPT:
        trial.course.note(f"exported by {TORCHSCRIPT[way]}: torch.export cannot capture the network")
    if trial.uncaptured is not None:
        trial.course.notes += quantized_file(trial.recipe, trial.course.job, file, about, trial.uncaptured)
    elif not trial.integer:
        weight_only_int8(file)
    if change := FILE_SCHEMES.get(trial.recipe.quantization.scheme):
        trial.course.notes += not_slower(trial.course.job, file, change)
    if trial.recipe.quantization.scheme.startswith("weights_") and file.suffix == ".onnx":
        shrink(file)
    return weights
