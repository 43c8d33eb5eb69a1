"""ONNX models on ONNX Runtime, one thread: what they say, and what lies inside, over batches of a task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tasks.base import Arrays, Dataset
from trainers.base import Pause, TrainingError
from trainers.samples import representative

ROWS_AT_ONCE = 32


def session(model: onnx.ModelProto | bytes, optimized: bool = True) -> onnxruntime.InferenceSession:
    """The model, ready to run. Raises TrainingError when it does not load."""
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    content = model if isinstance(model, bytes) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # its exception classes have no common base
        raise TrainingError(f"ONNX Runtime cannot load the file that was made: {reason(problem)}") from None


def outputs(
    model: onnx.ModelProto | bytes, batches: Iterable[Arrays], names: Sequence[str] = (), optimized: bool = True
) -> dict[str, np.ndarray]:
    """The named outputs, all without names, over the batches one after the other. TrainingError when it fails."""
    running = session(model, optimized)
    names = names or [node.name for node in running.get_outputs()]
    known = {node.name for node in running.get_inputs()}
    found: dict[str, list[Any]] = {name: [] for name in names}
    for batch in batches:
        try:
            made = running.run(list(names), {name: array for name, array in batch.items() if name in known})
        except Exception as problem:
            raise TrainingError(f"ONNX Runtime cannot run the file that was made: {reason(problem)}") from None
        for name, array in zip(names, made, strict=True):
            found[name].append(array)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def inside(model: onnx.ModelProto, names: Sequence[str], batches: Iterable[Arrays]) -> dict[str, np.ndarray]:
    """Values inside the graph by name, over the batches one after the other."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:]
    opened.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return outputs(opened, batches, names, optimized=False)


def batches(dataset: Dataset, rows: np.ndarray, pause: Pause, size: int = ROWS_AT_ONCE) -> Iterator[Arrays]:
    """The inputs of the samples `rows`, by name."""
    for start in range(0, len(rows), size):
        pause()
        yield dataset.batch(rows[start : start + size]).inputs


def calibration(dataset: Dataset, count: int, pause: Pause) -> list[Arrays]:
    """The inputs of at most `count` samples that stand for all, in batches; alike in size where they differ."""
    return list(batches(dataset, representative(dataset, count), pause))


def relative_error(said: Arrays, exact: Arrays) -> float:
    """Root mean square of the difference over that of `exact`, the largest over all outputs that are numbers."""
    worst = 0.0
    for name, right in exact.items():
        if right.dtype.kind != "f":
            continue
        difference, scale = said[name].astype(np.float64) - right, np.sqrt(np.mean(right.astype(np.float64) ** 2))
        error = float(np.sqrt(np.mean(difference**2)) / (scale or 1.0))
        worst = max(worst, error if np.isfinite(error) else np.inf)
    return worst


def reason(problem: Exception) -> str:
    """The first line of what a library says."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]
