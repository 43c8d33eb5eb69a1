"""What training minimizes: the task's loss, mixed with how far the student is from a teacher."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn

from tasks.base import Arrays, Port, TaskInfo
from trainers.base import Job, Teacher
from trainers.pytorch import device as devices
from trainers.pytorch.data import DeviceBatch
from trainers.pytorch.evaluate import outputs_of
from trainers.pytorch.program import Tensors, TorchProgram
from trainers.recipe import Distillation, RecipeError

ON_DEVICE = 256_000_000  # bytes of a teacher's outputs that are kept on the device; more are read batch by batch


def soft_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float, axis: int = 1) -> torch.Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)) over `axis`, mean over all other positions.

    Logits float32 of one shape, such as [B, classes] or [B, classes, H, W]. Hinton et al., arXiv:1503.02531: T^2 keeps
    the gradient's size when T changes.
    """
    target = nn.functional.log_softmax(teacher / temperature, dim=axis)
    log_probability = nn.functional.log_softmax(student / temperature, dim=axis)
    divergence = nn.functional.kl_div(log_probability, target, reduction="sum", log_target=True)
    return divergence / (student.numel() // student.shape[axis]) * temperature**2


def divergence(outputs: Sequence[Port], student: Tensors, teacher: Tensors, how: Distillation) -> torch.Tensor:
    """How far the student is from the teacher, a scalar: the sum over the outputs.

    Of `logits` the softened divergence (`soft`) or cross-entropy with the teacher's largest (`hard`), of `values` the
    mean square of the difference either way.
    """
    found = []
    for port in outputs:
        said, wanted = student[port.name], teacher[port.name]
        if port.kind != "logits":
            found.append(nn.functional.mse_loss(said, wanted))
        elif how.kind == "hard":
            classes_second = said.movedim(port.axis, 1)
            found.append(nn.functional.cross_entropy(classes_second, wanted.argmax(dim=port.axis)))
        else:
            found.append(soft_loss(said, wanted, how.temperature, port.axis))
    return sum(found[1:], found[0])


class Lecture(Protocol):
    """What a teacher says of a batch. `live`: it sees the batch itself, so that the batch may be augmented."""

    live: bool

    def __call__(self, batch: DeviceBatch) -> Tensors:
        """Its outputs on the batch, by name."""
        ...


class Cached:
    """A teacher's outputs that were computed once, float32 [train size, ...] by name."""

    live = False

    def __init__(self, outputs: Arrays, device: torch.device) -> None:
        self._device, self._outputs = device, outputs
        small = sum(each.nbytes for each in outputs.values()) <= ON_DEVICE
        self._kept = {name: torch.tensor(each, device=device) for name, each in outputs.items()} if small else None

    def __call__(self, batch: DeviceBatch) -> Tensors:
        """The rows of the batch."""
        if self._kept is not None:
            return {name: each[batch.rows] for name, each in self._kept.items()}
        rows = batch.rows.cpu().numpy()
        return {name: torch.from_numpy(np.asarray(each[rows])).to(self._device) for name, each in self._outputs.items()}


class Live:
    """A teacher that runs in every step, in evaluation mode and the device's fast precision."""

    live = True

    def __init__(self, network: nn.Module, info: TaskInfo) -> None:
        self._network, self._info = network.eval(), info

    def __call__(self, batch: DeviceBatch) -> Tensors:
        """Its outputs on the batch as the student sees it."""
        with torch.no_grad(), devices.autocast(batch.rows.device):
            return outputs_of(self._network, batch.inputs, self._info.inputs, self._info.outputs)


class TrainingLoss:
    """The loss of a batch, a scalar: alpha * (what the teacher says) + (1 - alpha) * (what the targets say)."""

    def __init__(
        self,
        program: TorchProgram,
        outputs: Sequence[Port],
        distillation: Distillation | None = None,
        lecture: Lecture | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.program, self.ports, self.lecture = program, outputs, lecture
        self.how = distillation or Distillation()
        self.options = {"label_smoothing": label_smoothing} if label_smoothing else {}
        if self.options and "label_smoothing" not in inspect.signature(program.loss).parameters:
            raise RecipeError(
                f"finetuning.label_smoothing: {label_smoothing:g}, but the task's loss takes none; write "
                "`loss(outputs, inputs, targets, label_smoothing=0.0)`, or leave it out"
            )

    @property
    def augments(self) -> bool:
        """Whether batches may be augmented: not where the teacher spoke of the samples as they are."""
        return self.lecture is None or self.lecture.live

    def __call__(self, outputs: Tensors, batch: DeviceBatch) -> torch.Tensor:
        """`outputs`: the student's on the batch, by name."""
        with_targets = self.program.loss(outputs, batch.inputs, batch.targets, **self.options)
        if self.lecture is None or self.how.kind == "none":
            return with_targets
        said = self.lecture(batch)
        own = getattr(self.program, "distill", None)
        learned = own(outputs, said, self.how) if own else divergence(self.ports, outputs, said, self.how)
        alpha = self.how.alpha
        return alpha * learned + (1.0 - alpha) * with_targets


def lecture_of(teacher: Teacher | None, job: Job, device: torch.device, network: nn.Module | None) -> Lecture | None:
    """The teacher as training uses it. `network`: the teacher's own, where it has no outputs."""
    if teacher is None:
        return None
    if teacher.outputs is not None:
        return Cached(teacher.outputs, device)
    assert network is not None
    return Live(network, job.task.info())
