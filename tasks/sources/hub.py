"""`datasets:PATH_OR_NAME`: a Hugging Face dataset saved to disk, or by its name on the hub."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tasks.address import install
from tasks.base import SPLITS, TaskError
from tasks.images import ImageError, to_pixels
from tasks.samples import Samples
from tasks.sources import Opening, kept, reader, which
from tasks.sources.tables import LABEL_NAMES, Columns, Table, source_of
from tasks.splits import Source

BLOCK = 64


def open_source(opening: Opening, place: str, path: Path) -> Source:
    """The dataset's splits, as images where it holds images and the model takes them, else as a table."""
    parts = _parts(opening, place, path)
    train = parts["train"]
    kinds = {name: type(feature).__name__ for name, feature in train.features.items()}
    classes = {name: tuple(train.features[name].names) for name, kind in kinds.items() if kind == "ClassLabel"}
    read = {split: functools.partial(_columns, part) for split, part in parts.items()}
    found = {split: str(part._fingerprint) for split, part in parts.items()}
    table = Table(f"datasets:{Path(place).name}", tuple(kinds), read, found, classes)
    images = [name for name, kind in kinds.items() if kind == "Image"]
    return _images(opening, table, parts, images[0]) if images and opening.wants.image else source_of(opening, table)


def _parts(opening: Opening, place: str, path: Path) -> dict[str, Any]:
    """Split -> datasets.Dataset."""
    try:
        import datasets
    except ImportError:
        raise TaskError(f"task.data: datasets is not installed; run {install('text')}", "data") from None
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_from_disk(str(path)) if path.exists() else datasets.load_dataset(place)
    except Exception as error:  # of many kinds, by source and network
        reason = " ".join(str(error).split())
        where = "cannot be read" if path.exists() else "is no folder here, and the hub does not give it"
        raise TaskError(f"task.data: {place} {where}: {reason[:300]}", "data") from None
    if not hasattr(loaded, "keys"):
        return {"train": loaded}
    there = sorted(loaded.keys())
    named = {split: which(opening.spec, split, there, place) for split in SPLITS}
    if named["train"] is None:
        raise TaskError(f"{place}: has no training split; it has {', '.join(there)}; name it with task.train", "data")
    return {split: loaded[name] for split, name in named.items() if name is not None}


def _columns(part: Any) -> Columns:
    """Columns as arrays: text as objects, numbers as they are; nested ones are left out."""
    found = {}
    for name, feature in part.features.items():
        dtype = getattr(feature, "dtype", "")
        if dtype in ("string", "large_string"):
            found[name] = np.array(part[name][:], object)
        elif isinstance(dtype, str) and dtype.startswith(("int", "uint", "float", "bool")):
            found[name] = np.asarray(part.with_format("numpy")[name][:])
    return found


def _images(opening: Opening, table: Table, parts: dict[str, Any], column: str) -> Source:
    options = opening.wants.image
    assert options is not None
    label = table.column("task.label", opening.spec.label, LABEL_NAMES)
    if label not in table.classes:
        raise TaskError(f"{table.name}: column {label} has no class names (datasets.ClassLabel)", "data")
    source = Source(table.name, {}, table.classes[label], [], {"image": options.to_dict()})

    def read(split: str) -> Samples:
        key = opening.key(split, kind="images", found=table.found[split], column=column, decode=options.decoding())

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            part = parts[split]
            for start in range(0, len(part), BLOCK):
                block = part[start : start + BLOCK]
                try:
                    images = [to_pixels(image, options) for image in block[column]]
                except ImageError as error:
                    raise TaskError(f"{table.name}, {split}, rows from {start}: {error}", "data") from None
                yield np.stack(images), np.asarray(block[label], np.int64)
                opening.progress(f"decoding the {split} images", start / len(part))

        return kept(opening, key, batches, source)

    source.given = {split: reader(opening, split, functools.partial(read, split)) for split in parts}
    return source
