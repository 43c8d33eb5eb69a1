"""How a recipe's channels are chosen, and what makes good for their removal, on a few batches of training samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from trainers import samples
from trainers.placement import remembered
from trainers.pytorch.channels import ChannelPruning, sensitivity
from trainers.pytorch.course import Course
from trainers.pytorch.data import DeviceBatch
from trainers.pytorch.distill import TrainingLoss
from trainers.pytorch.evaluate import evaluating, outputs_of
from trainers.pytorch.importance import Activation, Importance, Magnitude, Taylor, accumulate_gradients
from trainers.pytorch.program import TorchProgram
from trainers.pytorch.recover import correct_biases, least_squares
from trainers.recipe import Recipe

JUDGED_ROWS, AT_ONCE = 256, 64
FITTED_ROWS = 512


class Narrowing:
    """The channel pruning of one recipe. `program`: says the loss by which channels and layers are judged."""

    def __init__(self, recipe: Recipe, program: TorchProgram, course: Course, model: nn.Module) -> None:
        self.recipe, self.pruning, self.course, self.model = recipe, recipe.pruning, course, model
        self._program = program
        self._loss = TrainingLoss(program, course.info.outputs)
        self._ports = course.info.inputs, course.info.outputs
        keep = program.keep(model)
        losses = self._losses(keep) if self.pruning.allocation == "sensitivity" else None
        self.channels = self._channels(keep, losses)

    def _channels(self, keep: Collection[str], losses: dict[str, dict[int, float]] | None = None) -> ChannelPruning:
        example = self.course.samples(2)[0]
        return ChannelPruning(
            self.model, self.pruning, example, keep, self.pruning.allocation, self._importance, losses
        )  # fmt: skip

    def _batches(self) -> Iterator[DeviceBatch]:
        return _batches(self.course)

    def _loss_of(self, model: nn.Module, batch: DeviceBatch) -> torch.Tensor:
        return self._loss(outputs_of(model, batch.inputs, *self._ports), batch)

    def _importance(self, model: nn.Module) -> Importance:
        if self.pruning.importance == "activation":
            given = [tuple(batch.inputs[port.name] for port in self._ports[0]) for batch in self._batches()]
            return Activation(model, given)
        if self.pruning.importance == "taylor":
            with _all_trained(model):
                accumulate_gradients(model, self._batches(), self._loss_of)  # type: ignore[arg-type]
            return Taylor()
        return Magnitude()

    def _losses(self, keep: Collection[str]) -> dict[str, dict[int, float]]:
        """What the loss is with each unit alone narrowed; measured once for a dense model."""
        weights = round(float(sum(each.detach().abs().mean() for each in self.model.parameters())), 6)
        key = {
            "sensitivity of": self.recipe.model,
            "data": self.course.info.data_digest,
            "code": self.course.info.code_digest,
            "importance": self.pruning.importance,
            "weights": weights,
            "keep": sorted(keep),
        }

        def measure() -> dict[str, dict[str, float]]:
            found = sensitivity(self._channels(keep), mean_loss(self._program, self.course))
            return {unit: {str(width): loss for width, loss in each.items()} for unit, each in found.items()}

        kept = remembered(self.course.job.decisions, key, measure)
        return {unit: {int(width): loss for width, loss in each.items()} for unit, each in kept.items()}

    def recover(self, dense: nn.Module) -> None:
        """Narrow at once and fit what is left to what the dense network says; nothing without `recovery`."""
        if self.pruning.recovery == "none" or self.pruning.schedule != "one_shot":
            return
        self.channels.narrow(self.pruning.sparsity)
        fit = least_squares if self.pruning.recovery == "least_squares" else correct_biases
        batches = self.course.samples(FITTED_ROWS, AT_ONCE)
        fitted = fit(self.model, dense.eval(), batches, self.channels.network.kept)
        self.course.note(f"recovery by {self.pruning.recovery.replace('_', ' ')}: {fitted} layers fitted")


def mean_loss(program: TorchProgram, course: Course) -> Callable[[nn.Module], float]:
    """What judges a whole network: its loss in evaluation mode, the mean over some training samples."""
    loss = TrainingLoss(program, course.info.outputs)

    def judge(model: nn.Module) -> float:
        with torch.no_grad(), evaluating(model):
            losses = [
                float(loss(outputs_of(model, batch.inputs, course.info.inputs, course.info.outputs), batch))
                for batch in _batches(course)
            ]
        return sum(losses) / len(losses)

    return judge


def _batches(course: Course) -> Iterator[DeviceBatch]:
    rows = samples.representative(course.job.task.data("train"), JUDGED_ROWS)
    return iter(course.train.batches(list(torch.from_numpy(rows).split(AT_ONCE)), course.job))


@contextmanager
def _all_trained(model: nn.Module) -> Iterator[None]:
    frozen = [each for each in model.parameters() if not each.requires_grad]
    for each in frozen:
        each.requires_grad_(True)
    try:
        yield
    finally:
        for each in frozen:
            each.requires_grad_(False)
