"""How each payload is stored: which of its codings, dense or as gaps between nonzeros, by rows or by columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import brotli
import numpy as np

from packing import encode
from packing.decode import COLUMNS, LITERAL, RANGED, SPARSE, varint
from packing.onnx_tree import Payload
from packing.payloads import Coding, codings, literal

SAMPLE = 1 << 14  # symbols on which ways are compared
RANGED_SAMPLE = 1 << 13  # the same for the range coder, which takes 4 microseconds each
SPARSE_SHARE = 0.6  # of zeros above which gaps are tried
TINY = 256  # bytes: a payload that may be worth keeping in the skeleton


@dataclass(frozen=True)
class Stored:
    """A payload as it goes into the streams. `kind`: its descriptor; `symbols`: int8 [rows, columns] as scanned."""

    kind: int
    coding: Coding
    dims: tuple[int, int]
    symbols: np.ndarray
    width: int = 1


@dataclass
class Streams:
    """A packed file's parts. `skeleton`: one piece per payload and what follows the last; `bits`: those of range-coded
    weights, which come after each piece of the skeleton.
    """

    skeleton: list[bytes]
    bits: list[list[int]]
    values: bytes
    gaps: bytes


def streams(pieces: Sequence[bytes | Payload], stored: Sequence[Stored], flat: bool) -> Streams:
    """What is read from `pieces`, its payloads stored as said, in the order in which the parser asks for it."""
    skeleton, bits, values, gaps, pending = list[bytes](), list[list[int]](), list[bytes](), list[bytes](), b""
    remaining = iter(stored)
    for piece in pieces:
        if isinstance(piece, bytes):
            pending += varint(len(piece)) + piece if flat else piece
            continue
        one = next(remaining)
        value, gap = _slices(one)
        skeleton.append(pending + _head(one, len(gap), flat))
        bits.append(encode.bits_of_weights(one.symbols, _size_bits(one)) if one.kind & RANGED else [])
        values.append(value)
        gaps.append(gap)
        pending = b""
    return Streams([*skeleton, pending], [*bits, []], b"".join(values), b"".join(gaps))


def _head(stored: Stored, gaps: int, flat: bool) -> bytes:
    """What the skeleton says of a payload: descriptor, shape, what its coding needs, how it is scanned."""
    coding, shape = stored.coding, b""
    if flat and coding.what != LITERAL:
        shape = varint(stored.dims[0]) + varint(stored.dims[1])
    scan = b""
    if stored.kind & RANGED:
        scan = bytes([_size_bits(stored)]) + varint(stored.width)
    elif stored.kind & SPARSE:
        scan = varint(gaps)
    return bytes([stored.kind]) + shape + coding.head + scan


def _slices(stored: Stored) -> tuple[bytes, bytes]:
    """Its bytes in the values and in the gaps."""
    if stored.kind & RANGED:
        return b"", b""
    if stored.coding.symbols is None:
        return _cut(stored.coding.elements, bool(stored.kind & SPARSE))
    return _cut(stored.symbols.reshape(-1, 1), bool(stored.kind & SPARSE))


def _cut(elements: np.ndarray, sparse: bool) -> tuple[bytes, bytes]:
    """[count, width] -> (planes of all elements or of the nonzeros alone, the gaps between those)."""
    if not sparse:
        return elements.T.tobytes(), b""
    present = np.asarray(elements.any(axis=1))
    return elements[present].T.tobytes(), encode.gaps(present)


def _size_bits(stored: Stored) -> int:
    return encode.size_bits(stored.symbols)


def for_brotli(payload: Payload) -> Stored:
    """The way that brotli makes shortest, as a sample tells."""
    every = list(ways(payload))
    return min(every, key=_brotli_length) if len(every) > 1 else every[0]


def ways(payload: Payload) -> Iterator[Stored]:
    """Every way to store a payload in the brotli stream."""
    for coding in _codings(payload):
        yield from _ways(coding, payload)


def uniform(payload: Payload, flags: int) -> Stored:
    """The first coding that fits, its symbols stored as `flags` say (SPARSE, COLUMNS)."""
    coding = next(_codings(payload))
    return _stored(coding, payload, flags if coding.symbols is not None else 0)


def for_range(payloads: Sequence[Payload], allowance: int, tiny_in_skeleton: bool) -> list[Stored]:
    """Integers range-coded, the smallest tensors first as far as `allowance` goes; what is left as for brotli.

    `tiny_in_skeleton`: whether other payloads of a few bytes are kept there rather than in a stream of their own.
    """
    found: dict[int, Stored] = {}
    for place, payload in sorted(enumerate(payloads), key=lambda each: len(each[1].data)):
        coding = next(_codings(payload))
        symbols = coding.symbols
        if symbols is not None and (cost := len(symbols) * (encode.size_bits(symbols) + 2)) <= allowance:
            allowance -= cost
            found[place] = min(_ranged_ways(coding, payload), key=_ranged_length)
        elif tiny_in_skeleton and len(payload.data) <= TINY:
            found[place] = _stored(literal(payload.data), payload, 0)
        else:
            found[place] = for_brotli(payload)
    return [found[place] for place in range(len(payloads))]


def _codings(payload: Payload) -> Iterator[Coding]:
    return codings(payload.data, payload.dtype, math.prod(payload.dims), len(payload.dims))


def _stored(coding: Coding, payload: Payload, flags: int, width: int = 1) -> Stored:
    symbols = coding.symbols if coding.symbols is not None else np.zeros(0, np.int8)
    dims = (*payload.dims, 1)[0], math.prod(payload.dims[1:])
    if coding.symbols is not None:
        symbols = symbols.reshape(dims)
    return Stored(coding.what | flags, coding, dims, symbols.T if flags & COLUMNS else symbols, width)


def _ways(coding: Coding, payload: Payload) -> Iterator[Stored]:
    """Dense or sparse, by rows or by columns, where that can make a difference."""
    present = np.asarray(coding.elements.any(axis=1) if coding.symbols is None else coding.symbols != 0)
    sparse = len(present) > 0 and np.count_nonzero(present) <= (1 - SPARSE_SHARE) * len(present)
    across = coding.symbols is not None and min(_stored(coding, payload, 0).dims) > 1
    yield _stored(coding, payload, 0)
    if across:
        yield _stored(coding, payload, COLUMNS)
    if sparse:
        yield _stored(coding, payload, SPARSE)
    if sparse and across:
        yield _stored(coding, payload, SPARSE | COLUMNS)


def _ranged_ways(coding: Coding, payload: Payload) -> Iterator[Stored]:
    rows, columns = _stored(coding, payload, 0).dims
    if columns == 1 or rows == 1:
        yield _stored(coding, payload, RANGED | (COLUMNS if columns == 1 else 0))
        return
    yield _stored(coding, payload, RANGED | COLUMNS)
    for width in sorted({1, *_widths(payload.dims)}):
        if width <= columns:
            yield _stored(coding, payload, RANGED, width)


def _widths(dims: Sequence[int]) -> list[int]:
    """How far away the weight above may lie: a kernel's row; for a fully connected layer that of a square image."""
    if len(dims) == 4:
        return [dims[3]]
    side = math.isqrt(math.prod(dims[1:]))
    return [side] if side * side == math.prod(dims[1:]) else []


