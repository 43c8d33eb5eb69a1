"""Data sources by kind: each opens what a study names, or says what it found there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks import store
from tasks.base import Progress, TaskError, TaskSpec, digest_of
from tasks.images import ImageOptions
from tasks.samples import ArraySamples, Samples, TokenSamples
from tasks.splits import Source

# What people call the splits, the usual name first.
NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
# What a target is called among named arrays.
TARGETS = ("target", "targets", "label", "labels", "y")
_DECIDING = ("data", "text", "label", "train", "validation", "test", "size", "length")


@dataclass(frozen=True)
class Wants:
    """What the model asks of its data. `image`: how image files become pixels. `encode`: texts -> arrays of tokens.

    `inputs`: the names of the model's inputs, where they are known before any data is seen; `ranks`: how many axes each
    has, the batch included. `labels`: the classes that the model was trained for, in its order. `whole`: samples are
    not parted into inputs and target.
    """

    image: ImageOptions | None = None
    text: Any = None
    inputs: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    whole: bool = False

    def digest(self) -> str:
        """Over all that decides how samples are decoded."""
        image = self.image.decoding() if self.image else None
        text = self.text.digest if self.text is not None else ""
        return digest_of([image, text, self.inputs, self.ranks, self.labels, self.whole])


@dataclass(frozen=True)
class Opening:
    """What a source is opened with. `home`: the cache."""

    spec: TaskSpec
    home: Path
    progress: Progress
    wants: Wants

    def key(self, split: str, **found: Any) -> dict[str, Any]:
        """The cache key of a split's samples. `found`: what of the source decides them."""
        values = asdict(self.spec)
        source = {name: values[name] for name in _DECIDING}
        return {"source": source, "wants": self.wants.digest(), "split": split, **found}

    @property
    def is_guest(self) -> bool:
        """Whether this process runs on a host to which only the cache was brought; see `guest`."""
        return guest(self.spec, self.home)


def which(spec: TaskSpec, split: str, there: list[str], what: str) -> str | None:
    """The name of a split among those that are there: the one the study names, else a usual one, else None.

    Raises TaskError when the study names one that is not there.
    """
    named: str = getattr(spec, split)
    if named:
        if named not in there:
            raise TaskError(
                f"task.{split}: {named!r} is not in {what}; there {'is' if len(there) == 1 else 'are'} "
                f"{', '.join(there) or 'nothing'}",
                "data",
            )
        return named
    lower = {name.lower(): name for name in there}
    return next((lower[name] for name in NAMES[split] if name in lower), None)


def reader(opening: Opening, split: str, read: Callable[[], Samples]) -> Callable[[], Samples]:
    """`read` for a split, told to the progress."""

    def opened() -> Samples:
        opening.progress(f"reading the {split} split", 0.0)
        return read()

    return opened


def kept(
    opening: Opening,
    key: Mapping[str, Any],
    batches: Callable[[], Iterable[store.Pair]],
    source: Source,
    what: str = "",
) -> ArraySamples:
    """A split's samples decoded once into the cache, with what is known of the source beside them."""
    samples = store.stored(opening.home, key, batches, what or source.name, opening.progress, lambda: facts_of(source))
    assert samples.place is not None
    source.facts.update(store.about(samples.place)["facts"]["facts"])
    return samples


def guest(spec: TaskSpec, home: Path) -> bool:
    """Whether the study's folder is a copy in the cache, as on other hosts: there the data is the cache's alone."""
    return Path(spec.folder).absolute().is_relative_to(home.absolute())


def guests(opening: Opening) -> Source | None:
    """On a host to which only the cache was brought: the source as it was decoded elsewhere; None on any other."""
    if not opening.is_guest:
        return None
    facts = store.about(_brought(opening, "train"))["facts"]
    source = Source(opening.spec.data, {}, tuple(facts["classes"]), list(facts["notes"]), facts["facts"])

    def read(split: str) -> Samples:
        samples = store.opened(_brought(opening, split))
        if opening.wants.text is not None:
            return TokenSamples(samples, opening.wants.text.names, int(source.facts["length"]))
        return samples

    source.given = {split: reader(opening, split, functools.partial(read, split)) for split in facts["given"]}
    return source


def _brought(opening: Opening, split: str) -> Path:
    wanted = opening.key(split)
    found = store.travelled(opening.home, wanted)
    if len(found) == 1:
        return found[0]
    what = f"the {split} split of {opening.spec.data}"
    if not found:
        raise TaskError(f"{what} was not brought to this host", "data")
    raise TaskError(
        f"{what}: {len(found)} data sets of that address were brought to this host; name each by a path of its own",
        "data",
    )


def facts_of(source: Source) -> dict[str, Any]:
    """What `guests` needs to know, kept beside the samples."""
    return {
        "given": list(source.given),
        "classes": list(source.classes),
        "notes": source.notes,
        "facts": source.facts,
    }


def class_targets(labels: np.ndarray, classes: tuple[str, ...], what: str) -> np.ndarray:
    """Names [N] -> int64 [N], their places in `classes`; raises TaskError naming those that are not there."""
    place = {name: index for index, name in enumerate(classes)}
    missing = sorted({str(label) for label in labels} - set(place))
    if missing:
        raise TaskError(
            f"{what}: labels {', '.join(missing[:5])} are not among the classes of the training split "
            f"({', '.join(classes[:10])}{', …' if len(classes) > 10 else ''})",
            "data",
        )
    return np.array([place[str(label)] for label in labels], np.int64)
