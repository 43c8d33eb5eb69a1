"""Arrays by port: what a file takes and gives, checked, and the arrays of a task laid out as the file takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tasks.base import Arrays, Port

BATCH = "batch"
CHANNELS_LAST = "NHWC"
_TO_CHANNELS_LAST = (0, 2, 3, 1)


def described(port: Port) -> str:
    """The port in words: `ids int64 [batch, length]`."""
    return f"{port.name} {port.dtype} [{', '.join(map(str, port.shape))}]"


def free_axes(name: str, sizes: Sequence[int | str | None]) -> tuple[int | str, ...]:
    """The shape of a port whose free axes may be unnamed (None or ""): the first is the batch, others NAME_AXIS."""
    return tuple(
        size if size not in (None, "") else BATCH if axis == 0 else f"{name}_{axis}" for axis, size in enumerate(sizes)
    )


def batch_axis(ports: Sequence[Port]) -> str | None:
    """The name of the free axis that counts the samples: the first axis of the first port where that is free."""
    return next((p.shape[0] for p in ports if p.shape and isinstance(p.shape[0], str)), None)


def sized(port: Port, sizes: Mapping[str | None, int]) -> tuple[int, ...]:
    """The port's shape with `sizes` for its free axes; one that is not named there is 1."""
    return tuple(axis if isinstance(axis, int) else sizes.get(axis, 1) for axis in port.shape)


def check(ports: Sequence[Port], inputs: Arrays) -> None:
    """Raise ValueError, one message with every mistake, unless `inputs` are what the ports take."""
    wrong = [f"{port.name!r} is missing" for port in ports if port.name not in inputs]
    known = {port.name for port in ports}
    wrong += [f"{name!r} is no input" for name in inputs if name not in known]
    sizes: dict[str, int] = {}
    for port in ports:
        if port.name in inputs and (problem := _problem(port, inputs[port.name], sizes)):
            wrong.append(f"{port.name!r} {problem}")
    if wrong:
        raise ValueError(f"inputs: {'; '.join(wrong)}; the file takes {', '.join(map(described, ports))}")


def _problem(port: Port, array: np.ndarray, sizes: dict[str, int]) -> str:
    """What is wrong with the array, in words, or "". `sizes`: of the free axes met so far; added to."""
    if not isinstance(array, np.ndarray):
        return f"is a {type(array).__name__}, not a NumPy array"
    if array.dtype != np.dtype(port.dtype) or array.ndim != len(port.shape):
        return f"is {array.dtype} {list(array.shape)}"
    for axis, size in zip(port.shape, array.shape, strict=True):
        wanted = axis if isinstance(axis, int) else sizes.setdefault(axis, size)
        if wanted != size:
            where = f", where another input has {wanted} along {axis}" if isinstance(axis, str) else ""
            return f"is {array.dtype} {list(array.shape)}{where}"
    return ""


def fitted(ports: Sequence[Port], inputs: Arrays, given: Sequence[Port] = ()) -> dict[str, np.ndarray]:
    """A task's arrays as a file takes them: by the file's names, in its layout and number format.

    `given`: the task's own ports. Where the names differ, arrays are taken in the order of `given` (or of `inputs`).
    An array is transposed where the file's layout is NHWC and the task's is NCHW; without `given`, where its shape
    fits in no other way. Floats become the file's floats and whole numbers its whole numbers.
    Raises ValueError when the numbers of inputs differ.
    """
    order = [port.name for port in given] or list(inputs)
    names = {port.name: port.name for port in ports}
    if not set(names) <= set(order):
        if len(ports) != len(order):
            raise ValueError(
                f"inputs: the task gives {', '.join(order)}; the file takes {', '.join(map(described, ports))}"
            )
        names = {port.name: name for port, name in zip(ports, order, strict=True)}
    layouts = {port.name: port.layout for port in given}
    arrays = ((port, inputs[names[port.name]], layouts.get(names[port.name])) for port in ports)
    return {port.name: _cast(port, _turned(port, array, layout)) for port, array, layout in arrays}


def _turned(port: Port, array: np.ndarray, layout: str | None) -> np.ndarray:
    if port.layout != CHANNELS_LAST or array.ndim != 4 or layout == CHANNELS_LAST:
        return array
    turned = np.transpose(array, _TO_CHANNELS_LAST)
    if layout == "NCHW" or (_shape_fits(port, turned) and not _shape_fits(port, array)):
        return np.ascontiguousarray(turned)
    return array


def _shape_fits(port: Port, array: np.ndarray) -> bool:
    return all(isinstance(axis, str) or axis == size for axis, size in zip(port.shape, array.shape, strict=True))


def _cast(port: Port, array: np.ndarray) -> np.ndarray:
    """In the port's number format where that is of the same kind and holds every value."""
    wanted = np.dtype(port.dtype)
    if array.dtype == wanted or (array.dtype.kind in "iu") != (wanted.kind in "iu") or array.dtype.kind not in "fiu":
        return array
    cast = array.astype(wanted)
    return cast if wanted.kind == "f" or np.array_equal(cast, array) else array
