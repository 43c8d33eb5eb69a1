"""`csv:PATH` and `datasets:PATH`: tables with columns, as texts or as rows of numbers, whatever the model takes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tasks.address import nearest
from tasks.base import TaskError
from tasks.samples import Samples
from tasks.sources import Opening, class_targets, kept, reader
from tasks.sources.text import Texts, token_source
from tasks.splits import Source

TEXT_NAMES = ("text", "sentence", "review", "content", "document")
LABEL_NAMES = ("label", "labels", "target", "class", "y")
MOST_CLASSES = 1000  # distinct labels that are still taken for classes

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Table:
    """A table in splits. `read`: split -> its columns, arrays of text (object) or numbers; read when called.

    `found`: split -> a digest of what decides its contents. `classes`: label column -> names, where the source says.
    """

    name: str
    columns: tuple[str, ...]
    read: Mapping[str, Callable[[], Columns]]
    found: Mapping[str, str]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def column(self, where: str, name: str, usual: tuple[str, ...]) -> str:
        """The column that the study names, else one of a usual name; raises TaskError listing what there is."""
        if name:
            if name not in self.columns:
                raise TaskError(f"{where}: {self.name} has no column {name!r}{nearest(name, self.columns)}", "data")
            return name
        lower = {each.lower(): each for each in self.columns}
        chosen = next((lower[each] for each in usual if each in lower), None)
        if chosen is None:
            raise TaskError(f"{where}: missing; name one of the columns {', '.join(self.columns)}", "data")
        return chosen


def source_of(opening: Opening, table: Table) -> Source:
    """The table as the model takes it: texts where it takes text, else rows of numbers."""
    return _texts(opening, table) if opening.wants.text is not None else _rows(opening, table)


def _texts(opening: Opening, table: Table) -> Source:
    spec = opening.spec
    names = [table.column("task.text", each.strip(), TEXT_NAMES) for each in spec.text.split(",")]
    label = table.column("task.label", spec.label, LABEL_NAMES)
    notes = (
        [] if spec.text and spec.label else [f"{table.name}: column {', '.join(names)} is the text, {label} the label"]
    )
    classes, numbers = _classes(opening, table, label)
    cached = {split: functools.lru_cache(maxsize=1)(read) for split, read in table.read.items()}

    def read(split: str) -> tuple[Texts, np.ndarray]:
        columns = cached[split]()
        texts = tuple(_as_text(columns[name], f"{table.name}, column {name}") for name in names)
        return texts, _targets(columns[label], classes, numbers, f"{table.name}, {split}, column {label}")

    tables = {split: functools.partial(read, split) for split in table.read}
    return token_source(opening, table.name, tables, dict(table.found), classes, notes)


def _rows(opening: Opening, table: Table) -> Source:
    spec, wanted = opening.spec, opening.wants.inputs
    label = _label(table, spec.label)
    inputs = [name for name in table.columns if name != label]
    by_name = len(wanted) > 1 or (len(wanted) == 1 and wanted[0] in inputs)
    if by_name and set(wanted) <= set(inputs):
        inputs = list(wanted)
    else:
        by_name = False
    classes, numbers = _classes(opening, table, label) if label else ((), True)
    notes = [] if spec.label else [f"{table.name}: column {label} is the target"] if label else []
    columns = [{"name": name, "input": name} for name in inputs] if by_name else inputs
    source = Source(table.name, {}, classes, notes, {"columns": columns})

    def read(split: str) -> Samples:
        def batches() -> list[tuple[Any, np.ndarray | None]]:
            columns = table.read[split]()
            arrays = {name: _number(columns[name], f"{table.name}, {split}, column {name}") for name in inputs}
            where = f"{table.name}, {split}, column {label}"
            targets = _targets(columns[label], classes, numbers, where) if label else None
            matrix = np.stack([array.astype(np.float32) for array in arrays.values()], 1)
            return [(arrays if by_name else matrix, targets)]

        key = opening.key(split, kind="rows", found=table.found[split], inputs=inputs, by_name=by_name)
        return kept(opening, key, batches, source)

    source.given = {split: reader(opening, split, functools.partial(read, split)) for split in table.read}
    return source


def _label(table: Table, named: str) -> str:
    """The target's column; "" where the study names none and none has a usual name."""
    try:
        return table.column("task.label", named, LABEL_NAMES)
    except TaskError:
        if named:
            raise
        return ""


