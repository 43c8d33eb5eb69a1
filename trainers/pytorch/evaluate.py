"""A network's outputs by name, on a batch or a split, and the task's metrics over them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import fx, nn

from tasks.base import Arrays, Batch, Port, Task, TaskError
from trainers.base import Job, TrainingError
from trainers.pytorch.data import DeviceBatch, Feed
from trainers.pytorch.device import autocast, is_out_of_memory
from trainers.samples import mapped

ROWS_AT_ONCE = {"cpu": 250, "cuda": 1000}  # at most: on a CPU more at once take twice as long
# What the largest output of a layer may take in evaluation.
LAYER_BYTES = {"cpu": 64_000_000, "cuda": 512_000_000}


def outputs_of(
    model: nn.Module, inputs: Mapping[str, torch.Tensor], ins: Sequence[Port], outs: Sequence[Port]
) -> dict[str, torch.Tensor]:
    """What the model gives for a batch, by output name, floats as float32."""
    raw = model(*(inputs[port.name] for port in ins))
    parts = tuple(raw) if isinstance(raw, tuple | list) else (raw,)
    if len(parts) != len(outs):
        named = ", ".join(port.name for port in outs)
        raise TaskError(f"the network gives {len(parts)} tensors, the task names {len(outs)} outputs: {named}", "model")
    return {
        port.name: part.float() if part.is_floating_point() else part for port, part in zip(outs, parts, strict=True)
    }


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, where the model has such a mode: captured programs are made for evaluation."""
    was_training = model.training
    if not isinstance(model, fx.GraphModule):
        model.eval()
    yield
    if not isinstance(model, fx.GraphModule):
        model.train(was_training)


def rows_at_once(model: nn.Module, batch: DeviceBatch, ports: Sequence[Port]) -> int:
    """How many samples the model evaluates at once: by the largest output that a layer gives for one of `batch`."""
    largest = 1

    def measure(module: nn.Module, given: object, made: object) -> None:
        nonlocal largest
        for part in made if isinstance(made, tuple | list) else (made,):
            if isinstance(part, torch.Tensor):
                largest = max(largest, part.nbytes)

    hooks = [module.register_forward_hook(measure) for module in model.modules()]
    try:
        with torch.no_grad(), evaluating(model):
            model(*(batch.inputs[port.name] for port in ports))
    finally:
        for hook in hooks:
            hook.remove()
    kind = batch.rows.device.type
    allowed = LAYER_BYTES[kind] * len(batch) // largest
    return max(1, min(ROWS_AT_ONCE[kind], allowed))


class Evaluator:
    """Runs networks of one task over its splits, in evaluation mode, `rows` samples at once."""

    def __init__(self, task: Task, job: Job, rows: int) -> None:
        self.task, self.info, self.job, self.rows = task, task.info(), job, rows

    def over(
        self, model: nn.Module, feed: Feed, count: int | None = None, exact: bool = True
    ) -> Iterator[tuple[DeviceBatch, dict[str, torch.Tensor]]]:
        """Each batch of the first `count` samples and the model's outputs; in float32 when `exact`, else mixed.

        The model is used in the mode it is in. Where the device has no room for so many samples, half of them are
        taken, from there on.
        """
        total = len(feed) if count is None else min(count, len(feed))
        start = 0
        while start < total:
            order = torch.arange(start, total).split(self.rows)
            try:
                for batch in feed.batches(order, self.job):
                    with torch.no_grad(), contextlib.nullcontext() if exact else autocast(feed.device):
                        outputs = outputs_of(model, batch.inputs, self.info.inputs, self.info.outputs)
                    yield batch, outputs
                    start += len(batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.rows == 1:
                    raise TrainingError("evaluation: the device has no room for one sample; free its memory") from error
                self.rows = self.rows // 2

    def all_outputs(self, model: nn.Module, feed: Feed, limit: int) -> Arrays | None:
        """float32 [N, ...] by name over the split; None where they take more than `limit` bytes or differ in size."""
        parts: list[Arrays] = []
        for batch, made in self.over(model, feed):
            parts.append({name: each.cpu().numpy() for name, each in made.items()})
            size = sum(each.nbytes for each in parts[-1].values()) / len(batch) * len(feed)
            if size > limit or any(parts[0][name].shape[1:] != each.shape[1:] for name, each in parts[-1].items()):
                return None
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def first_outputs(self, model: nn.Module, feed: Feed, count: int, limit: int) -> Arrays:
        """float32 [rows, ...] by name on the first samples: `count`, or what fits into `limit` bytes, but at least one.

        A free axis that has another size ends them.
        """
        found: dict[str, list[np.ndarray]] = {port.name: [] for port in self.info.outputs}
        left = limit
        for batch, made in self.over(model, feed, count):
            arrays = {name: each.cpu().numpy() for name, each in made.items()}
            taken = min(len(batch), left * len(batch) // max(1, sum(each.nbytes for each in arrays.values())))
            alike = all(not parts or parts[0].shape[1:] == arrays[name].shape[1:] for name, parts in found.items())
            taken = taken if any(found.values()) else max(1, taken)
            if not taken or not alike:
                break
            for name, each in arrays.items():
                found[name].append(each[:taken])
            left -= sum(each[:taken].nbytes for each in arrays.values())
            if taken < len(batch):
                break
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def metrics(self, model: nn.Module, feed: Feed) -> dict[str, float]:
        """The task's metrics over the split, in the device's fast precision."""
        scorer = self.task.scorer()
        with evaluating(model):
            for batch, made in self.over(model, feed, exact=False):
                arrays = {name: each.cpu().numpy() for name, each in made.items()}
                scorer.add(arrays, as_batch(batch))
        return scorer.result()


def as_batch(batch: DeviceBatch) -> Batch:
    """The samples as the task's own code takes them."""

    def to_numpy(leaf: object) -> object:
        return leaf.cpu().numpy() if isinstance(leaf, torch.Tensor) else leaf

    inputs = {name: each.cpu().numpy() for name, each in batch.inputs.items()}
    return Batch(inputs, mapped(to_numpy, batch.targets))
