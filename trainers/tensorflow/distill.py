"""What training minimizes: the task's loss, mixed with how far the student is from a teacher."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tasks.base import Port
from trainers.recipe import Distillation, RecipeError
from trainers.tensorflow.layout import to_task
from trainers.tensorflow.program import KerasProgram, Tensors


def divergence(outputs: Sequence[Port], student: Tensors, teacher: Tensors, how: Distillation) -> tf.Tensor:
    """How far the student is from the teacher, a scalar: the sum over the outputs, in the ports' layout.

    Of `logits` the softened divergence T^2 * KL(teacher/T, student/T) (`soft`) or cross-entropy with the teacher's
    largest (`hard`), of `values` the mean square of the difference either way. Hinton et al., arXiv:1503.02531.
    """
    found = []
    for port in outputs:
        said, wanted = student[port.name], teacher[port.name]
        if port.kind != "logits":
            found.append(tf.reduce_mean(tf.square(said - wanted)))
            continue
        said, wanted = _classes_last(said, port), _classes_last(wanted, port)
        if how.kind == "hard":
            largest = tf.argmax(wanted, axis=-1)
            found.append(tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(largest, said)))
        else:
            found.append(_softened_divergence(said, wanted, how.temperature))
    return tf.add_n(found)


def _classes_last(values: tf.Tensor, port: Port) -> tf.Tensor:
    rank = len(port.shape)
    order = [axis for axis in range(rank) if axis != port.axis % rank] + [port.axis % rank]
    return values if order == list(range(rank)) else tf.transpose(values, order)


def _softened_divergence(logits: tf.Tensor, teacher: tf.Tensor, temperature: float) -> tf.Tensor:
    target = tf.nn.log_softmax(teacher / temperature)
    student = tf.nn.log_softmax(logits / temperature)
    per_position = tf.reduce_sum(tf.exp(target) * (target - student), axis=-1)
    return temperature**2 * tf.reduce_mean(per_position)


class TrainingLoss:
    """The loss of a batch, a scalar: alpha * (what the teacher says) + (1 - alpha) * (what the targets say)."""

    def __init__(
        self,
        program: KerasProgram,
        outputs: Sequence[Port],
        distillation: Distillation | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.program, self.ports = program, outputs
        self.how = distillation or Distillation()
        self.options: dict[str, Any] = {"label_smoothing": label_smoothing} if label_smoothing else {}
        if self.options and "label_smoothing" not in inspect.signature(program.loss).parameters:
            raise RecipeError(
                f"finetuning.label_smoothing: {label_smoothing:g}, but the task's loss takes none; write "
                "`loss(outputs, inputs, targets, label_smoothing=0.0)`, or leave it out"
            )

    def __call__(self, outputs: Tensors, inputs: Tensors, targets: Any, teacher: Tensors | None) -> tf.Tensor:
        """`outputs`: the student's, as the model gives them; `teacher`: in the ports' layout."""
        with_targets = self.program.loss(outputs, inputs, targets, **self.options)
        if teacher is None or self.how.kind == "none":
            return with_targets
        student = to_task(outputs, self.ports)
        own: Callable[..., tf.Tensor] | None = getattr(self.program, "distill", None)
        learned = own(student, teacher, self.how) if own else divergence(self.ports, student, teacher, self.how)
        return self.how.alpha * learned + (1.0 - self.how.alpha) * with_targets
