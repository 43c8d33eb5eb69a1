"""Losses: cross-entropy, and knowledge distillation from a teacher's logits that were computed once."""

from __future__ import annotations

import torch
from torch import nn

from trainers.recipe import Distillation


def soft_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch; logits float32 [B, classes].

    Hinton et al., arXiv:1503.02531: T^2 keeps the gradient's size when T changes.
    """
    target = nn.functional.log_softmax(teacher / temperature, dim=1)
    log_probability = nn.functional.log_softmax(student / temperature, dim=1)
    return nn.functional.kl_div(log_probability, target, reduction="batchmean", log_target=True) * temperature**2


class TrainingLoss:
    """The loss of a batch: its logits float32 [B, classes] and its indices int64 [B] into the training split.

    `teacher`: float32 [N, classes] aligned with `labels`, int64 [N]; None without distillation.
    """

    def __init__(self, labels: torch.Tensor, distillation: Distillation, teacher: torch.Tensor | None) -> None:
        self.labels, self.distillation, self.teacher = labels, distillation, teacher
        self.taught = teacher.argmax(dim=1) if teacher is not None and distillation.kind == "hard" else None

    def __call__(self, logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Scalar: alpha * (what the teacher says) + (1 - alpha) * (what the labels say)."""
        labelled = nn.functional.cross_entropy(logits, self.labels[chosen])
        if self.teacher is None or self.distillation.kind == "none":
            return labelled
        if self.taught is not None:
            learned = nn.functional.cross_entropy(logits, self.taught[chosen])
        else:
            learned = soft_loss(logits, self.teacher[chosen], self.distillation.temperature)
        alpha = self.distillation.alpha
        return alpha * learned + (1.0 - alpha) * labelled
