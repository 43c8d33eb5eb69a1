"""A user's structures of inputs and outputs <-> a model's ports by name. No framework is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.base import Port, TaskError
from tasks.tree import Tree, leaves, plain, rebuilt


@dataclass(frozen=True)
class Form:
    """A structure and the name of each of its leaves, in order."""

    tree: Tree
    names: tuple[str, ...]

    def flat(self, tree: Tree) -> dict[str, Any]:
        """Name -> leaf; raises TaskError when the structure is another."""
        found = [leaf for _, leaf in leaves(tree)]
        if len(found) != len(self.names):
            raise TaskError(f"{len(found)} arrays instead of {len(self.names)} ({', '.join(self.names)})", "model")
        return dict(zip(self.names, found, strict=True))

    def nested(self, flat: Mapping[str, Any]) -> Tree:
        """The user's structure again, mappings with attributes."""
        return plain(rebuilt(self.tree, iter(flat[name] for name in self.names)))


def form_of(tree: Tree, usual: str, known: Sequence[str] = ()) -> Form:
    """Names for the leaves of a structure: those `known` by position, else keys, else `usual` and a number."""
    paths = [path for path, _ in leaves(tree)]
    if len(paths) == len(known) and all(path.isdigit() or not path for path in paths):
        names = list(known)
    elif paths == [""]:
        names = [usual]
    else:
        names = [f"{usual}_{path}" if path.isdigit() else path for path in paths]
    names = [re.sub(r"\W", "_", name) for name in names]
    names = [f"{usual}_{name}" if name[:1].isdigit() else name for name in names]
    doubled = len(set(names)) < len(names)
    return Form(tree, tuple(f"{usual}_{i}" for i in range(len(names))) if doubled else tuple(names))


def ports(
    form: Form, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], free: Mapping[tuple[int, int], str]
) -> tuple[Port, ...]:
    """Ports by two examples that differ in batch size and in every free axis.

    `free`: (size in the first, size in the second) -> the axis' name, the batch among them. Raises TaskError where the
    first axis is not the batch.
    """
    made = []
    for name in form.names:
        a, b = first[name], second[name]
        if a.ndim != b.ndim:
            raise TaskError(f"{name} has {a.ndim} axes for some samples and {b.ndim} for others", "model")
        shape = tuple(_axis(name, sizes, index, free) for index, sizes in enumerate(zip(a.shape, b.shape, strict=True)))
        if not shape or shape[0] != "batch":
            batches = next((sizes for sizes, axis in free.items() if axis == "batch"), (0, 0))
            raise TaskError(
                f"the model's {name} has the shapes {list(a.shape)} and {list(b.shape)} for {batches[0]} and "
                f"{batches[1]} samples: its first axis must be the batch",
                "model",
            )
        made.append(Port(name, shape, str(a.dtype)))
    return tuple(made)


def _axis(name: str, sizes: tuple[int, int], index: int, free: Mapping[tuple[int, int], str]) -> int | str:
    if sizes[0] == sizes[1]:
        return sizes[0]
    found = free.get(sizes)
    return found if found is not None else f"{name}_{index}"


def free_axes(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> dict[tuple[int, int], str]:
    """(size in the first example, in the second) -> name, of axes in which samples differ: `batch`, `length`, …"""
    names = iter(("length", *(f"length_{i}" for i in range(2, 20))))
    found: dict[tuple[int, int], str] = {}
    for name in first:
        for index, sizes in enumerate(zip(first[name].shape, second[name].shape, strict=False)):
            if sizes[0] != sizes[1] and sizes not in found:
                found[sizes] = "batch" if index == 0 else next(names)
    return found


def kinds(
    outputs: Sequence[Port], first: Mapping[str, np.ndarray], targets: Tree | None, last: bool
) -> tuple[Port, ...]:
    """The output ports with `kind` and `axis`: scores per class where integer targets are places on one axis of them.

    `last`: whether classes are looked for on the last axis first, as Keras has them, else on axis 1.
    """
    wanted = [leaf for _, leaf in leaves(targets)] if targets is not None else []
    labels = [leaf for leaf in wanted if leaf.dtype.kind in "iu"]
    return tuple(_kind(port, first[port.name], labels, wanted, last) for port in outputs)


def _kind(port: Port, array: np.ndarray, labels: list[np.ndarray], wanted: list[np.ndarray], last: bool) -> Port:
    axes = [array.ndim - 1, 1] if last else [1, array.ndim - 1]
    for axis in dict.fromkeys(axis for axis in axes if 0 < axis < array.ndim):
        rest = (*array.shape[:axis], *array.shape[axis + 1 :])
        if array.shape[axis] > 1 and any(rest == label.shape or (*rest, 1) == label.shape for label in labels):
            return Port(port.name, port.shape, port.dtype, port.layout, "logits", axis)
    if array.ndim == 2 and array.shape[1] > 1 and any(_one_hot(each, array.shape) for each in wanted):
        return Port(port.name, port.shape, port.dtype, port.layout, "logits", 1)
    return port


def _one_hot(target: np.ndarray, shape: tuple[int, ...]) -> bool:
    if target.dtype.kind != "f" or target.shape != shape:
        return False
    return bool(((target == 0) | (target == 1)).all() and (target.sum(1) == 1).all())