def _brotli_length(stored: Stored) -> float:
    """Bytes that it takes, as far as a sample of its first rows tells."""
    if stored.coding.what == LITERAL:
        sample, total = stored.coding.head[: 4 * SAMPLE], len(stored.coding.head)
        return len(brotli.compress(sample, quality=_quality(sample))) * total / max(1, len(sample))
    if stored.coding.symbols is None:
        elements = stored.coding.elements[:SAMPLE]
        share = len(elements) / max(1, len(stored.coding.elements))
    else:
        symbols, share = _sample(stored, SAMPLE)
        elements = symbols.reshape(-1, 1)
    streams = b"".join(_cut(elements, bool(stored.kind & SPARSE)))
    return len(stored.coding.head) + len(brotli.compress(streams, quality=_quality(streams))) / share


def _quality(data: bytes) -> int:
    return 11 if len(data) <= 4096 else 9


def _ranged_length(stored: Stored) -> float:
    symbols, share = _sample(stored, RANGED_SAMPLE)
    return encode.ranged_length(symbols, stored.width) / share


def _sample(stored: Stored, size: int) -> tuple[np.ndarray, float]:
    """The first rows with some `size` symbols, and their share of all."""
    rows = max(1, size // max(1, stored.symbols.shape[-1])) if stored.symbols.ndim == 2 else 0
    return stored.symbols[:rows], min(1.0, rows / max(1, len(stored.symbols)))
