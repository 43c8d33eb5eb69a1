"""`FILE.py:data`: what the user's function gives for a split, in any of the forms that people have."""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks import store
from tasks.base import SPLITS, TaskError
from tasks.images import ImageError, is_picture, of_array
from tasks.samples import MapSamples, Samples, content, parted, same, unparted
from tasks.sources import NAMES, Opening, kept, reader
from tasks.sources.data_module import Later, is_data_module, module_splits
from tasks.sources.text import Texts, token_source
from tasks.splits import Source
from tasks.tree import Tree, count, filled, leaves, stacked, taken
from tasks.user_code import guarded, ticking

BLOCK = 64  # samples read and written at a time
LOOKED = 16  # samples by which an iterable is recognised


def open_source(opening: Opening, data: Any, name: str, folder: Path | None, code: str) -> Source:
    """The splits that `data` gives: a function of the split, or of nothing for all; or the training split itself.

    `code`: a digest of the user's files, part of every cache key.
    """
    values = _values(opening, data, name, folder)
    source = Source(name, {}, held_out=0.1)
    if opening.wants.text is not None:
        return _texts(opening, values, name, folder, code)
    for split, value in values.items():
        read = functools.partial(read_split, opening, split, value, source, folder, code)
        source.given = {**source.given, split: reader(opening, split, read)}
    return source


def _values(opening: Opening, data: Any, name: str, folder: Path | None) -> dict[str, Any]:
    """Split -> what the user's code gives for it; splits for which it gives None are left out."""
    if is_data_module(data):
        return module_splits(opening, data, name, folder)
    if not callable(data) or hasattr(data, "__getitem__"):
        values = {"train": data} if not _is_splits(data) else dict(data)
    elif _takes_split(data):
        values = {split: _call(opening, data, split, name, folder) for split in SPLITS}
    else:
        with guarded("data", f"calling {name}()", folder), ticking(opening.progress, f"{name}()"):
            given = data()
        if is_data_module(given):
            return module_splits(opening, given, name, folder)
        values = dict(given) if _is_splits(given) else {"train": given}
    found = {split: values[word] for split in SPLITS for word in NAMES[split] if values.get(word) is not None}
    if "train" not in found:
        shown = ", ".join(found) or "nothing"
        raise TaskError(f"{name} gives no training split, only {shown}; return samples for 'train'", "data")
    return found


def _is_splits(value: Any) -> bool:
    return isinstance(value, Mapping) and any(word in value for word in NAMES["train"])


