"""What files are timed on: valid inputs from a `.npz`, or random floats where floats are all they take."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runtimes.base import LatencyError
from runtimes.ports import batch_axis, check, described, fitted, sized
from tasks.base import Arrays, Port


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` by name; raises LatencyError when it is none, or holds Python objects."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as problem:
        reason = getattr(problem, "strerror", None) or str(problem).splitlines()[0]
        raise LatencyError(f"latency: examples {path} cannot be read ({reason}); write them with numpy.savez") from None
    if empty := [name for name, array in arrays.items() if not array.size]:
        raise LatencyError(f"latency: examples {path}: {', '.join(empty)} holds no values; give at least one row")
    return arrays


def inputs(ports: Sequence[Port], examples: Arrays | None, batch: int) -> dict[str, np.ndarray]:
    """One call's inputs at this batch size. Rows of `examples` are repeated where there are fewer.

    Raises LatencyError when the examples do not fit, when without them a file takes more than floats with only the
    batch left open, and when a file of a fixed batch size has another one.
    """
    axis = batch_axis(ports)
    if axis is None and batch != 1 and any(port.shape[:1] != (batch,) for port in ports):
        raise LatencyError(
            f"latency.batch: {batch} cannot be measured: the file takes {_listed(ports)} and no other number of rows"
        )
    if examples is None:
        return _drawn(ports, axis, batch)
    try:
        given = fitted(ports, examples)
        made = {port.name: _rows(port, given[port.name], axis, batch) for port in ports}
        check(ports, made)
    except ValueError as problem:
        raise LatencyError(f"latency: the examples do not fit: {problem}") from None
    return made


def whole(ports: Sequence[Port], examples: Arrays) -> dict[str, np.ndarray]:
    """All rows of the examples, as the file takes them; raises LatencyError when they do not fit."""
    try:
        made = fitted(ports, examples)
        check(ports, made)
    except ValueError as problem:
        raise LatencyError(f"latency: the examples do not fit: {problem}") from None
    return made


def _drawn(ports: Sequence[Port], axis: str | None, batch: int) -> dict[str, np.ndarray]:
    random, made = np.random.default_rng(0), {}
    for port in ports:
        free = [each for each in port.shape if isinstance(each, str) and each != axis]
        if free or np.dtype(port.dtype).kind != "f":
            why = f"nothing says how long {', '.join(free)} is" if free else "random values may be none it can take"
            raise LatencyError(
                f"latency: input {described(port)}: {why}; give examples, a .npz of valid inputs by name"
            )
        shape = sized(port, {axis: batch})
        made[port.name] = random.standard_normal(shape, dtype=np.float32).astype(port.dtype, copy=False)
    return made


def _rows(port: Port, array: np.ndarray, axis: str | None, batch: int) -> np.ndarray:
    """`batch` rows of the example, or as many as the port takes; the example itself where it has no such axis."""
    if array.ndim != len(port.shape) or not array.ndim:
        return array
    if axis in port.shape:
        along, rows = port.shape.index(axis), batch
    elif isinstance(port.shape[0], int) and axis is None:
        along, rows = 0, port.shape[0]
    else:
        return array
    return np.take(array, np.arange(rows) % array.shape[along], axis=along)


def _listed(ports: Sequence[Port]) -> str:
    return ", ".join(map(described, ports))
