"""What an exported file scores on a split: the task's metrics, and how far it agrees with the model it was made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import runtimes.base
from runtimes.base import Artifact, Session
from runtimes.ports import fitted
from tasks.base import Arrays, Dataset, Port, Task
from trainers.base import Compressed

CHUNK = 250  # rows at once: larger ones gain no speed
CHUNK_BYTES = 64_000_000  # of inputs at once
EXAMPLES = 64  # rows kept for measuring latency


def quality(
    runtime: str, artifact: Artifact, compressed: Compressed, task: Task, pause: Callable[[], None]
) -> tuple[dict[str, float], float]:
    """(metrics of the file on validation, agreement in [0, 1] with the model it was exported from)."""
    metrics, first = score(runtime, artifact, task, task.data("validation"), compressed.rows, pause)
    return metrics, task.agreement(first, compressed.outputs)


def score(
    runtime: str,
    artifact: Artifact,
    task: Task,
    data: Dataset,
    kept: int = 0,
    pause: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], Arrays]:
    """(the task's metrics of the file on the split, its outputs on the first `kept` rows by name)."""
    session = runtimes.base.load(runtime).load(artifact, threads=1)
    info, scorer = task.info(), task.scorer()
    first: dict[str, list[np.ndarray]] = {port.name: [] for port in info.outputs}
    for rows in chunks(data, info.inputs):
        pause()
        batch = data.batch(rows)
        outputs = run(session, batch.inputs, info.inputs, info.outputs)
        scorer.add(outputs, batch)
        for name, found in first.items():
            if rows[0] < kept:
                found.append(outputs[name][: kept - rows[0]])
    return scorer.result(), {name: np.concatenate(found) for name, found in first.items() if found}


def chunks(data: Dataset, inputs: Sequence[Port]) -> list[np.ndarray]:
    """The split's rows in order, in parts that are cheap to hold."""
    if not len(data):
        return []
    one = data.batch(np.arange(1)).inputs
    size = max(1, min(CHUNK, CHUNK_BYTES // max(1, sum(array.nbytes for array in one.values()))))
    return [np.arange(start, min(start + size, len(data))) for start in range(0, len(data), size)]


def run(session: Session, inputs: Arrays, given: Sequence[Port], made: Sequence[Port]) -> dict[str, np.ndarray]:
    """The file's outputs by the task's names, from inputs by the task's names; both in the task's layout."""
    outputs = session.run(fitted(session.inputs, inputs, given))
    by_name = all(port.name in outputs for port in made)
    found = [outputs[port.name] for port in made] if by_name else list(outputs.values())
    if len(found) != len(made):
        raise ValueError(f"the file gives {', '.join(outputs)}, the task {', '.join(port.name for port in made)}")
    layouts = {port.name: port.layout for port in session.outputs}
    there = [port.name for port in made] if by_name else list(outputs)
    return {
        port.name: np.moveaxis(array, -1, 1) if (port.layout, layouts[name]) == ("NCHW", "NHWC") else array
        for port, name, array in zip(made, there, found, strict=True)
    }


def save_examples(task: Task, path: Path) -> Path:
    """Valid inputs for measuring latency, by name, in the task's layout: the first rows of validation as `.npz`."""
    data = task.data("validation")
    batch = data.batch(np.arange(min(EXAMPLES, len(data))))
    arrays: dict[str, Any] = {name: np.asarray(array) for name, array in batch.inputs.items()}
    np.savez(path, **arrays)
    return path
