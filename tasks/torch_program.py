"""A user's PyTorch model as a TorchProgram: its call, its outputs, its loss. Only workers import this."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from tasks.address import nearest
from tasks.base import Arrays, Port, TaskError
from tasks.own import Parts, takes_targets
from tasks.ports import Form, form_of
from tasks.tree import Tree, filled, leaves, mapped, plain
from tasks.user_code import guarded

Tensors = Mapping[str, torch.Tensor]
IGNORED = (255, -1)  # labels that mean: no class
SHIFT = 1 / 16  # of an image's side, by which training moves it
LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cross_entropy": nn.functional.cross_entropy,
    "mse": nn.functional.mse_loss,
    "l1": nn.functional.l1_loss,
    "bce": nn.functional.binary_cross_entropy_with_logits,
}


class Subject(Protocol):
    """A model of the user's. `build` gives the module as they wrote it, with its weights, in eval mode."""

    name: str
    heads: tuple[str, ...]

    def build(self, model: str = "") -> nn.Module:
        """The module, new each time; the task's first one if none is named."""
        ...

    def pretrained(self, model: str = "") -> bool:
        """Whether it comes with trained weights."""
        ...


def arguments(model: nn.Module) -> list[str]:
    """Names of what the model's forward takes by position; [] where it takes any number."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def inputs_form(model: nn.Module, inputs: Tree) -> Form:
    """Names for the inputs: forward's own where it takes them one by one."""
    names = arguments(model)
    if isinstance(inputs, tuple) and len(inputs) <= len(names):
        return form_of(inputs, "input", names[: len(inputs)])
    return form_of(inputs, "input")


def call(model: nn.Module, inputs: Tree) -> Any:
    """The model on inputs in the user's structure: a tuple by position, a mapping by keywords where it takes those."""
    if isinstance(inputs, Mapping):
        parameters = inspect.signature(model.forward).parameters
        free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if free or all(name in parameters for name in inputs):
            return model(**inputs)
        return model(dict(inputs))
    if isinstance(inputs, tuple):
        names = arguments(model)
        return model(*inputs) if len(names) != 1 or len(inputs) == 1 else model(inputs)
    return model(inputs)


class Flat(nn.Module):
    """The user's model with tensors by position and a tuple (or one tensor) as result."""

    def __init__(self, model: nn.Module, inputs: Form) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def _run(self, tensors: Sequence[torch.Tensor]) -> Any:
        raw = call(self.model, self.inputs.nested(dict(zip(self.inputs.names, tensors, strict=True))))
        found = tuple(leaf for _, leaf in leaves(plain(raw)) if isinstance(leaf, torch.Tensor))
        return found[0] if len(found) == 1 else found


def flat_class(names: Sequence[str]) -> type[Flat]:
    """A Flat whose forward has one named parameter per tensor, as torch.export names and shapes them."""
    scope: dict[str, Any] = {}
    exec(f"def forward(self, {', '.join(names)}):\n    return self._run(({', '.join(names)},))\n", scope)
    return type("Flat", (Flat,), {"forward": scope["forward"]})


def is_flat(model: nn.Module, inputs: Tree, raw: Any) -> bool:
    """Whether the model itself takes tensors by position and returns a tensor or a tuple of tensors."""
    if isinstance(inputs, Mapping):
        return False
    if isinstance(inputs, tuple) and not (len(arguments(model)) >= len(inputs) and all(map(_leaf, inputs))):
        return False
    return isinstance(raw, torch.Tensor) or (isinstance(raw, tuple) and all(isinstance(v, torch.Tensor) for v in raw))


def _leaf(value: Any) -> bool:
    return not isinstance(value, Mapping | tuple | list)


