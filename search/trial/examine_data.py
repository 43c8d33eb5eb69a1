"""What the doctor finds in a task's data: counts, classes, duplicates, and what reading them costs."""

from __future__ import annotations

import hashlib
import re
import time
from typing import Any

import numpy as np

from search.trial.evaluate import chunks
from tasks.base import Batch, Progress, Task, TaskInfo

HASHED_ROWS, HASHED_S = 50_000, 15.0  # of each split that duplicates are looked for in
SLOW_S = 10  # of the user's own data(): from there on it is said
RARE = 0.1  # a class with less than this share of an equal share is said to be rare


class Slow:
    """A Progress that remembers for how long the user's own functions ran: every worker process calls them again."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._seconds = progress, dict[str, int]()

    def __call__(self, stage: str, fraction: float) -> None:
        """`stage` is `NAME(SPLIT): N s` while a function of the user's runs (`tasks.user_code.ticking`)."""
        if match := re.fullmatch(r"(.+\)): (\d+) s", stage):
            self._seconds[match[1]] = int(match[2])
        self._progress(stage, fraction)

    def notes(self) -> list[str]:
        """What they cost, where it is felt."""
        total, names = sum(self._seconds.values()), ", ".join(self._seconds)
        if total < SLOW_S:
            return []
        return [
            f"{names}: {total} s or more, and every worker process calls them again when it starts; write the arrays "
            "to a file once and name that (npz:FILE), or return memory-mapped arrays or a dataset that reads by row"
        ]


def look(task: Task, info: TaskInfo) -> dict[str, Any]:
    """Counts, classes and what the training and the validation split share; the test split stays closed."""
    found: dict[str, Any] = {"counts": dict(info.counts), "digest": info.data_digest, "notes": list(info.notes)}
    hashes: dict[str, set[bytes]] = {}
    for split in ("train", "validation"):
        if split not in info.counts:
            continue
        data = task.data(split)
        labels, seen, began = [], set[bytes](), time.perf_counter()
        for rows in chunks(data, info.inputs):
            if rows[0] >= HASHED_ROWS or time.perf_counter() - began > HASHED_S:
                found["looked_at"] = int(rows[0])
                break
            batch = data.batch(rows)
            seen |= _hashes(batch, len(rows))
            if isinstance(batch.targets, np.ndarray) and batch.targets.ndim == 1 and batch.targets.dtype.kind in "iu":
                labels.append(batch.targets)
        hashes[split] = seen
        if labels and info.classes:
            found.setdefault("classes", {})[split] = _balance(np.concatenate(labels), info.classes)
    if len(hashes) == 2:
        shared = len(hashes["train"] & hashes["validation"])
        found["duplicates"] = shared
        if shared:
            found["notes"].append(f"{shared} validation samples are in the training split too")
    return found


def _hashes(batch: Batch, rows: int) -> set[bytes]:
    arrays = [np.ascontiguousarray(array) for array in batch.inputs.values()]
    return {hashlib.blake2b(b"".join(a[i].tobytes() for a in arrays), digest_size=12).digest() for i in range(rows)}


def _balance(labels: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    counts = np.bincount(labels, minlength=len(classes))
    rare = [classes[i] for i in np.flatnonzero(counts < RARE * len(labels) / len(classes)) if i < len(classes)]
    return {"counts": {name: int(count) for name, count in zip(classes, counts, strict=False)}, "rare": rare}