def _takes_split(function: Callable[..., Any]) -> bool:
    try:
        return bool(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return True


def _call(opening: Opening, function: Callable[..., Any], split: str, name: str, folder: Path | None) -> Any:
    doing = f"{name}({split!r})"
    with guarded("data", f"calling {doing}", folder), ticking(opening.progress, doing):
        return function(split)


def read_split(opening: Opening, split: str, value: Any, source: Source, folder: Path | None, code: str) -> Samples:
    """Whatever the user gave, as samples: decoded once where it repeats itself, else read when asked.

    Map-style datasets, lists of samples, DataLoaders, `(inputs, targets)` and mappings of arrays, tf.data, iterables.
    """
    what = f"{source.name}({split!r})"
    value, collate = _loader(value.open() if isinstance(value, Later) else value)
    if _is_dataset(value):
        samples = MapSamples(value, what, folder, collate)
        samples.convert, samples.part = Pictures(opening, source).one, _part(opening)
        if not len(samples):
            raise TaskError(f"{what}: has no samples", "data")
        return _of_dataset(opening, split, samples, source, code)
    if isinstance(value, Mapping | tuple) or hasattr(value, "__array__"):
        return _of_arrays(opening, split, value, source, what)
    if isinstance(value, Iterable):
        return _of_iterable(opening, split, value, source, what, folder, code)
    raise TaskError(
        f"{what} is a {type(value).__name__}; return a dataset with __len__ and __getitem__, (inputs, targets) arrays, "
        "a DataLoader, a tf.data.Dataset or an iterable of (inputs, target)",
        "data",
    )


def _loader(value: Any) -> tuple[Any, Callable[[list[Any]], Any] | None]:
    """A DataLoader's dataset and what makes its batches, where the dataset can be read by row; else the value."""
    if type(value).__name__.endswith("DataLoader") and hasattr(value, "collate_fn") and _is_dataset(value.dataset):
        if value.batch_size is None and value.batch_sampler is None:
            return value, None  # its dataset gives batches: they are iterated
        default = getattr(value.collate_fn, "__name__", "") == "default_collate"
        return value.dataset, None if default else value.collate_fn
    return value, None


def _is_dataset(value: Any) -> bool:
    if isinstance(value, Mapping | tuple) or hasattr(value, "__array__") or hasattr(value, "element_spec"):
        return False
    return hasattr(value, "__getitem__") and hasattr(value, "__len__")


def _of_dataset(opening: Opening, split: str, samples: MapSamples, source: Source, code: str) -> Samples:
    if samples.probe():
        if split != "train":
            raise TaskError(
                f"{samples.what}: two readings of the same samples differ: its transforms are random; make them "
                "deterministic for every split but train",
                "data",
            )
        source.notes.append(f"{samples.what} augments: its samples are read again in every epoch")
        return samples
    if (samples.collate is not None and not _even(samples)) or not _fits(opening, samples):
        source.notes.append(f"{samples.what}: its samples are read when they are needed (not decoded once)")
        return samples

    def batches() -> Iterator[tuple[Tree, Tree | None]]:
        for start in range(0, len(samples), BLOCK):
            yield samples.take(np.arange(start, min(start + BLOCK, len(samples))))
            opening.progress(f"reading {samples.what}", start / len(samples))

    key = _key(opening, split, f"{code} {samples.digest()}")
    return kept(opening, key, batches, source, samples.what)


def _key(opening: Opening, split: str, found: str) -> dict[str, Any]:
    image = opening.wants.image
    return opening.key(split, kind="python", found=found, decode=image.decoding() if image else None)


def _even(samples: MapSamples) -> bool:
    """Whether a few batches have one shape but for the batch."""
    shapes = set()
    for start in np.linspace(0, max(0, len(samples) - 4), 4).astype(int):
        pair = samples.take(np.arange(start, min(start + 4, len(samples))))
        shapes.add(tuple(leaf.shape[1:] for _, leaf in filled(pair)))
    return len(shapes) == 1


def _fits(opening: Opening, samples: MapSamples) -> bool:
    pair = samples.take(np.arange(1))
    return store.fits(opening.home, len(samples) * sum(leaf.nbytes for _, leaf in filled(pair)))


def _of_arrays(opening: Opening, split: str, value: Any, source: Source, what: str) -> Samples:
    inputs, targets = _part(opening)(value, what)
    pair = inputs if targets is None else (inputs, targets)
    size = count(pair, what)
    digest = hashlib.sha256()
    for path, leaf in leaves(pair):
        digest.update(path.encode() + str(leaf.shape).encode() + content(leaf))

    def batches() -> Iterator[tuple[Tree, Tree | None]]:
        for start in range(0, size, BLOCK):
            rows = np.arange(start, min(start + BLOCK, size))
            block = Pictures(opening, source).many(taken(inputs, rows))
            yield block, None if targets is None else taken(targets, rows)

    key = _key(opening, split, digest.hexdigest())
    return kept(opening, key, batches, source, what)


def _of_iterable(
    opening: Opening, split: str, value: Any, source: Source, what: str, folder: Path | None, code: str
) -> Samples:
    """One pass over an iterable, kept; `value` may be a DataLoader or tf.data, whose elements are batches."""
    batched = hasattr(value, "collate_fn") or _tf_batched(value, opening)
    iterator, part = iter(value), _part(opening)
    first = list(itertools.islice(_elements(iterator, what, folder, part), LOOKED))
    if not first:
        raise TaskError(f"{what}: gives no samples", "data")
    found = code
    if iterator is value:  # a generator: there is no second pass
        found += _digest(first)
    else:
        again = list(itertools.islice(_elements(iter(value), what, folder, part), LOOKED))
        if _equal(first, again):
            found += _digest(first)
        elif split != "train":
            raise TaskError(f"{what}: two passes over it differ; remove shuffling and random transforms", "data")
        else:
            source.notes.append(f"{what} shuffles or augments: one pass over it is kept and used in every epoch")

    def batches() -> Iterator[tuple[Tree, Tree | None]]:
        elements = itertools.chain(first, _elements(iterator, what, folder, part))
        done, pictures = 0, Pictures(opening, source)
        for block in ([element] for element in elements) if batched else _blocks(elements):
            if batched:
                inputs, targets = pictures.many(block[0][0]), block[0][1]
            else:
                inputs, targets = _joined([(pictures.one(each), target) for each, target in block], what)
            done += len(next(leaf for _, leaf in leaves(inputs)))
            yield inputs, targets
            opening.progress(f"reading {what}: {done} samples", 0.0)

    key = _key(opening, split, found)
    return kept(opening, key, batches, source, what)


def _part(opening: Opening) -> Callable[[Any, str], tuple[Tree, Tree | None]]:
    return unparted if opening.wants.whole else parted


def _tf_batched(value: Any, opening: Opening) -> bool:
    """Whether a tf.data.Dataset gives batches: by the model's number of axes, else by an open first axis."""
    spec = getattr(value, "element_spec", None)
    if spec is None:
        return False
    while isinstance(spec, Mapping | tuple | list):
        spec = next(iter(spec.values())) if isinstance(spec, Mapping) else spec[0]
    rank = spec.shape.rank
    if opening.wants.ranks and rank is not None:
        return bool(rank == opening.wants.ranks[0])
    return bool(rank and spec.shape[0] is None)


def _elements(
    iterator: Iterator[Any], what: str, folder: Path | None, part: Callable[[Any, str], Any] = parted
) -> Iterator[tuple[Tree, Tree | None]]:
    while True:
        with guarded("data", f"reading {what}", folder):
            try:
                element = next(iterator)
            except StopIteration:
                return
        yield part(element, what)


def _blocks(elements: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(elements)
    while block := list(itertools.islice(iterator, BLOCK)):
        yield block


def _joined(block: list[tuple[Tree, Tree | None]], what: str) -> tuple[Tree, Tree | None]:
    inputs = stacked([pair[0] for pair in block], f"{what}: inputs")
    return inputs, None if block[0][1] is None else stacked([pair[1] for pair in block], f"{what}: targets")


def _digest(elements: list[Any]) -> str:
    digest = hashlib.sha256()
    for element in elements:
        for path, leaf in filled(element):
            digest.update(path.encode() + content(leaf))
    return digest.hexdigest()[:16]


def _equal(first: list[Any], again: list[Any]) -> bool:
    a, b = list(filled(tuple(first))), list(filled(tuple(again)))
    return len(a) == len(b) and all(x[0] == y[0] and same(x[1], y[1]) for x, y in zip(a, b, strict=True))


@dataclass(frozen=True)
class Pictures:
    """Raw pixels as the model's image options want them; whatever else a user gives is taken as it is."""

    opening: Opening
    source: Source

    def one(self, inputs: Tree) -> Tree:
        """uint8 [H, W] or [H, W, 1 | 3 | 4] -> uint8 [channels, H, W] of one sample."""
        options = self.opening.wants.image
        if options is None or not isinstance(inputs, np.ndarray) or not is_picture(inputs):
            return inputs
        self.source.facts["image"] = options.to_dict()
        try:
            return of_array(inputs, options)
        except ImageError as error:
            raise TaskError(f"{self.source.name}: {error}", "data") from None

    def many(self, inputs: Tree) -> Tree:
        """The same of samples with a leading axis."""
        if self.opening.wants.image is None or not isinstance(inputs, np.ndarray) or not is_picture(inputs[0]):
            return inputs
        return np.stack([self.one(array) for array in inputs])


def _texts(opening: Opening, values: Mapping[str, Any], name: str, folder: Path | None, code: str) -> Source:
    """Splits of (text, label) samples, or of (texts, labels)."""

    def read(split: str) -> tuple[Texts, np.ndarray | None]:
        what = f"{name}({split!r})"
        value = values[split]
        value, _ = _loader(value.open() if isinstance(value, Later) else value)
        if isinstance(value, tuple | Mapping):
            pairs = [parted(value, what)]
        else:
            pairs = [_joined(block, what) for block in _blocks(_rows(value, what, folder))]
        texts = [str(text) for inputs, _ in pairs for _, leaf in leaves(inputs) for text in leaf]
        labels = [label for _, targets in pairs if targets is not None for label in targets]
        return (texts,), np.asarray(labels) if labels else None

    tables = {split: functools.partial(read, split) for split in values}
    return token_source(opening, name, tables, {split: f"{code} {split}" for split in values}, (), [])


def _rows(value: Any, what: str, folder: Path | None) -> Iterator[tuple[Tree, Tree | None]]:
    iterator = (value[i] for i in range(len(value))) if _is_dataset(value) else iter(value)
    return _elements(iterator, what, folder)