class Program:
    """See `trainers.pytorch.program.TorchProgram`. `folder`: of the user's file, for their lines in messages."""

    def __init__(self, subject: Subject, inputs: Form, parts: Parts, loss: str, keep: Collection[str]) -> None:
        self.subject, self.inputs, self.parts = subject, inputs, parts
        self.loss_name, self.named = loss, tuple(keep)
        self.outputs: Form | None = None
        self.ports: tuple[Port, ...] = ()
        self.moves_images = False
        self._wraps: bool | None = None
        self._example: list[torch.Tensor] = []
        if parts.distill is not None:
            self.distill = self._distill
        if parts.optimizer is not None:
            self.optimizer = self._optimizer

    def probe(self, examples: Sequence[Arrays]) -> list[Arrays]:
        """The model's outputs on examples, by name; settles what the outputs are called and how the model is called."""
        model = self._user_model()
        self._kept(model)
        found: list[Arrays] = []
        for example in examples:
            tensors = {name: torch.as_tensor(np.ascontiguousarray(array)) for name, array in example.items()}
            nested = self.inputs.nested(tensors)
            doing = f"calling the model {self.subject.name} with {_shapes(example)}"
            with guarded("model", doing, self.parts.folder), torch.no_grad():
                raw = call(model, nested)
            tree = _tensors_only(plain(raw))
            if self.outputs is None:
                if not list(filled(tree)):
                    raise TaskError(f"the model {self.subject.name} returned {type(raw).__name__}, no tensor", "model")
                self.outputs = form_of(mapped(lambda _: None, tree), "output")
                self._wraps = not is_flat(model, nested, raw)
                self._example = list(tensors.values())
            found.append({n: leaf.numpy() for n, leaf in self.outputs.flat(tree).items()})
        return found

    def _user_model(self, name: str = "") -> nn.Module:
        with guarded("model", f"building {self.subject.name}", self.parts.folder):
            model = self.subject.build(name)
        if not isinstance(model, nn.Module):
            raise TaskError(f"{self.subject.name} is a {type(model).__name__}, not a torch.nn.Module", "model")
        return model.eval()

    def build(self, model: str) -> nn.Module:
        """See TorchProgram."""
        assert self._wraps is not None
        network = self._user_model(model)
        return flat_class(self.inputs.names)(network, self.inputs).eval() if self._wraps else network

    def pretrained(self, model: str) -> bool:
        """Whether `build` gives trained weights: the dense model is then taken as it is and not trained."""
        return self.subject.pretrained(model)

    def loss(self, outputs: Tensors, inputs: Tensors, targets: Any, label_smoothing: float = 0.0) -> torch.Tensor:
        """See TorchProgram: the user's loss, the one that the study names, or what the targets suggest."""
        if self.parts.loss is None:
            return self._usual(outputs, targets, label_smoothing)
        self._not_smoothed(label_smoothing)
        assert self.outputs is not None
        nested = self.outputs.nested(outputs)
        batch = targets if takes_targets(self.parts.loss) else self.batch(inputs, targets)
        value = self.parts.called("loss", nested, batch)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            shown = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise TaskError(f"loss() returned {shown}; return one number as a tensor, the mean over the batch", "loss")
        return value.reshape(())

    def batch(self, inputs: Tensors, targets: Any) -> Any:
        """A batch in the user's own structure."""
        nested = self.inputs.nested(inputs)
        return nested if targets is None else (nested, targets)

    def _not_smoothed(self, smoothing: float) -> None:
        if smoothing:
            raise TaskError(
                "finetuning.label_smoothing: only cross-entropy of the study's own knows it; write 0", "loss"
            )

    def _usual(self, outputs: Tensors, targets: Any, smoothing: float) -> torch.Tensor:
        port = next((port for port in self.ports if port.kind == "logits"), self.ports[0])
        output, target = outputs[port.name], next(leaf for _, leaf in leaves(targets))
        name = self.loss_name or ("cross_entropy" if port.kind == "logits" else "mse")
        if name == "cross_entropy":
            return _cross_entropy(output.movedim(port.axis, 1), target, smoothing)
        self._not_smoothed(smoothing)
        return LOSSES[name](output, target.to(output.dtype).reshape(output.shape))

    def keep(self, network: nn.Module) -> Collection[str]:
        """See TorchProgram: layers whose result is an output, layers of which nothing is trainable, and named ones."""
        prefix = "model." if self._wraps else ""
        found = {f"{prefix}{name}" for name in self.subject.heads} | set(self._heads(network)) | _frozen(network)
        return sorted(found | {f"{prefix}{name}" for name in self._kept(network, prefix)})

    def _kept(self, network: nn.Module, prefix: str = "") -> list[str]:
        """What the study and the file name, in the names of the user's own model; raises TaskError for unknown ones."""
        wanted = list(self.named)
        if self.parts.keep is not None:
            wanted += self.parts.called("keep") if callable(self.parts.keep) else self.parts.keep
        own = [name.removeprefix(prefix) for name, _ in network.named_modules() if name]
        for name in wanted:
            if name not in own:
                raise TaskError(f"task.keep: the model has no layer {name!r}{nearest(name, own)}", "model")
        return wanted

    def _heads(self, network: nn.Module) -> list[str]:
        """Modules whose result is itself an output of the network."""
        made: dict[int, tuple[str, Any]] = {}  # with the results themselves: the place of a freed one is used again
        hooks = [
            module.register_forward_hook(lambda _m, _i, out, name=name: made.__setitem__(id(out), (name, out)))
            for name, module in network.named_modules()
            if name and any(True for _ in module.parameters(recurse=False))
        ]
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        training = network.training
        try:
            with torch.no_grad():
                result = network.eval()(*(tensor.to(device) for tensor in self._example))
        finally:
            for hook in hooks:
                hook.remove()
            network.train(training)
        outputs = [result] if isinstance(result, torch.Tensor) else list(result)
        return [made[id(each)][0] for each in outputs if id(each) in made]

    def augments(self, stage: str, step: int) -> bool:
        """Every second batch where images are moved; always where the user augments."""
        return self.parts.augment is not None or (self.moves_images and step % 2 == 1)

    def augment(self, inputs: Tensors, generator: torch.Generator) -> Tensors:
        """See TorchProgram: the user's function, or images moved by up to a sixteenth of their side."""
        if self.parts.augment is not None:
            moved = self.parts.called("augment", self.inputs.nested(inputs), generator)
            return self.inputs.flat(plain(moved))
        return {name: _moved(tensor, generator) for name, tensor in inputs.items()} if self.moves_images else inputs

    def _optimizer(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        made = self.parts.called("optimizer", model, learning_rate)
        if not isinstance(made, torch.optim.Optimizer):
            shown = type(made).__name__
            raise TaskError(f"optimizer() returned {shown}; return a torch.optim.Optimizer of the model", "model")
        return made

    def _distill(self, student: Tensors, teacher: Tensors, how: Any) -> torch.Tensor:
        assert self.outputs is not None
        nested = (self.outputs.nested(student), self.outputs.nested(teacher), how)
        takes = len(inspect.signature(self.parts.distill).parameters)
        return self.parts.called("distill", *nested[:takes])


def _cross_entropy(output: torch.Tensor, target: torch.Tensor, smoothing: float) -> torch.Tensor:
    """`output`: [B, classes, ...]; `target`: classes [B, ...], of which IGNORED ones count for nothing, or one-hot."""
    if not target.is_floating_point():
        target = target.reshape(output.shape[0], *output.shape[2:])
        for label in IGNORED:
            if not 0 <= label < output.shape[1]:
                target = torch.where(target == label, -100, target)
    return nn.functional.cross_entropy(output, target, label_smoothing=smoothing)


def _moved(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The batch [B, C, H, W] moved by one random number of pixels in x and y; what comes in has the edge's value."""
    height, width = images.shape[-2:]
    most = max(1, round(SHIFT * min(height, width)))
    right, down = (int(n) for n in torch.randint(0, 2 * most + 1, (2,), generator=generator))
    padded = nn.functional.pad(images, (most, most, most, most), mode="replicate")
    return padded[..., down : down + height, right : right + width]


def _frozen(network: nn.Module) -> set[str]:
    """Layers that hold parameters of which none is trainable."""
    found = set()
    for name, module in network.named_modules():
        own = list(module.parameters(recurse=False))
        if name and own and not any(parameter.requires_grad for parameter in own):
            found.add(name)
    return found


def _tensors_only(tree: Tree) -> Tree:
    """The structure without leaves that are no tensors, such as a cache or a loss that is None."""
    if isinstance(tree, Mapping):
        parts = {key: _tensors_only(value) for key, value in tree.items()}
        return {key: value for key, value in parts.items() if value is not None}
    if isinstance(tree, tuple | list):
        return tuple(part for part in map(_tensors_only, tree) if part is not None)
    return tree if isinstance(tree, torch.Tensor) else None


def _shapes(example: Arrays) -> str:
    return ", ".join(
        f"{name} {array.dtype} {list(array.shape)}" for name, array in itertools.islice(example.items(), 6)
    )
