"""A task's model on a batch, in whichever framework: for checks and contract suites. Only workers use this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from tasks.base import Arrays, Batch, TaskError, TaskInfo


class Runner(Protocol):
    """One model. `pretrained`: whether it comes with trained weights."""

    pretrained: bool

    def outputs(self, batch: Batch) -> Arrays:
        """By output name, in eval mode."""
        ...

    def loss(self, batch: Batch) -> tuple[float, bool]:
        """The loss in eval mode, and whether any weight has a gradient of it."""
        ...


def rows_of(targets: Any, rows: np.ndarray) -> Any:
    """Rows of targets in any structure."""
    if targets is None:
        return None
    if isinstance(targets, dict):
        return type(targets)({name: rows_of(value, rows) for name, value in targets.items()})
    if isinstance(targets, tuple | list):
        return tuple(rows_of(value, rows) for value in targets)
    return {n: v[rows] for n, v in targets.items()} if isinstance(targets, Mapping) else targets[rows]


def named(raw: Any, info: TaskInfo) -> dict[str, Any]:
    """A network's tensor, or tuple of tensors, by the names of the output ports."""
    found = tuple(raw) if isinstance(raw, tuple | list) else (raw,)
    if len(found) != len(info.outputs):
        raise TaskError(f"the network returns {len(found)} tensors for {len(info.outputs)} output ports", "model")
    return {port.name: tensor for port, tensor in zip(info.outputs, found, strict=True)}


class TorchRunner:
    """See Runner."""

    def __init__(self, program: Any, model: str, info: TaskInfo) -> None:
        self.program, self.info = program, info
        self.network = program.build(model)
        self.pretrained = bool(program.pretrained(model))

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        import torch

        arrays = {port.name: batch.inputs[port.name] for port in self.info.inputs}
        return {name: torch.as_tensor(np.require(array, requirements=["C", "W"])) for name, array in arrays.items()}

    def outputs(self, batch: Batch) -> Arrays:
        """By output name, in eval mode."""
        import torch

        with torch.no_grad():
            raw = self.network.eval()(*self._inputs(batch).values())
        return {name: tensor.numpy() for name, tensor in named(raw, self.info).items()}

    def loss(self, batch: Batch) -> tuple[float, bool]:
        """The loss in eval mode, and whether any weight has a gradient of it."""
        inputs = self._inputs(batch)
        self.network.zero_grad()
        outputs = named(self.network.eval()(*inputs.values()), self.info)
        loss = self.program.loss(outputs, inputs, torch_targets(batch.targets))
        reached = bool(loss.requires_grad)
        if reached:
            loss.backward()
            reached = any(each.grad is not None for each in self.network.parameters())
            self.network.zero_grad()
        return float(loss.detach()), reached


def torch_targets(targets: Any) -> Any:
    """Targets as tensors, in their own structure."""
    import torch

    if isinstance(targets, Mapping):
        return type(targets)({key: torch_targets(value) for key, value in targets.items()})  # type: ignore[call-arg]
    if isinstance(targets, tuple | list):
        return tuple(torch_targets(value) for value in targets)
    return None if targets is None else torch.as_tensor(np.array(targets))


class KerasRunner:
    """See Runner."""

    def __init__(self, program: Any, model: str, info: TaskInfo) -> None:
        self.program, self.info = program, info
        self.network = program.build(model)
        self.pretrained = bool(program.pretrained(model))

    def _call(self, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        import tensorflow as tf

        inputs = {port.name: tf.constant(batch.inputs[port.name]) for port in self.info.inputs}
        given = list(inputs.values())
        return inputs, named(self.network(given if len(given) > 1 else given[0], training=False), self.info)

    def outputs(self, batch: Batch) -> Arrays:
        """By output name, in eval mode."""
        return {name: np.asarray(tensor) for name, tensor in self._call(batch)[1].items()}

    def loss(self, batch: Batch) -> tuple[float, bool]:
        """The loss in eval mode, and whether any weight has a gradient of it."""
        import tensorflow as tf

        with tf.GradientTape() as tape:
            inputs, outputs = self._call(batch)
            loss = self.program.loss(outputs, inputs, tf.nest.map_structure(tf.constant, batch.targets))
        gradients = tape.gradient(loss, self.network.trainable_variables)
        return float(loss), any(each is not None for each in gradients)


class OnnxRunner:
    """See Runner; an ONNX file has no loss."""

    pretrained = True

    def __init__(self, program: Any, model: str, info: TaskInfo) -> None:
        import onnxruntime

        self.info = info
        self.session = onnxruntime.InferenceSession(str(program.file(model)), providers=["CPUExecutionProvider"])

    def outputs(self, batch: Batch) -> Arrays:
        """By output name, in eval mode."""
        names = [port.name for port in self.info.outputs]
        return dict(zip(names, self.session.run(names, dict(batch.inputs)), strict=True))

    def loss(self, batch: Batch) -> tuple[float, bool]:
        """The loss in eval mode, and whether any weight has a gradient of it."""
        raise TaskError("an ONNX file has no loss", "loss")


TRAINERS: Mapping[str, type[Any]] = {"pytorch": TorchRunner, "tensorflow": KerasRunner, "onnx": OnnxRunner}


def runner(trainer: str, program: Any, model: str, info: TaskInfo) -> Runner:
    """The model of a task's program, ready to run; raises TaskError when it cannot be built."""
    made: Runner = TRAINERS[trainer](program, model, info)
    return made
