"""The TensorFlow half of a task: what the trainer asks of it. Implemented by the tasks, in a worker process."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import tensorflow as tf
import tf_keras

Tensors = Mapping[str, tf.Tensor]


class KerasProgram(Protocol):
    """The model and its loss.

    `build` gives a Sequential or Functional model of tf_keras whose inputs stand in the order of the task's input ports
    and whose outputs in that of its output ports. Where a port's layout is NCHW the model's own is NHWC: the trainer
    turns what it gives and takes, but `loss` sees the outputs as the model gives them.

    A program may have more, which the trainer uses where it is there:

    - `augment(inputs: Tensors, seed: tf.Tensor) -> Tensors`: the batch as training sees it, in TensorFlow's operators;
      `seed`: int32 scalar, another one in every step.
    - `distill(student: Tensors, teacher: Tensors, how: Distillation) -> Tensor`: a scalar, how far the student is from
      the teacher, both in the ports' layout; by default `trainers.tensorflow.distill.divergence`.
    - `loss` with a parameter `label_smoothing: float`, without which `finetuning.label_smoothing` is refused.
    """

    def build(self, model: str) -> tf_keras.Model:
        """The named model with the user's weights where there are any, else a fresh start."""
        ...

    def pretrained(self, model: str) -> bool:
        """Whether `build` gives trained weights: the dense model is then taken as it is and not trained."""
        ...

    def loss(self, outputs: Tensors, inputs: Tensors, targets: Any) -> tf.Tensor:
        """Scalar float32, mean over the batch; `targets`: tensors in the structure that the task's data has."""
        ...

    def keep(self, network: tf_keras.Model) -> Collection[str]:
        """Names of layers that must keep their width: heads, and what the user froze or named."""
        ...
