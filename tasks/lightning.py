"""A LightningModule with a LightningDataModule: `training_step` is the loss, `validation_step` logs the metric.

The network is the module's own forward or, where `training_step` calls a child instead, that child. To compute the
loss, `training_step` runs with the network replaced by one that returns the outputs already computed by the network
under compression. Only workers import this.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks import weights
from tasks.address import located
from tasks.base import ACCURACY, Metric, Scorer, Task, TaskError
from tasks.bench import Bench, instance
from tasks.describe import own_metric
from tasks.lightning_scorer import LoggedScorer
from tasks.lightning_steps import (
    CalledError,
    calls,
    only_child,
    parameters,
    quiet,
    raise_called,
    run_step,
    tensors,
    the_optimizer,
    whole,
)
from tasks.ports import Form
from tasks.sources import Wants
from tasks.torch_half import TorchHalf
from tasks.torch_program import Program, Tensors
from tasks.tree import Tree, leaves, mapped
from tasks.user_code import guarded


class LightningSubject:
    """The network inside a LightningModule. See `tasks.torch_program.Subject`."""

    heads: tuple[str, ...] = ()

    def __init__(self, bench: Bench, name: str, factory: Callable[[], Any], folder: Path | None) -> None:
        self.spec, self.name, self.factory, self.folder = bench.spec, name, factory, folder
        self.child = ""  # the child that is the network; "" for the module itself
        self.notes: list[str] = []

    def module(self) -> Any:
        """The whole LightningModule, new, with its weights; it has no trainer."""
        if inspect.isclass(self.factory) and self.spec.weights:
            made = instance(functools.partial(self.factory, **self._hyperparameters()), self.name, self.folder)
        else:
            made = instance(self.factory, self.name, self.folder)
        if self.spec.weights:
            weights.fit(made, located(self.spec, self.spec.weights))
        return made.eval()

    def _hyperparameters(self) -> dict[str, Any]:
        """What the checkpoint says the module was made with, as far as its constructor takes it."""
        path = located(self.spec, self.spec.weights)
        if path.suffix == ".safetensors":
            return {}
        try:
            found = torch.load(path, map_location="cpu", weights_only=True).get("hyper_parameters", {})
        except Exception:  # what is wrong with the file is told when the weights are read
            return {}
        known = inspect.signature(self.factory).parameters
        return {name: value for name, value in dict(found).items() if name in known}

    def build(self, model: str = "") -> nn.Module:
        """The module, new each time; the task's first one if none is named."""
        module = self.module()
        return module.get_submodule(self.child) if self.child else module

    def pretrained(self, model: str = "") -> bool:
        """Whether it comes with trained weights."""
        return bool(self.spec.weights)


def lightning_task(bench: Bench, factories: Mapping[str, Callable[[], Any]]) -> Task:
    """The LightningModule with its data: of a LightningDataModule, or of any other source."""
    name, factory = next(iter(factories.items()))
    folder = bench.model.path(bench.spec).parent if bench.model.kind == "file" else None
    subject = LightningSubject(bench, name, factory, folder)
    if not hasattr(subject.module(), "training_step") and bench.parts.loss is None:
        raise TaskError(f"{name} has no training_step(); it is the loss", "loss")
    splits = bench.open(Wants(whole=True))
    half = LightningHalf(bench, subject)
    half.recognise(splits.open("train").take(np.arange(2)))
    return bench.task(name, half, splits)


