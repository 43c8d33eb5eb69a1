"""What a tensor's bytes are made of: a step and small integers, a palette and indices, planes of bytes, or unknown.

Each way is exact: a payload is coded only by what gives its very bytes again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from packing.decode import HALF, INT8, LITERAL, NIBBLES, PALETTE, PLANES, RANK_LIMIT, STEP16, STEP32, varint

SMALL = 8  # bytes: below this a descriptor costs more than it can save
WIDTHS = {"float32": 4, "float16": 2, "float64": 8, "int64": 8, "uint64": 8, "int32": 4, "uint32": 4}
WIDTHS |= {"uint16": 2, "int16": 2}
ENTRIES = 256


@dataclass(frozen=True)
class Coding:
    """One way to say a payload. `what`: its kind in docs/format.md; `head`: bytes after the descriptor, as stored.

    `symbols`: int8 [count], its integers in the tensor's order, where it has any, else None; `elements`: uint8
    [count, width], the bytes of what is stored plane by plane.
    """

    what: int
    head: bytes = b""
    symbols: np.ndarray | None = None
    elements: np.ndarray = field(default_factory=lambda: np.zeros((0, 1), np.uint8))


def literal(data: bytes) -> Coding:
    """As it is."""
    return Coding(LITERAL, varint(len(data)) + data)


def codings(data: bytes, dtype: str, count: int, rank: int) -> Iterator[Coding]:
    """Every way that fits the payload, the one that is likely the shortest first; at least its literal.

    `dtype`: NumPy's name, `int4` for two integers a byte, "" when it is not known; `count`, `rank`: elements and axes
    by its shape.
    """
    if len(data) >= SMALL and rank <= RANK_LIMIT:
        if dtype in ("int8", "uint8") and len(data) == count:
            yield Coding(INT8, symbols=np.frombuffer(data, np.int8))
        elif dtype == "int4" and len(data) == (count + 1) // 2:
            yield from _nibbles(data, count)
        elif len(data) == count * WIDTHS.get(dtype, 0):
            yield from _wide(data, dtype)
    yield literal(data)


def _nibbles(data: bytes, count: int) -> Iterator[Coding]:
    raw = np.frombuffer(data, np.uint8)
    symbols = np.stack([raw & 15, raw >> 4], axis=1).flatten()
    if count % 2 == 0 or symbols[-1] == 0:
        signed = symbols[:count].astype(np.int8)
        yield Coding(NIBBLES, symbols=np.where(signed > 7, signed - 16, signed).astype(np.int8))


def _wide(data: bytes, dtype: str) -> Iterator[Coding]:
    width = WIDTHS[dtype]
    patterns = np.frombuffer(data, f"<u{width}")
    distinct, where = _distinct(patterns)
    if distinct is not None:
        step = _stepped(distinct.view("<f4"), where) if dtype == "float32" else None
        yield step or _palette(distinct, where, width)
    if dtype == "float32":
        values = np.frombuffer(data, "<f4")
        with np.errstate(over="ignore", invalid="ignore"):
            half = values.astype("<f2")
        if np.isfinite(values).all() and half.astype("<f4").tobytes() == data:
            yield Coding(HALF, elements=_elements(half.tobytes(), 2))
            return
    yield Coding(PLANES, bytes([width]), elements=_elements(data, width))


def _distinct(patterns: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """(the distinct elements, ascending, and which one each is); (None, []) when there are too many for a palette."""
    if len(np.unique(patterns[: 4 * ENTRIES])) > ENTRIES:  # soon seen of ordinary floats
        return None, patterns[:0]
    distinct, where = np.unique(patterns, return_inverse=True)
    return (distinct, where) if len(distinct) <= ENTRIES else (None, patterns[:0])


def _stepped(distinct: np.ndarray, where: np.ndarray) -> Coding | None:
    """float32 values as step * integer, the largest step that gives every bit of them; None when there is none."""
    nonzero = distinct[distinct != 0]
    if not len(nonzero) or not np.isfinite(nonzero).all():
        return None
    least = np.abs(nonzero).min()
    for divisor in range(1, 128):
        wanted = least / np.float32(divisor)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            rounded = np.rint(distinct / wanted)
        if not np.abs(rounded).max() <= 127:
            return None
        integers = rounded.astype(np.int8)  # of -0.0 too: its sign is lost, and the bits below are others
        for what, step in ((STEP16, _half(wanted)), (STEP32, wanted)):
            exact = np.float32(step)
            if exact > 0 and (integers.astype("<f4") * exact).tobytes() == distinct.tobytes():
                return Coding(what, step.tobytes(), integers[where])
    return None


def _half(value: np.float32) -> np.float16:
    with np.errstate(over="ignore"):
        return np.float16(value)


def _palette(distinct: np.ndarray, where: np.ndarray, width: int) -> Coding:
    """Indices into the distinct values, of which the most frequent one (in a pruned tensor 0) is the first."""
    counts = np.bincount(where, minlength=len(distinct))
    order = np.concatenate([[counts.argmax()], np.delete(np.arange(len(distinct)), counts.argmax())])
    rank = np.empty(len(distinct), np.uint8)
    rank[order] = np.arange(len(distinct), dtype=np.uint8)
    head = bytes([width, len(distinct) - 1]) + distinct[order].tobytes()
    return Coding(PALETTE, head, rank[where].view(np.int8))


def _elements(data: bytes, width: int) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(-1, width)
