"""The contract of a Task: `check_task(task)` in a test of one's own package shows that Pare can compress it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tasks import run
from tasks.base import Arrays, Batch, Dataset, Port, Task, TaskInfo

ROWS = 4  # samples in the batches that are tried
SPLITS = ("train", "validation")  # `test` stays closed


def check_task(task: Task) -> TaskInfo:
    """Raise AssertionError, with what is wrong, unless `task` keeps the contract of `tasks.base.Task`.

    Reads a few samples of train and validation, runs every model on them, and never opens the test split. Returns the
    task's info.
    """
    info = task.info()
    _check_info(info, task)
    for split in SPLITS:
        _check_dataset(task.data(split), info, split)
    batch = task.data("validation").batch(np.arange(_rows(task.data("validation"))))
    for trainer, models in info.models.items():
        program = task.program(trainer)
        for model in models:
            if trainer in run.TRAINERS:
                _FRAMEWORK[trainer](program, model, batch, info)
                outputs = _run(run.runner(trainer, program, model, info), model, batch, info)
                _check_judging(task, info, outputs, batch)
    serving = task.serving()
    assert serving is None or json.dumps(serving.to_dict()), "serving() must be plain data"
    return info


def _rows(data: Dataset) -> int:
    return min(ROWS, len(data))


def _check_info(info: TaskInfo, task: Task) -> None:
    again = TaskInfo.from_dict(json.loads(json.dumps(info.to_dict())))
    assert again.to_dict() == info.to_dict(), "info() must survive the way through JSON"
    assert task.info().to_dict() == info.to_dict(), "info() must be the same each time"
    assert info.name, "info().name is empty"
    assert info.models, "info().models names no trainer"
    assert all(info.models.values()), f"info().models: a trainer without models: {dict(info.models)}"
    assert info.inputs, "info().inputs names no input port"
    assert info.outputs, "info().outputs names no output port"
    assert info.metrics, "info().metrics names no metric"
    names = [port.name for port in info.inputs]
    assert len(set(names)) == len(names), f"input ports share a name: {names}"
    assert info.data_digest, "info().data_digest is empty: caches could not tell data sets apart"
    for port in (*info.inputs, *info.outputs):
        assert port.shape, f"port {port.name} has no axes"
        assert port.shape[0] == "batch", f"port {port.name} {port.shape}: the first axis must be 'batch'"
    for split, count in info.counts.items():
        if split in SPLITS:
            assert count == len(task.data(split)), (
                f"counts[{split!r}] is {count}, the split has {len(task.data(split))}"
            )


def _check_dataset(data: Dataset, info: TaskInfo, split: str) -> None:
    assert len(data) > 0, f"the {split} split is empty"
    assert isinstance(data.resident, bool), "resident must be True or False"
    rows = np.arange(_rows(data), dtype=np.int64)
    batch = data.batch(rows)
    assert set(batch.inputs) == {port.name for port in info.inputs}, (
        f"{split}: inputs {sorted(batch.inputs)}, ports {sorted(port.name for port in info.inputs)}"
    )
    _check_arrays(batch.inputs, info.inputs, len(rows), f"{split} inputs")
    again = data.batch(rows)
    assert all(np.array_equal(batch.inputs[name], again.inputs[name], equal_nan=True) for name in batch.inputs), (
        f"{split}: the same rows gave other inputs the second time; only with `epoch` may they differ"
    )
    lone = data.batch(rows[-1:])
    for port in info.inputs:
        if all(isinstance(axis, int) for axis in port.shape[1:]):
            assert np.array_equal(lone.inputs[port.name][0], batch.inputs[port.name][-1], equal_nan=True), (
                f"{split}: row {rows[-1]} alone differs from the same row in a batch"
            )
    turned = data.batch(rows[::-1])
    assert all(len(turned.inputs[name]) == len(rows) for name in turned.inputs), f"{split}: a batch lost rows"


def _check_arrays(arrays: Arrays, ports: tuple[Port, ...], rows: int, where: str) -> None:
    for port in ports:
        array = arrays[port.name]
        assert isinstance(array, np.ndarray), f"{where}: {port.name} is a {type(array).__name__}, not an array"
        assert str(array.dtype) == port.dtype, f"{where}: {port.name} is {array.dtype}, its port says {port.dtype}"
        expected = [rows, *port.shape[1:]]
        fits = len(array.shape) == len(expected) and all(
            isinstance(axis, str) or axis == size for axis, size in zip(expected, array.shape, strict=False)
        )
        assert fits, f"{where}: {port.name} is {list(array.shape)}, its port says {expected}"


def _run(runner: run.Runner, model: str, batch: Batch, info: TaskInfo) -> Arrays:
    """The model's outputs, checked with its loss."""
    outputs, again = runner.outputs(batch), runner.outputs(batch)
    assert set(outputs) == {port.name for port in info.outputs}, f"{model}: outputs {sorted(outputs)}"
    _check_arrays(outputs, info.outputs, len(batch), f"{model} outputs")
    for name, array in outputs.items():
        assert np.isfinite(np.asarray(array, np.float64)).all(), f"{model}: output {name} holds NaN or infinity"
        assert np.allclose(array, again[name], 1e-4, 1e-5), (
            f"{model}: two runs on the same batch differ in {name}; nothing may be random in eval mode"
        )
    if info.trains:
        loss, reached = runner.loss(batch)
        assert math.isfinite(loss), f"{model}: loss() gives {loss}"
        assert reached, f"{model}: the loss does not depend on any weight"
    return outputs


