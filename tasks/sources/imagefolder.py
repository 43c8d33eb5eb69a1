"""`imagefolder:PATH`: one folder per class, below train, val and test or at once; decoded once into the cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks import store
from tasks.base import SPLITS, TaskError
from tasks.images import SUFFIXES, ImageError, ImageOptions, decode
from tasks.samples import Samples
from tasks.sources import Opening, kept, reader, which
from tasks.splits import Source

BLOCK = 64  # images between two lines of progress
SHOWN = 8  # of what is wrong
LOOKED_AT = 9  # images, for their size


@dataclass(frozen=True)
class Listing:
    """The images of one split: (class folder, file), by name."""

    files: tuple[tuple[str, Path], ...]
    empty: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class folders that hold images, by name."""
        return tuple(sorted({label for label, _ in self.files}))

    def digest(self) -> str:
        """Over names, sizes and times: a changed file is decoded again."""
        digest = hashlib.sha256()
        for label, path in self.files:
            status = path.stat()
            digest.update(f"{label}/{path.name}/{status.st_size}/{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]


def open_source(opening: Opening, path: Path) -> Source:
    """The folder's splits, with int64 labels [N] and uint8 images [N, channels, H, W]; see `tasks.images`."""
    options = opening.wants.image
    if options is None:
        raise TaskError("task.data: imagefolder: is for models that take images", "data")
    if not path.is_dir():
        raise TaskError(f"{path}: is {'no folder' if path.exists() else 'not there'}; correct task.data", "data")
    folders = _splits(opening, path)
    listed = {split: _listed(folder) for split, folder in folders.items()}
    classes = _classes(listed, folders)
    source = Source(
        f"imagefolder:{path.name}",
        {},
        classes,
        [*_notes(listed), *_enlarged(listed["train"], options)],
        {"image": options.to_dict()},
    )
    for split, listing in listed.items():

        def read(split: str = split, listing: Listing = listing) -> Samples:
            return _decoded(opening, split, listing, source)

        source.given = {**source.given, split: reader(opening, split, read)}
    return source


def _splits(opening: Opening, path: Path) -> dict[str, Path]:
    """Split -> its folder of class folders; a folder that holds no splits is the training split."""
    there = sorted(each.name for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    found = {split: which(opening.spec, split, there, str(path)) for split in SPLITS}
    if found["train"] is None:
        if any(found.values()):
            named = ", ".join(filter(None, found.values()))
            raise TaskError(
                f"{path}: holds {named} and no train folder; it holds {', '.join(there)}; name it with task.train",
                "data",
            )
        return {"train": path}
    return {split: path / name for split, name in found.items() if name is not None}


def _listed(folder: Path) -> Listing:
    folders = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    files: list[tuple[str, Path]] = []
    empty = []
    for each in folders:
        inside = [Path(root) / name for root, _, names in os.walk(each) for name in names]
        images = sorted(f for f in inside if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
        files += [(each.name, image) for image in images]
        empty += [] if images else [each.name]
    if not files:
        raise TaskError(f"{folder}: {_instead(folder, folders)}", "data")
    return Listing(tuple(files), tuple(empty))


def _instead(folder: Path, folders: list[Path]) -> str:
    """What was found where class folders with images should be."""
    loose = [each for each in folder.iterdir() if each.suffix.lower() in SUFFIXES]
    if loose:
        return f"holds {len(loose)} images and no class folders; put the images of each class into a folder of its name"
    if not folders:
        kinds = sorted({each.suffix or each.name for each in folder.iterdir()})
        return f"holds {', '.join(kinds[:SHOWN]) or 'nothing'}; it needs one folder of images per class"
    names = ", ".join(each.name for each in folders[:SHOWN])
    return f"its folders ({names}) hold no images; known kinds are {', '.join(SUFFIXES)}"


def _classes(listed: dict[str, Listing], folders: dict[str, Path]) -> tuple[str, ...]:
    """The training split's classes; raises TaskError where the folders make no classification."""
    train = listed["train"]
    for split, listing in listed.items():
        if listing.empty:
            raise TaskError(
                f"{folders[split]}: the class folders {', '.join(listing.empty[:SHOWN])} hold no images; fill or "
                "remove them",
                "data",
            )
        if strange := sorted(set(listing.classes) - set(train.classes)):
            raise TaskError(
                f"{folders[split]}: the classes {', '.join(strange[:SHOWN])} are not in the training split "
                f"({', '.join(train.classes[:SHOWN])})",
                "data",
            )
    if len(train.classes) < 2:
        raise TaskError(
            f"{folders['train']}: has one class only, {train.classes[0]}; a classifier needs two or more folders",
            "data",
        )
    return train.classes


def _notes(listed: dict[str, Listing]) -> list[str]:
    return [
        f"the {split} split has no image of {', '.join(missing[:SHOWN])}"
        for split, listing in listed.items()
        if (missing := sorted(set(listed["train"].classes) - set(listing.classes)))
    ]


def _enlarged(train: Listing, options: ImageOptions) -> list[str]:
    """A word on images much smaller than what the model is given: its work grows with the square of the side."""
    from PIL import Image

    sides = []
    for _, path in train.files[:: max(1, len(train.files) // LOOKED_AT)]:
        with suppress(OSError), Image.open(path) as image:  # what cannot be read is told where it is decoded
            sides.append(min(image.size))
    side, wanted = int(np.median(sides or [0])), min(options.size)
    if not side or 2 * side > wanted:
        return []
    return [
        f"the images have some {side} pixels a side and are enlarged to {wanted}; task.size={max(side, 32)} takes "
        f"{(wanted / max(side, 32)) ** 2:.0f} times less work"
    ]


def _decoded(opening: Opening, split: str, listing: Listing, source: Source) -> Samples:
    assert opening.wants.image is not None
    options = opening.wants.image
    channels = 3 if options.mode == "RGB" else 1
    if not store.fits(opening.home, len(listing.files) * channels * options.size[0] * options.size[1]):
        return FileSamples(listing, source.classes, options)
    key = opening.key(split, kind="imagefolder", listing=listing.digest(), decode=options.decoding())

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return _blocks(opening, split, listing, source.classes)

    return kept(opening, key, batches, source)


def _blocks(
    opening: Opening, split: str, listing: Listing, classes: tuple[str, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images uint8 [B, channels, H, W] and labels int64 [B], decoded by several threads, in the listing's order."""
    assert opening.wants.image is not None
    broken: list[str] = []
    places = {name: index for index, name in enumerate(classes)}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(listing.files), BLOCK):
            block = listing.files[start : start + BLOCK]
            tried = list(pool.map(_tried, ((path, opening.wants.image) for _, path in block)))
            broken += [reason for _, reason in tried if reason]
            if not broken:
                labels = np.array([places[label] for label, _ in block], np.int64)
                yield np.stack([image for image, _ in tried if image is not None]), labels
            opening.progress(f"decoding the {split} images", (start + len(block)) / len(listing.files))
    if broken:
        more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        raise TaskError(
            f"{len(broken)} of {len(listing.files)} images of the {split} split cannot be read: "
            f"{', '.join(broken[:SHOWN])}{more}; replace or remove them",
            "data",
        )


def _tried(work: tuple[Path, ImageOptions]) -> tuple[np.ndarray | None, str]:
    """The image, or which file it is and what is wrong with it."""
    try:
        return decode(*work), ""
    except ImageError as error:
        return None, f"{work[0]} ({error})"


class FileSamples:
    """Images decoded whenever they are asked for: for a folder that does not fit on the disk a second time."""

    resident = False
    place: Path | None = None
    lengths: np.ndarray | None = None

    def __init__(self, listing: Listing, classes: tuple[str, ...], options: ImageOptions) -> None:
        self.listing, self.options = listing, options
        places = {name: index for index, name in enumerate(classes)}
        self._labels = np.array([places[label] for label, _ in listing.files], np.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def take(self, rows: np.ndarray, epoch: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the samples `rows`, int64 [B], each with a leading axis of B; targets None without."""
        tried = [_tried((self.listing.files[row][1], self.options)) for row in rows]
        if broken := [reason for _, reason in tried if reason]:
            raise TaskError(f"{', '.join(broken[:SHOWN])} cannot be read; replace or remove it", "data")
        images = [image for image, _ in tried if image is not None]
        return np.stack(images), self._labels[rows]

    def digest(self) -> str:
        """Over the files' names, sizes and times, and what decides the pixels."""
        decoding = repr(sorted(self.options.decoding().items()))
        return hashlib.sha256((self.listing.digest() + decoding).encode()).hexdigest()[:16]

    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return self._labels
