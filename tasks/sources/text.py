"""Texts as tokens: encoded once, each batch as long as its longest text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tasks import store
from tasks.base import TaskError
from tasks.samples import Samples, TokenSamples, rounded
from tasks.sources import Opening, kept
from tasks.splits import Source

QUANTILE = 0.99  # of the training texts' lengths: longer texts are cut
BLOCK = 512  # texts encoded at a time

# One text, or a pair of them, per sample.
Texts = tuple[Sequence[str], ...]


class TextEncoder(Protocol):
    """Texts -> tokens; made by the model. `names`: of its inputs; `limit`: most tokens that the model takes."""

    names: tuple[str, ...]
    limit: int
    digest: str

    def lengths(self, texts: Texts) -> np.ndarray:
        """int64 [N]: tokens of each sample, uncut."""
        ...

    def encode(self, texts: Texts, length: int) -> dict[str, np.ndarray]:
        """int32 [N, length] by input name, cut and padded at the right, and int32 [N] `tokens`."""
        ...


def token_source(
    opening: Opening,
    name: str,
    tables: Mapping[str, Callable[[], tuple[Texts, np.ndarray | None]]],
    found: Mapping[str, str],
    classes: tuple[str, ...],
    notes: list[str],
) -> Source:
    """Splits of (texts, targets) -> a source of tokens. `found`: what decides each split's contents."""
    encoder: TextEncoder = opening.wants.text
    source = Source(name, {}, classes, notes)
    length = _length(opening, tables["train"], found["train"], name)
    source.facts["length"] = length
    cut = f"texts are cut at {length} tokens"
    why = "as the study says" if opening.spec.length else f"the {QUANTILE} quantile of the training texts"
    source.notes.append(f"{cut}: {why}")
    for split in tables:
        read = functools.partial(_tokens, opening, split, tables[split], found[split], source, encoder)
        source.given = {**source.given, split: read}
    return source


def _length(opening: Opening, read: Callable[[], tuple[Texts, Any]], found: str, name: str) -> int:
    """The study's, else the quantile of the training texts; never more than the model takes."""
    encoder: TextEncoder = opening.wants.text
    if opening.spec.length:
        if opening.spec.length > encoder.limit:
            raise TaskError(
                f"task.length: {opening.spec.length} is more than the {encoder.limit} tokens that the model takes",
                "data",
            )
        return opening.spec.length
    key = opening.key("token counts", found=found, tokenizer=encoder.digest)

    def batches() -> Iterator[tuple[np.ndarray, None]]:
        texts, _ = read()
        for start in range(0, len(texts[0]), BLOCK):
            yield encoder.lengths(tuple(column[start : start + BLOCK] for column in texts)), None
            opening.progress("counting tokens", start / len(texts[0]))

    counts = store.stored(opening.home, key, batches, name, opening.progress).inputs
    return min(encoder.limit, rounded(int(np.ceil(np.quantile(counts, QUANTILE)))))


def _tokens(
    opening: Opening,
    split: str,
    read: Callable[[], tuple[Texts, np.ndarray | None]],
    found: str,
    source: Source,
    encoder: TextEncoder,
) -> Samples:
    length = source.facts["length"]
    key = opening.key(split, kind="tokens", found=found, tokenizer=encoder.digest, tokens=length)

    def batches() -> Iterator[tuple[dict[str, np.ndarray], np.ndarray | None]]:
        texts, targets = read()
        for start in range(0, len(texts[0]), BLOCK):
            rows = slice(start, start + BLOCK)
            block = encoder.encode(tuple(column[rows] for column in texts), length)
            yield block, None if targets is None else targets[rows]
            opening.progress(f"encoding the {split} texts", start / len(texts[0]))

    samples = kept(opening, key, batches, source)
    return TokenSamples(samples, encoder.names, length)
