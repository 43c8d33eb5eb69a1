"""The training loop: the whole data set resident on the device, index batches, Adam, cosine with warm-up."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import fx, nn

from tasks.mnist.data import DataSet, Split, normalized
from tasks.mnist.pytorch import shifted
from trainers.base import Job, TrainingError
from trainers.recipe import RecipeError

DEVICES = ("auto", "cpu", "cuda")
WARM_UP = 0.1  # of all steps
WATCHED_EVERY = 25  # batches between two looks at the loss and two reports of progress
EVALUATION_BATCH = 1000

# (logits [B, classes] float32, indices [B] into the training split) -> scalar loss
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Constraint(Protocol):
    """What pruning does to a network while it trains."""

    def before_step(self, step: int, steps: int) -> bool:
        """Tighten to where step `step` of `steps` should be; True when parameters were replaced by smaller ones."""
        ...

    def after_step(self) -> None:
        """Undo what the optimizer did to pruned weights."""
        ...


@dataclass(frozen=True)
class Plan:
    """One stage of training. `augment`: shift every second batch by up to 1 pixel."""

    stage: str
    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    augment: bool = False


@dataclass(frozen=True)
class Resident:
    """A data set on the device: images float32 [N, 1, 28, 28] channels_last, labels int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor
    validation_images: torch.Tensor
    validation_labels: torch.Tensor

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.images.device


def device_of(name: str) -> torch.device:
    """`auto` takes CUDA where there is one; RecipeError for an unknown or absent device."""
    if name not in DEVICES:
        raise RecipeError(f"device: {name!r} is not valid; choose from {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device: 'cuda' is asked for and torch finds no CUDA device; choose auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


_kept: dict[tuple[str, str], Resident] = {}


def resident(data: DataSet, device: torch.device) -> Resident:
    """The data set as tensors on `device`; the last one is kept, because a worker serves many trials of one study."""
    key = (data.digest, str(device))
    if key not in _kept:
        _kept.clear()
        parts = [tensors(split, device) for split in (data.train, data.validation)]
        _kept[key] = Resident(*parts[0], *parts[1])
    return _kept[key]


def tensors(split: Split, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 [N, 1, 28, 28] channels_last, labels int64 [N], on `device`."""
    images = torch.from_numpy(normalized(split.images, "NCHW"))
    return images.to(device, memory_format=torch.channels_last), torch.from_numpy(split.labels).to(device)


@functools.cache
def half_precision(device_type: str) -> torch.dtype | None:
    """The 16-bit type that the device computes with faster than with float32, None when it has none."""
    if device_type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else None


def autocast(device: torch.device) -> torch.autocast:
    """Mixed precision where it pays, otherwise nothing."""
    dtype = half_precision(device.type)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first tenth, then a cosine to zero (Loshchilov & Hutter, arXiv:1608.03983)."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class _Run:
    """One stage of training under way."""

    def __init__(self, model: nn.Module, data: Resident, plan: Plan, loss_of: Loss, constraint: Constraint | None):
        self.model, self.data, self.plan = model, data, plan
        self.loss_of, self.constraint = loss_of, constraint
        self.shuffler = torch.Generator().manual_seed(plan.seed)
        self.batches = math.ceil(len(data.labels) / plan.batch_size)
        self.steps, self.step = plan.epochs * self.batches, 0
        self.total = torch.zeros((), device=data.device)
        self.optimizer = _adam(model)
        kind = data.device.type
        self.scaler = torch.amp.GradScaler(kind, enabled=half_precision(kind) is torch.float16)

    def order(self) -> tuple[torch.Tensor, ...]:
        """The batches of one epoch, as indices into the training split."""
        shuffled = torch.randperm(len(self.data.labels), generator=self.shuffler)
        return shuffled.to(self.data.device).split(self.plan.batch_size)

    def train_on(self, chosen: torch.Tensor) -> None:
        """One step on the training samples `chosen`, int64 [B]."""
        if self.constraint is not None and self.constraint.before_step(self.step, self.steps):
            self.optimizer = _adam(self.model)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.plan.learning_rate)
        images = self.data.images[chosen]
        if self.plan.augment and self.step % 2:
            images = shifted(images, self.shuffler)
        with autocast(self.data.device):
            logits = self.model(images)
        loss = self.loss_of(logits.float(), chosen)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.constraint is not None:
            self.constraint.after_step()
        self.total += loss.detach() * len(chosen)
        self.step += 1

    def check(self) -> None:
        """Raise TrainingError when the loss is no longer a number."""
        if not math.isfinite(self.total.item()):
            raise TrainingError(
                f"the loss is NaN or infinite in {self.plan.stage}, step {self.step} of {self.steps}: "
                f"lower learning_rate (it is {self.plan.learning_rate:g})"
            )


def fit(
    model: nn.Module, data: Resident, plan: Plan, job: Job, loss_of: Loss, constraint: Constraint | None = None
) -> list[dict[str, float]]:
    """Train `model` in place: loss and validation accuracy (fraction) per epoch. Raises TrainingError on a NaN loss.

    The caller sets training mode (captured programs refuse it). Deterministic in `plan.seed` on a CPU.
    """
    run = _Run(model, data, plan, loss_of, constraint)
    curves = []
    for _ in range(plan.epochs):
        run.total.zero_()
        for chosen in run.order():
            job.pause()
            run.train_on(chosen)
            if run.step % WATCHED_EVERY == 0:
                run.check()
                job.progress(plan.stage, run.step / run.steps)
        run.check()
        job.progress(plan.stage, run.step / run.steps)
        loss = run.total.item() / len(data.labels)
        curves.append({"loss": loss, "accuracy": accuracy(model, data)})
    return curves


def _adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), fused=True)


def predict(model: nn.Module, images: torch.Tensor, job: Job | None = None, exact: bool = True) -> torch.Tensor:
    """Logits float32 [N, classes] for `images`; in float32 when `exact`, else in the device's fast precision.

    The model is used in the mode it is in; `job` is asked for a pause between batches.
    """
    found = []
    for batch in images.split(EVALUATION_BATCH):
        if job is not None:
            job.pause()
        with torch.no_grad(), contextlib.nullcontext() if exact else autocast(images.device):
            found.append(model(batch).float())
    return torch.cat(found)


def accuracy(model: nn.Module, data: Resident) -> float:
    """Fraction of the validation split that is predicted right, in the device's fast precision."""
    with evaluating(model):
        logits = predict(model, data.validation_images, exact=False)
    return (logits.argmax(1) == data.validation_labels).float().mean().item()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, where the model has such a mode: captured programs are made for evaluation."""
    was_training = model.training
    if not isinstance(model, fx.GraphModule):
        model.eval()
    yield
    if not isinstance(model, fx.GraphModule):
        model.train(was_training)
