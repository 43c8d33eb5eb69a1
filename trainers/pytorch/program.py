"""The PyTorch half of a task: what the trainer asks of it. Implemented by the tasks, in a worker process."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from torch import nn

Tensors = Mapping[str, torch.Tensor]


class TorchProgram(Protocol):
    """The model, its loss and what distillation compares.

    The network that `build` gives takes its inputs as tensors by position, in the order of the task's input ports, and
    returns one tensor, or a tuple of them in the order of its output ports: keywords, dicts and dataclasses of a user's
    model are dealt with inside, so that capture, pruning and export see one shape of network.

    A program may have more, which the trainer uses where it is there:

    - `distill(student: Tensors, teacher: Tensors, how: Distillation) -> Tensor`: a scalar, how far the student is from
      the teacher, without the loss; by default what `trainers.pytorch.distill.divergence` says of the output ports.
    - `augments(stage: str, step: int) -> bool`: whether `augment` is called in this step of `dense`, `fine-tune` or
      `qat`; by default in every step whose teacher sees the same batch.
    - `optimizer(network, learning_rate: float) -> Optimizer`: the task's own in the place of Adam; the cosine schedule
      scales the learning rate of each of its groups.
    - `loss` with a parameter `label_smoothing: float`, without which `finetuning.label_smoothing` is refused.
    """

    def build(self, model: str) -> nn.Module:
        """The named network in eval mode on the CPU, with the user's weights where there are any, else a fresh start.

        Raises TaskError when the weights do not fit, naming the first keys and shapes that differ.
        """
        ...

    def pretrained(self, model: str) -> bool:
        """Whether `build` gives trained weights: the dense model is then taken as it is and not trained."""
        ...

    def loss(self, outputs: Tensors, inputs: Tensors, targets: Any) -> torch.Tensor:
        """Scalar, mean over the batch. `targets`: the batch's, as tensors on the device, in the user's structure."""
        ...

    def keep(self, network: nn.Module) -> Collection[str]:
        """Names of modules that must keep their width: heads, and what the user froze or named."""
        ...

    def augment(self, inputs: Tensors, generator: torch.Generator) -> Tensors:
        """The batch as training sees it; the inputs themselves where the task does not augment on the device."""
        ...
