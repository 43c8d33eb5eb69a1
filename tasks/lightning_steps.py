"""Running the steps of a LightningModule without a Trainer: what they call, and what they log."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks.base import TaskError
from tasks.tree import Tree, mapped
from tasks.user_code import guarded


class CalledError(Exception):
    """Ends training_step where it calls the network: what the network is called with."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.given, self.named = args, kwargs


def whole(inputs: Tree, targets: Tree | None) -> Tree:
    """The user's batch: the source may have parted it."""
    return inputs if targets is None else (inputs, targets)


def tensors(tree: Tree) -> Tree:
    """Arrays as tensors, without a copy where they are contiguous and may be written."""
    return mapped(lambda leaf: torch.as_tensor(np.require(leaf, requirements=["C", "W"])), tree)


def raise_called(*args: Any, **kwargs: Any) -> Any:
    """A forward that ends the step; see CalledError."""
    raise CalledError(args, kwargs)


def parameters(network: nn.Module) -> list[str]:
    """Names of what forward takes."""
    return list(inspect.signature(type(network).forward).parameters)[1:]


def run_step(step: Callable[..., Any], batch: Any) -> Any:
    """A step with as many arguments as it takes: (batch) or (batch, batch_idx)."""
    takes = [p for p in inspect.signature(step).parameters.values() if p.default is p.empty]
    return step(batch, 0) if len(takes) > 1 or len(inspect.signature(step).parameters) > 1 else step(batch)


def calls(module: Any, batch: Tree, folder: Path | None) -> dict[str, int]:
    """How often training_step calls each submodule that holds weights, by name; "" is the module itself."""
    counts: dict[str, int] = {}
    weighted = {name: each for name, each in module.named_modules() if any(True for _ in each.parameters())}
    hooks = [
        each.register_forward_pre_hook(lambda _m, _i, name=name: counts.__setitem__(name, counts.get(name, 0) + 1))
        for name, each in weighted.items()
    ]
    try:
        with quiet(module, {}), torch.no_grad(), guarded("loss", "training_step()", folder):
            run_step(module.training_step, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def only_child(called: Mapping[str, int], module: Any, name: str) -> str:
    """The one direct child that training_step calls, once; raises TaskError where there is none such."""
    children = {child: called[child] for child, _ in module.named_children() if child in called}
    if len(children) == 1 and next(iter(children.values())) == 1:
        return next(iter(children))
    found = ", ".join(f"self.{child} ({count} times)" for child, count in children.items()) or "no module of its own"
    raise TaskError(
        f"training_step() of {name} does not call self(...) but {found}; put these calls into forward() and call "
        "self(...) once",
        "model",
    )


@contextmanager
def quiet(module: Any, logged: dict[str, Any]) -> Iterator[None]:
    """Inside, `self.log` and `self.log_dict` write into `logged`, and Lightning does not warn of a missing trainer."""

    def log(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        logged[name] = value.detach() if isinstance(value, torch.Tensor) else value

    def log_dict(values: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        for name, value in values.items():
            log(name, value)

    module.__dict__["log"], module.__dict__["log_dict"] = log, log_dict
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        del module.__dict__["log"], module.__dict__["log_dict"]


def the_optimizer(configured: Any) -> torch.optim.Optimizer:
    """The one in what configure_optimizers() returned, in any of Lightning's forms; its schedulers are not used."""
    found = configured
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], tuple | list):
        found = found[0]  # optimizers, schedulers
    if isinstance(found, tuple | list) and len(found) == 1:
        found = found[0]
    if isinstance(found, Mapping):
        found = found.get("optimizer")
    if not isinstance(found, torch.optim.Optimizer):
        several = f"{len(found)} optimizers" if isinstance(found, tuple | list) else type(found).__name__
        raise TaskError(f"configure_optimizers() returned {several}; return one torch.optim.Optimizer", "model")
    return found


def overridden(module: Any, name: str) -> bool:
    """Whether the user's class defines the method that Lightning leaves empty."""
    owner = next((each for each in type(module).__mro__ if name in vars(each)), None)
    return owner is not None and not owner.__module__.startswith(("lightning.", "pytorch_lightning."))


def hook(module: Any, name: str, folder: Path | None) -> None:
    """Run a method of the user's that Lightning would have called, if they have it."""
    if overridden(module, name):
        with guarded("metric", f"{name}()", folder):
            getattr(module, name)()
