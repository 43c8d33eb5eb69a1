"""The training loop of any task: Adam, cosine with warm-up, mixed precision, whatever batches a Feed gives."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from trainers.base import TrainingError
from trainers.pytorch import device as devices
from trainers.pytorch.average import MovingAverage
from trainers.pytorch.checkpoint import State, network_state, restore_network
from trainers.pytorch.course import Course
from trainers.pytorch.data import DeviceBatch, shuffled
from trainers.pytorch.distill import TrainingLoss
from trainers.pytorch.evaluate import outputs_of

WARM_UP = 0.1  # of all steps
WATCHED_EVERY = 25  # batches between two looks at the loss and two reports of progress
WATCHED_S = 5.0  # or so many seconds, where batches are slow


class Constraint(Protocol):
    """What pruning does to a network while it trains.

    Optional: `optimized_by(optimizer)`, told of the optimizer and of each that takes its place.
    """

    def before_step(self, step: int, steps: int) -> bool:
        """Tighten to where step `step` of `steps` should be; True when parameters were replaced by smaller ones."""
        ...

    def after_step(self) -> None:
        """Undo what the optimizer did to pruned weights."""
        ...

    def resume(self) -> None:
        """Go on with the network as it is now, which a checkpoint has restored in place."""
        ...


@dataclass(frozen=True)
class Plan:
    """One stage of training. `epochs` may be a fraction: the schedule is complete in so many steps.

    `micro_batch`: samples per forward pass where a batch is too large for the device, 0 for all at once. `average`: the
    decay of a moving average of the weights, 0 for none.
    """

    stage: str
    epochs: float
    learning_rate: float
    batch_size: int
    seed: int
    micro_batch: int = 0
    weight_decay: float = 0.0
    average: float = 0.0

    def steps(self, samples: int) -> int:
        """Optimizer steps in all: at least one, unless there are no epochs."""
        return max(1, round(self.epochs * math.ceil(samples / self.batch_size))) if self.epochs else 0


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first tenth, then a cosine to zero (Loshchilov & Hutter, arXiv:1608.03983)."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class _Run:
    """One stage of training under way."""

    def __init__(
        self, model: nn.Module, course: Course, plan: Plan, loss_of: TrainingLoss, constraint: Constraint | None
    ) -> None:
        self.model, self.course, self.plan = model, course, plan
        self.loss_of, self.constraint = loss_of, constraint
        self.data = course.train
        course.note(f"training data: {self.data.note}")
        self.shuffler = torch.Generator().manual_seed(plan.seed)
        self.batches = math.ceil(len(self.data) / plan.batch_size)
        self.steps, self.step = plan.steps(len(self.data)), 0
        self.total = torch.zeros((), device=course.device)
        self.seen = 0
        self.curves: list[dict[str, float]] = []
        self.micro_batch = plan.micro_batch or plan.batch_size
        self.average = MovingAverage(model, plan.average) if plan.average else None
        self.optimizer = self._new_optimizer()
        kind = course.device.type
        self.scaler = torch.amp.GradScaler(kind, enabled=devices.half_precision(kind) is torch.float16)
        self.watched = time.monotonic()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        own: Callable[[nn.Module, float], torch.optim.Optimizer] | None
        own = getattr(self.loss_of.program, "optimizer", None)
        made = _checked(own(self.model, self.plan.learning_rate), self.model, self.plan) if own else None
        made = made or _adam(self.model, self.plan)
        if (told := getattr(self.constraint, "optimized_by", None)) is not None:
            told(made)
        for group in made.param_groups:
            group["initial_lr"] = group["lr"]
        return made

    def epoch(self) -> None:
        """Train on the whole training split once, or on what is left of the last epoch; adds to the curves."""
        first = self.step
        order = shuffled(self.data, self.plan.batch_size, self.shuffler)[: self.steps - self.step]
        self.total.zero_()
        self.seen = 0
        number = self.step // self.batches if self.loss_of.augments else None
        for batch in self.data.batches(order, self.course.job, number):
            self.train_on(batch)
            late = time.monotonic() - self.watched > WATCHED_S
            if self.step % WATCHED_EVERY == 0 or late:
                self.watch()
        self.watch()
        loss = self.total.item() / self.seen
        share = (self.step - first) / self.batches
        with self.average.in_place() if self.average else contextlib.nullcontext():
            metrics = self.course.evaluator.metrics(self.model, self.course.validation)
        self.curves.append({"epochs": share, "loss": loss, **metrics})

    def train_on(self, batch: DeviceBatch) -> None:
        """One step; when the device has no room for it, in halves from there on."""
        if self.constraint is not None and self.constraint.before_step(self.step, self.steps):
            self.optimizer = self._new_optimizer()
            if self.average:
                self.average.restart(self.model)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, group["initial_lr"])
        batch = self._augmented(batch)
        while (loss := self._gradients(batch)) is None:
            self._halve()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.constraint is not None:
            self.constraint.after_step()
        if self.average:
            self.average.update()
        self.total += loss * len(batch)
        self.seen += len(batch)
        self.step += 1

    def _augmented(self, batch: DeviceBatch) -> DeviceBatch:
        program = self.loss_of.program
        wanted: Callable[[str, int], bool] | None = getattr(program, "augments", None)
        if not self.loss_of.augments or (wanted is not None and not wanted(self.plan.stage, self.step)):
            return batch
        return DeviceBatch(dict(program.augment(batch.inputs, self.shuffler)), batch.targets, batch.rows)

    def _gradients(self, batch: DeviceBatch) -> torch.Tensor | None:
        """The loss of the batch, its gradients in place; None when the device had no room for that."""
        self.optimizer.zero_grad(set_to_none=True)
        parts = batch.split(self.micro_batch)
        total: torch.Tensor | None = None
        try:
            for part in parts:
                with devices.autocast(self.course.device):
                    outputs = outputs_of(self.model, part.inputs, self.course.info.inputs, self.course.info.outputs)
                loss = self.loss_of(outputs, part)
                if len(parts) > 1:
                    loss = loss * (len(part) / len(batch))
                self.scaler.scale(loss).backward()
                total = loss.detach() if total is None else total + loss.detach()
        except RuntimeError as error:
            if not devices.is_out_of_memory(error):
                raise
            return None
        return total

    def _halve(self) -> None:
        size = min(self.micro_batch, self.plan.batch_size)
        if size == 1:
            raise TrainingError(
                f"{self.plan.stage}: the {self.course.device.type} has no room for one sample; free its memory, "
                "run fewer workers, or take a smaller model"
            )
        self.micro_batch = math.ceil(size / 2)
        self.optimizer.zero_grad(set_to_none=True)
        if self.course.device.type == "cuda":
            torch.cuda.empty_cache()
        said = f"{self.plan.stage}: out of memory, {self.micro_batch} samples at once instead of {size}"
        self.course.note(said)
        self.course.job.progress(said, self.step / self.steps)

    def watch(self) -> None:
        """Report progress; raise TrainingError when the loss is no longer a number."""
        self.watched = time.monotonic()
        if not math.isfinite(self.total.item()):
            raise TrainingError(
                f"the loss is NaN or infinite in {self.plan.stage}, step {self.step} of {self.steps}: "
                f"lower learning_rate (it is {self.plan.learning_rate:g})"
            )
        self.course.job.progress(self.plan.stage, self.step / self.steps)

    def state(self) -> State:
        """All that the rest of the stage depends on."""
        random = [self.shuffler.get_state(), torch.get_rng_state()]
        if self.course.device.type == "cuda":
            random.append(torch.cuda.get_rng_state())
        return {
            **network_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random,
            "average": self.average.state() if self.average else None,
            "step": self.step,
            "micro_batch": self.micro_batch,
            "curves": self.curves,
        }

    def restore(self, state: State) -> None:
        """Go on where `state` was taken."""
        restore_network(self.model, state)
        self.optimizer = self._new_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        shuffler, general, *cuda = state["random"]
        self.shuffler.set_state(shuffler)
        torch.set_rng_state(general)
        if cuda:
            torch.cuda.set_rng_state(cuda[0])
        if self.average and state["average"]:
            self.average.restore(state["average"])
        self.step, self.micro_batch, self.curves = state["step"], state["micro_batch"], state["curves"]
        if self.constraint is not None:
            self.constraint.resume()


def fit(
    model: nn.Module, course: Course, plan: Plan, loss_of: TrainingLoss, constraint: Constraint | None = None
) -> list[dict[str, float]]:
    """Train `model` in place: `epochs`, loss and the task's metrics on validation, one dict per epoch.

    The caller sets training mode (captured programs refuse it). Deterministic in `plan.seed` on a CPU. A stage that
    was cut off goes on from its last checkpoint. Raises TrainingError on a NaN loss.
    """
    run = _Run(model, course, plan, loss_of, constraint)
    if (state := course.checkpoints.load(plan.stage)) is not None:
        run.restore(state)
        course.note(f"{plan.stage}: went on from step {run.step} of {run.steps}")
    while run.step < run.steps:
        run.epoch()
        if course.checkpoints.due() and (failed := course.checkpoints.save(plan.stage, run.state())):
            course.note(f"{plan.stage}: no checkpoint was written: {failed}")
    if run.average:
        run.average.keep()
        if constraint is not None:
            constraint.after_step()
    return run.curves


def _checked(own: torch.optim.Optimizer, model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """The task's own optimizer, if it is of this network; raises TrainingError."""
    if plan.weight_decay:
        raise TrainingError("finetuning.weight_decay: the task has an optimizer of its own, which sets it; write 0")
    theirs = {id(parameter) for group in own.param_groups for parameter in group["params"]}
    if not theirs or theirs - {id(parameter) for parameter in model.parameters()}:
        raise TrainingError("the task's optimizer holds other parameters than those of the network it was given")
    return own


def _adam(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """Adam; with weight decay AdamW, which spares biases and the parameters of norms."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not plan.weight_decay:
        return torch.optim.Adam(trained, lr=plan.learning_rate, fused=True)
    groups: list[dict[str, Any]] = [
        {"params": [each for each in trained if each.dim() > 1], "weight_decay": plan.weight_decay},
        {"params": [each for each in trained if each.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, fused=True)
