"""What an exported file scores on a split: the task's metrics, and how far it agrees with the model it was made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import runtimes.base
from runtimes.base import Artifact, Session
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
        outputs = run(session, batch.inputs, info.inputs, info.outputs, artifact)
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


def run(
    session: Session, inputs: Arrays, given: Sequence[Port], made: Sequence[Port], artifact: Artifact
) -> dict[str, np.ndarray]:
    """The file's outputs by the task's names, from inputs by the task's names and in the task's layout."""
    fed = {there.name: placed(inputs[here.name], here, artifact) for here, there in pairs(given, session.inputs)}
    outputs = session.run(fed)
    return {here.name: back(outputs[there.name], here, artifact) for here, there in pairs(made, session.outputs)}


def pairs(task: Sequence[Port], file: Sequence[Port]) -> list[tuple[Port, Port]]:
    """(the task's port, the file's) by name where the file kept the names, else by position."""
    by_name = {port.name: port for port in file}
    if all(port.name in by_name for port in task):
        return [(port, by_name[port.name]) for port in task]
    if len(task) != len(file):
        raise ValueError(
            f"the file has {', '.join(by_name)}, the task {', '.join(port.name for port in task)}; export it again"
        )
    return list(zip(task, file, strict=True))


def placed(array: np.ndarray, port: Port, artifact: Artifact) -> np.ndarray:
    """The input as the file takes it: channels last where its format wants them so."""
    if port.layout == "NCHW" and artifact.layout == "NHWC":
        return np.ascontiguousarray(np.moveaxis(array, 1, -1))
    return array


def back(array: np.ndarray, port: Port, artifact: Artifact) -> np.ndarray:
    """The output in the task's layout."""
    if port.layout == "NCHW" and artifact.layout == "NHWC":
        return np.moveaxis(array, -1, 1)
    return array


def save_examples(task: Task, path: Path) -> Path:
    """Valid inputs for measuring latency, by name, in the task's layout: the first rows of validation as `.npz`."""
    data = task.data("validation")
    batch = data.batch(np.arange(min(EXAMPLES, len(data))))
    arrays: dict[str, Any] = {name: np.asarray(array) for name, array in batch.inputs.items()}
    np.savez(path, **arrays)
    return path