def _classes(opening: Opening, table: Table, label: str) -> tuple[tuple[str, ...], bool]:
    """The classes of the label column, in the model's order where it knows them; () and True for a quantity."""
    values = table.read["train"]()[label]
    if label in table.classes:
        return table.classes[label], False
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or (values != np.round(values)).any():
            if not np.isfinite(values).all():
                raise TaskError(f"{table.name}, column {label}: has rows without a value; fill or remove them", "data")
            return (), True
        values = values.astype(np.int64)
    distinct = sorted(set(values.tolist()), key=lambda v: (isinstance(v, str), v))
    if len(distinct) < 2:
        raise TaskError(
            f"{table.name}, column {label}: holds one value only, {distinct[0]!r}; a classifier needs two or more",
            "data",
        )
    if len(distinct) > MOST_CLASSES:
        if values.dtype != object:
            return (), True
        raise TaskError(
            f"{table.name}, column {label}: holds {len(distinct)} different texts; name a column of classes"
        )
    if values.dtype != object and distinct[0] >= 0 and distinct[-1] < max(2 * len(distinct), 10):
        distinct = list(range(int(distinct[-1]) + 1))  # numbers of classes, of which some may be missing here
    return _ordered(tuple(str(value) for value in distinct), opening.wants.labels, table.name), False


def _ordered(found: tuple[str, ...], known: tuple[str, ...], name: str) -> tuple[str, ...]:
    """The data's classes in the order in which the model was trained, where it names the same."""
    if not known or len(found) != len(known):
        return found
    lower = {each.lower(): each for each in found}
    if {each.lower() for each in known} == set(lower):
        return tuple(lower[each.lower()] for each in known)
    if all(each.isdigit() for each in found) or all(each.startswith("LABEL_") for each in known):
        return found
    raise TaskError(
        f"{name}: its labels {', '.join(found[:8])} are not those that the model was trained for "
        f"({', '.join(known[:8])}); rename them, or set id2label in the model's config.json",
        "data",
    )


def _targets(values: np.ndarray, classes: tuple[str, ...], numbers: bool, what: str) -> np.ndarray:
    if numbers:
        return _number(values, what).astype(np.float32)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise TaskError(f"{what}: row {int(np.flatnonzero(~np.isfinite(values))[0])} has no value", "data")
        values = values.astype(np.int64)
    if values.dtype.kind in "iub" and classes == tuple(str(i) for i in range(len(classes))):
        if values.min(initial=0) < 0 or values.max(initial=0) >= len(classes):
            raise TaskError(f"{what}: holds label {values.max()}, and the classes are 0 to {len(classes) - 1}", "data")
        return np.asarray(values, np.int64)
    if values.dtype.kind in "iub" and all(name.isidentifier() for name in classes):
        return np.asarray(values, np.int64)  # places in a list of names, as datasets keeps them
    return class_targets(values, classes, what)


def _number(values: np.ndarray, what: str) -> np.ndarray:
    if values.dtype.kind in "iub":
        return np.asarray(values, np.int64)
    if values.dtype.kind == "f":
        return np.asarray(values, np.float32)
    bad = next((value for value in values.tolist() if not isinstance(value, int | float)), None)
    raise TaskError(f"{what}: {bad!r} is not a number; encode the column as numbers, or remove it", "data")


def _as_text(values: np.ndarray, what: str) -> list[str]:
    missing = [row for row, value in enumerate(values.tolist()) if not isinstance(value, str)]
    if missing:
        shown = values[missing[0]]
        raise TaskError(f"{what}: row {missing[0]} holds {shown!r}, not text; correct task.text", "data")
    return [str(value) for value in values]
