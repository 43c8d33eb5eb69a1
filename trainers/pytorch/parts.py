"""A network as torch-pruning reads it: its dependency graph, of the whole or of the modules that can be read."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from trainers.pytorch.capture import Example
from trainers.pytorch.evaluate import evaluating
from trainers.pytorch.layers import LAYERS


class UnitError(Exception):
    """A unit that has to stay as it is; the message is the reason, in words. `outer`: it is an output or a head."""

    def __init__(self, reason: str, outer: bool = False) -> None:
        super().__init__(reason)
        self.outer = outer


def first_line(problem: Exception) -> str:
    """What an exception says, in one line."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0][:200]


class Part:
    """A network, or a module inside, with the dependency graph of what it does to `example`.

    `name`: of the module, "" for the network. Raises UnitError where torch-pruning cannot read it.
    """

    def __init__(self, name: str, module: nn.Module, example: Example) -> None:
        self.name, self.module, self.example = name, module, example
        self.graph: Any = None  # a tp.DependencyGraph while the network is read
        self.rebuild()

    def rebuild(self) -> None:
        """The dependency graph of the module as it is now."""
        frozen = [parameter for parameter in self.module.parameters() if not parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)  # the graph is read from autograd's
        try:
            with warnings.catch_warnings(), evaluating(self.module), torch.enable_grad():
                warnings.simplefilter("ignore")  # of parameters outside of known layers, which stay whole
                self.graph = tp.DependencyGraph().build_dependency(self.module, self.example, verbose=False)
        except Exception as problem:
            raise UnitError(f"torch-pruning cannot read the network: {first_line(problem)}") from problem
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)


def readable_parts(model: nn.Module, example: Example) -> list[Part]:
    """The network as one part, or where that cannot be read the largest modules inside that can.

    What lies between such modules stays whole, and so does what they give.
    """
    try:
        return [Part("", model, example)]
    except UnitError:
        given = inputs_of(model, example)
    found: list[Part] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{part.name}.") for part in found)
        if name in given and not inside and any(isinstance(each, LAYERS) for each in module.modules()):
            with contextlib.suppress(UnitError):
                found.append(Part(name, module, given[name]))
    return found


def inputs_of(model: nn.Module, example: Example) -> dict[str, Example]:
    """The inputs of every module inside that is called with tensors by position, in its first call."""
    given: dict[str, Example] = {}

    def watch(name: str) -> Callable[..., None]:
        def note(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            if name not in given and inputs and not named and all(isinstance(each, torch.Tensor) for each in inputs):
                given[name] = tuple(each.detach() for each in inputs)

        return note

    hooks = [
        module.register_forward_pre_hook(watch(name), with_kwargs=True)
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad(), evaluating(model):
            model(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return given
