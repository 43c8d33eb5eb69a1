"""Nested tuples, lists and mappings of arrays, as users' data and models give them: one set of functions for all."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tasks.base import TaskError

Tree = Any  # an array (of any framework), or a tuple, list or mapping of trees


class Fields(dict[str, Any]):
    """A mapping whose values are attributes too, as a model's outputs are written: `outputs.logits`."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"the outputs have no {name!r}; they have {', '.join(self)}")


def is_branch(value: Any) -> bool:
    """Whether the value is a structure and no leaf."""
    return isinstance(value, Mapping | tuple | list)


def plain(value: Any) -> Any:
    """A dataclass (a model's output) as a mapping without its empty fields; a mapping likewise; the rest as it is."""
    if isinstance(value, Mapping):
        return Fields({str(key): plain(each) for key, each in value.items() if each is not None})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((each.name, getattr(value, each.name)) for each in dataclasses.fields(value))
        return Fields({name: plain(each) for name, each in pairs if each is not None})
    if isinstance(value, tuple | list):
        return tuple(plain(each) for each in value if each is not None)
    return value


def mapped(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """The same structure with `function` of every leaf."""
    if isinstance(tree, Mapping):
        return type(tree)({key: mapped(function, value) for key, value in tree.items()})  # type: ignore[call-arg]
    if isinstance(tree, tuple | list):
        return tuple(mapped(function, value) for value in tree)
    return function(tree)


def leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) in order; the path of a lone leaf is "", of others such as `mask` or `0.boxes`."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, tuple | list):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{path}.{index}" if path else str(index))
    else:
        yield path, tree


def filled(tree: Tree) -> Iterator[tuple[str, Any]]:
    """The leaves that are not None, such as targets that are not there."""
    return ((path, leaf) for path, leaf in leaves(tree) if leaf is not None)


def rebuilt(tree: Tree, values: Iterator[Any]) -> Tree:
    """The structure of `tree` with the next of `values` in the place of every leaf."""
    return mapped(lambda _: next(values), tree)


def form(tree: Tree) -> Any:
    """The structure alone, as JSON takes it."""
    if isinstance(tree, Mapping):
        return {"keys": {str(key): form(value) for key, value in tree.items()}}
    if isinstance(tree, tuple | list):
        return [form(value) for value in tree]
    return None


def of_form(saved: Any) -> Tree:
    """What `form` gave -> a tree with None as leaves."""
    if isinstance(saved, Mapping):
        return {key: of_form(value) for key, value in saved["keys"].items()}
    return tuple(of_form(value) for value in saved) if isinstance(saved, list) else None


def to_numpy(value: Any, what: str) -> np.ndarray:
    """One leaf as an array: floats as float32, bool and 8-bit integers as they are, other integers as int64.

    Takes tensors of torch and TensorFlow, PIL images, numbers, text and lists of numbers. Raises TaskError for
    anything else, naming it as `what`.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) in ("torch.bfloat16", "torch.float16") else value
        array = value.numpy()
    elif hasattr(value, "numpy") and not isinstance(value, np.ndarray):
        array = np.asarray(value.numpy())
    else:
        array = _array(value, what)
    return as_port(array, what)


def _array(value: Any, what: str) -> np.ndarray:
    if getattr(value, "mode", "") == "P" and hasattr(value, "convert"):
        value = value.convert("RGB")  # a PIL image whose pixels are places in a palette
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise TaskError(f"{what} is a {type(value).__name__} that makes no array: {error}", "data") from None


def as_port(array: np.ndarray, what: str) -> np.ndarray:
    """The array in a dtype that models take; see `to_numpy`."""
    if array.dtype.kind == "f":
        return np.asarray(array, np.float32)
    if array.dtype.kind in "iu":
        return array if array.dtype.itemsize == 1 else np.asarray(array, np.int64)
    if array.dtype.kind == "b":
        return array
    if array.dtype.kind in "US" or (array.dtype == object and all(isinstance(v, str) for v in array.reshape(-1))):
        return np.asarray(array, object)
    shown = type(array.reshape(-1)[0]).__name__ if array.size else str(array.dtype)
    raise TaskError(f"{what} holds {shown} values; give numbers, tensors or text", "data")


def arrays(value: Any, what: str) -> Tree:
    """Any structure with every leaf as an array; a list of numbers is one leaf."""
    if isinstance(value, Mapping):
        return {str(key): arrays(each, f"{what} {key!r}") for key, each in value.items()}
    if isinstance(value, list) and _numeric(value):
        return to_numpy(value, what)
    if isinstance(value, tuple | list):
        return tuple(arrays(each, f"{what}[{index}]") for index, each in enumerate(value))
    if value is None:
        raise TaskError(f"{what} is None", "data")
    return to_numpy(value, what)


def _numeric(value: Sequence[Any]) -> bool:
    first = value[0] if value else 0.0
    return _numeric(first) if isinstance(first, list) else isinstance(first, numbers.Number | str | np.generic)


def stacked(samples: Sequence[Tree], what: str) -> Tree:
    """Equal structures -> one with a leading axis; raises TaskError naming the samples whose shapes differ."""
    first = samples[0]
    columns = [[leaf for _, leaf in leaves(sample)] for sample in samples]
    paths = [path for path, _ in leaves(first)]
    if any(form(sample) != form(first) for sample in samples[1:]):
        raise TaskError(f"{what}: the samples differ in structure; give every sample the same", "data")
    joined = []
    for index, path in enumerate(paths):
        parts = [column[index] for column in columns]
        shapes = {part.shape for part in parts}
        if len(shapes) > 1:
            named = f"{what} {path!r}" if path else what
            raise TaskError(
                f"{named}: the samples have different shapes, such as {', '.join(map(str, sorted(shapes)[:3]))}; bring "
                "them to one shape, or give a DataLoader whose collate_fn pads them",
                "data",
            )
        joined.append(np.stack(parts))
    return rebuilt(first, iter(joined))


def taken(tree: Tree, rows: np.ndarray) -> Tree:
    """Rows of every leaf."""
    return mapped(lambda leaf: np.asarray(leaf[rows]), tree)


def count(tree: Tree, what: str) -> int:
    """The length of the leading axis; raises TaskError when the leaves do not share it."""
    sizes = {path: len(leaf) if leaf.ndim else -1 for path, leaf in leaves(tree)}
    if len(set(sizes.values())) != 1 or -1 in sizes.values():
        shown = ", ".join(f"{path or 'it'}: {size if size >= 0 else 'a single number'}" for path, size in sizes.items())
        raise TaskError(f"{what}: the arrays have different lengths ({shown or 'none'})", "data")
    return next(iter(sizes.values()))


def integers(tree: Tree) -> Tree:
    """Targets as loss functions take them: 8-bit integers widened to int64."""
    return mapped(lambda leaf: leaf.astype(np.int64) if leaf.dtype.kind in "iu" else leaf, tree)