class LightningHalf(TorchHalf):
    """See `tasks.composed.Half`. A batch's targets are the user's whole batch, as training_step takes it."""

    def __init__(self, bench: Bench, subject: LightningSubject) -> None:
        super().__init__(bench.spec, subject, bench.parts, subject.notes)
        self.lightning, self.name, self.folder = subject, subject.name, bench.parts.folder or subject.folder
        self.notes = subject.notes
        self._template, self._losses = subject.module(), subject.module()
        self._lock = threading.RLock()
        self._path: str | None = None  # where in the batch the network's input lies, if it is taken as it is

    def recognise(self, pair: tuple[Tree, Tree | None]) -> None:
        """Run training_step once to learn which module is the network and what it is called with."""
        batch = tensors(whole(*pair))
        module = self._template
        called = calls(module, batch, self.folder)
        own = called.get("", 0)
        if own > 1:
            raise TaskError(
                f"training_step() of {self.lightning.name} calls self(...) {own} times; call it once per batch, or put "
                "the calls into forward()",
                "model",
            )
        if not own:
            self.lightning.child = only_child(called, module, self.lightning.name)
            self.notes.append(
                f"{self.lightning.name}: training_step() calls self.{self.lightning.child}, not self(...): that child "
                "is the network that is compressed"
            )
        given = self._captured(batch)
        found = list(leaves(given))
        if len(found) == 1:
            lone = found[0][1]
            self._path = next((path for path, leaf in leaves(batch) if leaf is lone), None)

    def _captured(self, batch: Tree) -> Tree:
        """What the network is called with in training_step: one tensor, a tuple or a mapping."""
        module = copy.copy(self._template)
        with self._replaced(module, raise_called), quiet(module, {}):
            try:
                with guarded("loss", "training_step()", self.folder):
                    run_step(module.training_step, batch)
            except TaskError as error:
                if isinstance(error.__cause__, CalledError):
                    args, kwargs = error.__cause__.given, error.__cause__.named
                    if kwargs:
                        names = parameters(self.lightning.build())
                        return {**dict(zip(names, args, strict=False)), **kwargs}
                    return args[0] if len(args) == 1 else args
                raise
        raise TaskError(f"training_step() of {self.lightning.name} does not call its network for every batch", "model")

    @contextmanager
    def _replaced(self, module: Any, forward: Callable[..., Any]) -> Iterator[None]:
        """The network of `module` with another forward, inside."""
        network = module.get_submodule(self.lightning.child) if self.lightning.child else module
        with self._lock:  # batches may be fetched by other threads meanwhile
            network.__dict__["forward"] = forward
            try:
                yield
            finally:
                del network.__dict__["forward"]

    def adapt(self, inputs: Tree, targets: Tree | None) -> tuple[Tree, Tree | None]:
        """See Half: the network's input out of the batch, and the batch itself."""
        batch = whole(inputs, targets)
        if self._path is not None:
            return dict(leaves(batch))[self._path], batch
        with torch.no_grad():
            given = self._captured(tensors(batch))
        return mapped(lambda leaf: leaf.detach().numpy() if isinstance(leaf, torch.Tensor) else leaf, given), batch

    def make(self, form: Form) -> Program:
        """The program, once the inputs have names."""
        return LightningProgram(self, form)

    def step(self, name: str, outputs: Any, batch: Any, logged: dict[str, Any], module: Any = None) -> Any:
        """Run a step of the module with the network's outputs given; what it logs is put into `logged`."""
        module = module or self._losses
        step = "loss" if name == "training_step" else "metric"
        with (
            self._replaced(module, lambda *args, **kwargs: outputs),
            quiet(module, logged),
            guarded(step, f"{name}()", self.folder),
        ):
            return run_step(getattr(module, name), batch)

    def place(self, device: torch.device) -> None:
        """Bring what training_step needs beside the network to where the outputs are."""
        self._losses.to(device)

    def metrics(self, outputs: tuple[Any, ...], classified: bool) -> tuple[Metric, ...]:
        """See Half: what the study names, as validation_step or test_step logs it."""
        if self.spec.metric:
            return (own_metric(self.spec, self.spec.metric),)
        return (ACCURACY,) if classified else ()

    def scorer(self, metrics: tuple[Metric, ...]) -> Scorer | None:
        """The half's own scorer; None for the usual ones."""
        return LoggedScorer(self, metrics) if self.spec.metric else None

    def fresh(self) -> Any:
        """The module again, for a scorer of its own: its metrics start empty."""
        return self.lightning.module()


class LightningProgram(Program):
    """See `trainers.pytorch.program.TorchProgram`: training_step is the loss."""

    def __init__(self, half: LightningHalf, form: Form) -> None:
        super().__init__(half.lightning, form, half.parts, half.spec.loss, half.spec.keep)
        self.half = half
        if half.spec.optimizer == "configure_optimizers":
            self.optimizer = self._configured

    def _configured(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """What the module configures for the network under compression; its largest learning rate is the recipe's."""
        module, child = copy.copy(self.half.fresh()), self.half.lightning.child
        if child:
            module.set_submodule(child, model)
        else:
            module.__dict__.update(_modules=model._modules, _parameters=model._parameters, _buffers=model._buffers)
        with quiet(module, {}), guarded("model", "configure_optimizers()", self.half.folder):
            found = the_optimizer(module.configure_optimizers())
        largest = max(group["lr"] for group in found.param_groups)
        for group in found.param_groups:
            group["lr"] *= learning_rate / largest if largest else 1.0
        return found

    def loss(self, outputs: Tensors, inputs: Tensors, targets: Any, label_smoothing: float = 0.0) -> torch.Tensor:
        """Scalar, mean over the batch."""
        if self.parts.loss is not None or self.half.spec.loss:
            return super().loss(outputs, inputs, targets, label_smoothing)
        assert self.outputs is not None
        self._not_smoothed(label_smoothing)
        self.half.place(next(iter(outputs.values())).device)
        value = self.half.step("training_step", self.outputs.nested(outputs), targets, {})
        value = value.get("loss") if isinstance(value, Mapping) else value
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            shown = "None" if value is None else type(value).__name__
            raise TaskError(f"training_step() returned {shown}; return the loss, one number as a tensor", "loss")
        return value.reshape(())