def _check_judging(task: Task, info: TaskInfo, outputs: Arrays, batch: Batch) -> None:
    scorer = task.scorer()
    scorer.add(outputs, batch)
    result = scorer.result()
    names = {metric.name for metric in info.metrics}
    assert names <= set(result), f"the scorer gives {sorted(result)}, the task's metrics are {sorted(names)}"
    for name in names:
        assert isinstance(result[name], float), f"metric {name} is a {type(result[name]).__name__}, not a float"
        assert math.isfinite(result[name]), f"metric {name} is {result[name]}"
    agreement = task.agreement(outputs, outputs)
    assert abs(agreement - 1.0) < 1e-6, f"outputs agree with themselves by {agreement}, not 1"


def _torch(program: Any, model: str, batch: Batch, info: TaskInfo) -> None:
    """What `trainers.pytorch.program.TorchProgram` promises beyond outputs and loss."""
    import torch

    network = program.build(model)
    assert not network.training, f"{model}: build() must give it in eval mode"
    if program.pretrained(model):
        twin = program.build(model).state_dict()
        same = all(torch.equal(value, twin[name]) for name, value in network.state_dict().items())
        assert same, f"{model}: pretrained, but two builds have different weights"
    names = dict(network.named_modules())
    assert set(program.keep(network)) <= set(names), f"{model}: keep() names modules that are not there"
    inputs = {port.name: torch.from_numpy(np.array(batch.inputs[port.name])) for port in info.inputs}
    moved = program.augment(inputs, torch.Generator().manual_seed(0))
    assert set(moved) == set(inputs), f"augment() gives {sorted(moved)}, the inputs are {sorted(inputs)}"
    if info.trains:
        raw = network(*inputs.values())
        outputs = dict(zip([port.name for port in info.outputs], raw if isinstance(raw, tuple) else [raw], strict=True))
        loss = program.loss(outputs, inputs, run.torch_targets(batch.targets))
        assert loss.dim() == 0, f"{model}: loss() gives a tensor of shape {list(loss.shape)}, not one number"


def _keras(program: Any, model: str, batch: Batch, info: TaskInfo) -> None:
    """What the Keras half promises beyond outputs and loss."""
    network = program.build(model)
    names = [layer.name for layer in network.layers]
    assert set(program.keep(network)) <= set(names), f"{model}: keep() names layers that are not there"


def _onnx(program: Any, model: str, batch: Batch, info: TaskInfo) -> None:
    """What the task of an ONNX file promises."""
    assert not info.trains, "an ONNX file cannot be trained: info().trains must be False"
    assert program.file(model).is_file(), f"{model}: file() names no file"


_FRAMEWORK: dict[str, Callable[[Any, str, Batch, TaskInfo], None]] = {
    "pytorch": _torch,
    "tensorflow": _keras,
    "onnx": _onnx,
}
