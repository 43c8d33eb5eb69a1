"""What trainers of any framework need to know of a split: whether all of it fits, batches ahead of time. NumPy only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np

from tasks import tree
from tasks.base import Batch, Dataset, Port
from trainers.base import Pause

PROBED = 16  # samples that are read to learn what all of them take
LOADED_AT_ONCE = 2048
AHEAD = 2  # batches in waiting for each thread that fetches
SORTED_BATCHES = 50  # of samples with lengths: batches are made of equal lengths within so many

T = TypeVar("T")
Tree = Any  # an array, or a tuple or mapping of trees


def mapped(function: Callable[[Any], Any], values: Tree) -> Tree:
    """The same structure with `function` of every leaf; None stays None."""
    return None if values is None else tree.mapped(function, values)


def leaves(values: Tree) -> list[Any]:
    """Every leaf of the structure, in order."""
    return [] if values is None else [leaf for _, leaf in tree.leaves(values)]


def is_numeric(leaf: Any) -> bool:
    """Whether the leaf can be a tensor: an array of numbers or bool."""
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf"


def plain(leaf: np.ndarray) -> np.ndarray:
    """The array as frameworks take it: contiguous, writable; float64, which NumPy makes unasked, as float32."""
    made = np.ascontiguousarray(leaf, np.float32 if leaf.dtype == np.float64 else leaf.dtype)
    return made if made.flags.writeable else made.copy()


def bytes_of(batch: Batch) -> int:
    """What the batch's arrays take."""
    return sum(array.nbytes for array in (*batch.inputs.values(), *leaves(batch.targets)) if is_numeric(array))


def why_streamed(dataset: Dataset, ports: Sequence[Port], budget: float, training: bool) -> str:
    """Why the split cannot lie in `budget` bytes as a whole, in words; "" when it can.

    `training`: its samples are asked for by epoch.
    """
    rows = np.arange(min(PROBED, len(dataset)))
    first, second = dataset.batch(rows), dataset.batch(rows[: max(1, len(rows) // 2)])
    needed = bytes_of(first) / len(rows) * len(dataset)
    if not all(is_numeric(leaf) for leaf in leaves(first.targets)) or not _same_shapes(first, second):
        return "samples differ in size"
    if any(isinstance(size, str) for port in ports for size in port.shape[1:]):
        return "an input has a free axis"
    if training and augments(dataset):
        return "samples are augmented again in each epoch"
    if needed > budget:
        return f"{needed / 1e9:.1f} GB, more than {budget / 1e9:.1f} GB of free memory"
    return ""


def _same_shapes(first: Batch, second: Batch) -> bool:
    pairs = zip(
        (*first.inputs.values(), *leaves(first.targets)),
        (*second.inputs.values(), *leaves(second.targets)),
        strict=True,
    )
    return all(one.shape[1:] == other.shape[1:] for one, other in pairs)


def augments(dataset: Dataset) -> bool:
    """Whether samples asked for in an epoch differ from the same samples asked for without, or in another epoch."""
    rows = np.arange(min(PROBED, len(dataset)))
    plain, others = dataset.batch(rows), [dataset.batch(rows, epoch) for epoch in (0, 1)]
    return any(
        one.shape != other.shape or not np.array_equal(one, other)
        for changed in others
        for one, other in zip(plain.inputs.values(), changed.inputs.values(), strict=True)
    )


def loaded(dataset: Dataset, pause: Pause, progress: Callable[[float], None]) -> Iterator[tuple[int, Batch]]:
    """The whole split in parts that are cheap to hold, each with the row at which it begins."""
    count = len(dataset)
    for start in range(0, count, LOADED_AT_ONCE):
        pause()
        rows = np.arange(start, min(count, start + LOADED_AT_ONCE))
        yield start, dataset.batch(rows)
        progress((start + len(rows)) / count)


def fetched_ahead(
    order: Sequence[np.ndarray], fetch: Callable[[np.ndarray], T], threads: int, pause: Pause
) -> Iterator[T]:
    """`fetch(rows)` of each batch in turn, by threads ahead of time; asks for a pause before each.

    What is being fetched is finished before a pause begins, and nothing is fetched during one.
    """
    coming: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads, "fetch")
    left = iter(order)
    try:
        while True:
            pause(lambda: wait(coming))
            while len(coming) < AHEAD * threads and (rows := next(left, None)) is not None:
                coming.append(pool.submit(fetch, rows))
            if not coming:
                return
            yield coming.popleft().result()
    finally:
        for each in coming:
            each.cancel()
        pool.shutdown()


def by_length(
    order: np.ndarray, lengths: np.ndarray | None, size: int, shuffle: Callable[[int], np.ndarray]
) -> list[np.ndarray]:
    """`order`, int64 [N], in batches of `size`. With `lengths`, int64 [N], a batch holds samples of about one length.

    `shuffle(n)`: a permutation of n batches, used with lengths alone.
    """
    if lengths is None:
        return [order[start : start + size] for start in range(0, len(order), size)]
    batches = []
    for start in range(0, len(order), SORTED_BATCHES * size):
        part = order[start : start + SORTED_BATCHES * size]
        part = part[np.argsort(np.asarray(lengths)[part], kind="stable")]
        batches += [part[at : at + size] for at in range(0, len(part), size)]
    return [batches[i] for i in shuffle(len(batches))]


def representative(dataset: Dataset, count: int) -> np.ndarray:
    """int64 [count] rows, ascending, that stand for the whole split, always the same.

    The first ones where the data say that they are in random order (`shuffled`), as files in folders are not.
    """
    total = len(dataset)
    if getattr(dataset, "shuffled", False) or count >= total:
        return np.arange(min(count, total))
    return np.sort(np.random.RandomState(0).permutation(total)[:count])
