"""Train, validation and test: what a source gives, and what is made of it where it gives less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tasks.base import SPLITS, TaskError, TaskSpec
from tasks.samples import Samples, Subset

SPLIT_SEED, SUBSET_SEED = 20261123, 7
HELD_OUT = 0.1  # of the training samples, where the source gives no validation split
LEAST = 4  # samples in a split that is made


@dataclass
class Source:
    """A data source, opened. `given`: the splits that it has, each read when it is called for the first time.

    `classes`: their names where targets are classes. `facts`: what else is known of it (columns, image options).
    `held_out`: the share of the training split that makes a missing split.
    """

    name: str
    given: Mapping[str, Callable[[], Samples]]
    classes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    held_out: float = HELD_OUT


class Splits:
    """The three splits of a source. Missing ones are made: validation from train, test from validation, as noted.

    `notes` is complete from the start; samples are read when a split is asked for, `test` only then.
    """

    def __init__(self, source: Source, spec: TaskSpec, wants: Any = None) -> None:
        self.wants = wants  # with which the source was opened
        if "train" not in source.given:
            found = ", ".join(source.given) or "nothing"
            raise TaskError(f"{source.name}: has no training split, only {found}; name one with task.train", "data")
        self.source, self.spec = source, spec
        self.notes = [*source.notes, *self._made()]
        self._opened: dict[str, Samples] = {}
        self._whole: dict[str, Samples] = {}

    def _made(self) -> Iterator[str]:
        name, given = self.source.name, self.source.given
        if "validation" not in given:
            yield (
                f"{name}: no validation split; {self.source.held_out:.3g} of train is set aside for it, stratified "
                f"where there are classes, seed {SPLIT_SEED}"
            )
        if "test" not in given:
            origin = "the validation split is set aside" if "validation" in given else "train is set aside likewise"
            share = "half of" if "validation" in given else f"{self.source.held_out:.3g} of"
            yield f"{name}: no test split; {share} {origin} for it, seed {SPLIT_SEED}"

    def open(self, split: str) -> Samples:
        """One of SPLITS, cut to `train_size` or `validation_size`; the same samples each time."""
        assert split in SPLITS
        if split not in self._opened:
            size = {"train": self.spec.train_size, "validation": self.spec.validation_size}.get(split)
            self._opened[split] = subset(self._part(split), size, f"task.{split}_size")
        return self._opened[split]

    def _part(self, split: str) -> Samples:
        given = self.source.given
        if split == "train":
            return self._given("train") if "validation" in given else self._held(out=False)
        if split == "validation" and "test" in given:
            return self._given("validation") if "validation" in given else self._held(out=True)
        if split == "test" and "test" in given:
            return self._given("test")
        held = self._given("validation") if "validation" in given else self._held(out=True)
        chosen = drawn(held, len(held) // 2, self.source.name)
        return Subset(held, chosen if split == "test" else np.setdiff1d(np.arange(len(held)), chosen))

    def _given(self, split: str) -> Samples:
        if split not in self._whole:
            samples = self.source.given[split]()
            if not len(samples):
                raise TaskError(f"{self.source.name}: the {split} split is empty", "data")
            self._whole[split] = samples
        return self._whole[split]

    def _held(self, out: bool) -> Samples:
        """Of the training split what is set aside for the missing ones (`out`), or the rest."""
        whole = self._given("train")
        share = self.source.held_out * (1 if "test" in self.source.given else 2)
        chosen = drawn(whole, max(LEAST, round(share * len(whole))), self.source.name)
        return Subset(whole, chosen if out else np.setdiff1d(np.arange(len(whole)), chosen))


def drawn(samples: Samples, size: int, name: str) -> np.ndarray:
    """int64 [size], ascending: rows for a held-out split, stratified where there are classes."""
    if not 0 < size < len(samples):
        raise TaskError(
            f"{name}: {len(samples)} samples are too few to set {size} aside; give more, or name the splits", "data"
        )
    labels = samples.labels()
    return stratified(np.zeros(len(samples), np.int64) if labels is None else labels, size, SPLIT_SEED)


def subset(samples: Samples, size: int | None, where: str) -> Samples:
    """A stratified part of `size` samples, the same every time; a smaller one is part of a larger one."""
    if size is None or size == len(samples):
        return samples
    if size > len(samples):
        raise TaskError(f"{where}: {size} is more than the {len(samples)} samples there are; leave it out", "data")
    labels = samples.labels()
    known = np.zeros(len(samples), np.int64) if labels is None else labels
    return Subset(samples, stratified(known, size, SUBSET_SEED))


def stratified(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """int64 [size], ascending: chosen positions in `labels`, each class in proportion to within one sample.

    Nested: with the same labels and seed a smaller size is part of a larger one.
    """
    # RandomState, because NumPy promises its stream for ever; Generator's may change between versions.
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    depth = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        depth[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(np.argsort(depth, kind="stable")[:size])
