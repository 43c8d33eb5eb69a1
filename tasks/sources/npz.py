"""`npz:PATH`: NumPy arrays by the names of the model's inputs and a target; one file, or one per split in a folder."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tasks.address import nearest
from tasks.base import SPLITS, TaskError
from tasks.cache import sha256_of
from tasks.samples import Samples
from tasks.sources import NAMES, TARGETS, Opening, kept, reader, which
from tasks.sources.python import Pictures
from tasks.splits import Source
from tasks.tree import as_port, count

BLOCK = 1024  # samples written at a time

Named = dict[str, str]  # what an array is called in a split -> what it is called in the file


def open_source(opening: Opening, path: Path) -> Source:
    """Arrays as they are: inputs by name (a lone one without), a target where there is one."""
    if not path.exists():
        raise TaskError(f"{path}: is not there; correct task.data", "data")
    where = _in_folder(opening, path) if path.is_dir() else _in_file(path)
    names = set(next(iter(where.values()))[1])
    target = _target(opening, names, path)
    inputs = _inputs(opening, names - {target}, path)
    source = Source(f"npz:{path.name}", {}, held_out=0.1 if target else 0.375)
    for split, (file, named) in where.items():
        read = functools.partial(_read, opening, split, file, named, inputs, target, source)
        source.given = {**source.given, split: reader(opening, split, read)}
    return source


def _in_folder(opening: Opening, path: Path) -> dict[str, tuple[Path, Named]]:
    there = sorted(each.name for each in path.glob("*.npz"))
    stems = {Path(name).stem.lower(): name for name in there}
    found: dict[str, tuple[Path, Named]] = {}
    for split in SPLITS:
        named = which(opening.spec, split, there, str(path)) if getattr(opening.spec, split) else None
        file = named or next((stems[name] for name in NAMES[split] if name in stems), None)
        if file:
            found[split] = (path / file, {name: name for name in _names(path / file)})
    if "train" not in found:
        shown = ", ".join(there) or "no .npz file"
        raise TaskError(f"{path}: has no train.npz; it holds {shown}; name it with task.train", "data")
    return found


def _in_file(path: Path) -> dict[str, tuple[Path, Named]]:
    """One file: names such as `x_train` and `test_y` hold the splits, plain names the training split."""
    parts: dict[str, Named] = {}
    names = _names(path)
    for name in names:
        split, plain = _parted(name)
        parts.setdefault(split, {})[plain] = name
    if "train" in parts and "" not in parts:
        return {split: (path, named) for split, named in parts.items()}
    return {"train": (path, {name: name for name in names})}


def _parted(name: str) -> tuple[str, str]:
    for split, usual in NAMES.items():
        for word in usual:
            if match := re.fullmatch(rf"(?:{word}_(.+)|(.+)_{word})", name, re.IGNORECASE):
                return split, match[1] or match[2]
    return "", name


def _names(path: Path) -> list[str]:
    with _opened(path) as arrays:
        if not arrays.files:
            raise TaskError(f"{path}: holds no arrays", "data")
        return list(arrays.files)


def _opened(path: Path) -> Any:
    try:
        found = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise TaskError(f"{path}: is no .npz file: {' '.join(str(error).split())}", "data") from None
    if not hasattr(found, "files"):
        raise TaskError(f"{path}: holds one array and no names; write it with numpy.savez(FILE, x=..., y=...)", "data")
    return found


def _target(opening: Opening, names: set[str], path: Path) -> str:
    """The target's name; "" without one."""
    named = opening.spec.label
    if named and named not in names:
        raise TaskError(f"task.label: {path.name} has no array {named!r}{nearest(named, sorted(names))}", "data")
    free = {name.lower(): name for name in names - set(opening.wants.inputs)}
    return named or next((free[name] for name in TARGETS if name in free), "")


def _inputs(opening: Opening, names: set[str], path: Path) -> tuple[str, ...]:
    """The inputs' names, in the model's order where it knows them; a lone array needs no name."""
    wanted = opening.wants.inputs
    if wanted and set(wanted) <= names:
        return wanted
    if len(names) == 1 and len(wanted) <= 1:
        return tuple(names)
    if wanted:
        missing = ", ".join(name for name in wanted if name not in names)
        raise TaskError(f"{path.name}: has no array for the model's input {missing}; it has {sorted(names)}", "data")
    if not names:
        raise TaskError(f"{path.name}: has a target and no inputs", "data")
    return tuple(sorted(names))


def _read(
    opening: Opening, split: str, file: Path, named: Named, inputs: tuple[str, ...], target: str, source: Source
) -> Samples:
    missing = [name for name in (*inputs, target) if name and name not in named]
    if missing:
        raise TaskError(
            f"{file.name}: the {split} split has no array {', '.join(missing)}; it has {list(named)}", "data"
        )
    lone = len(inputs) == 1 and inputs != opening.wants.inputs

    def batches() -> Iterator[tuple[Any, np.ndarray | None]]:
        with _opened(file) as arrays:
            data = {name: _array(arrays, named[name], file) for name in inputs}
            targets = _array(arrays, named[target], file) if target else None
        size = count({**data, **({} if targets is None else {target: targets})}, file.name)
        for start in range(0, size, BLOCK):
            rows = slice(start, start + BLOCK)
            block = {name: array[rows] for name, array in data.items()}
            yield (
                Pictures(opening, source).many(block[inputs[0]]) if lone else block,
                None if targets is None else targets[rows],
            )
            opening.progress(f"reading the {split} arrays", start / size)

    image = opening.wants.image.decoding() if opening.wants.image else None
    found = {"file": sha256_of(file), "inputs": inputs, "lone": lone, "named": named, "target": target}
    key = opening.key(split, kind="npz", found=found, decode=image)
    return kept(opening, key, batches, source)


def _array(arrays: Any, name: str, file: Path) -> np.ndarray:
    try:
        return as_port(arrays[name], f"{file.name}, array {name}")
    except ValueError as error:
        raise TaskError(f"{file.name}, array {name}: {' '.join(str(error).split())}", "data") from None
