"""An ONNX file as the tree that `decode.Parser` puts together: its fields in order, lengths left out, weights apart."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from packing.decode import DEPTH_LIMIT, MODEL, NESTED, QUOTED, REFERENCE, TENSOR, PackError, varint

# ONNX's TensorProto.DataType -> NumPy's name of what its bytes hold; what is missing here is kept as it is.
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "uint8"}
DTYPES |= {10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "uint16", 21: "int4", 22: "int4"}
DTYPES |= {17: "uint8", 18: "uint8", 19: "uint8", 20: "uint8"}  # the eight-bit floats


@dataclass(frozen=True)
class Payload:
    """A tensor's bytes; `dtype` as NumPy spells it, or int4 (two to a byte), or "" when it is not known."""

    data: bytes
    dtype: str
    dims: tuple[int, ...]


Pieces = list[bytes | Payload]
Quotable = dict[tuple[int, bytes], int]
REFERENCE_PAYLOAD = 5  # bytes of each in the reference: a descriptor, a float16 step, bits, width


class NotATreeError(ValueError):
    """Bytes that are no protobuf message, or one that the tree cannot stand for."""


def tree(file: bytes, quoting: bool) -> Pieces:
    """The skeleton in pieces with the payloads between them; raises NotATreeError for anything but an ONNX model.

    `quoting`: whether fields that the reference has too are quoted from it. A message that is written in an unusual way
    (numbers longer than needed) gives another file when it is put together again: the packer compares.
    """
    try:
        return _joined(_message(memoryview(file), MODEL, 0, _quotable() if quoting else {})[0])
    except (IndexError, PackError) as error:
        raise NotATreeError(str(error)) from None


def _message(view: memoryview, kind: int, depth: int, quotable: Quotable) -> tuple[Pieces, bytes | None]:
    """(the message with quotations, the same without them or None where it has payloads)."""
    if depth > DEPTH_LIMIT:
        raise NotATreeError("its messages are nested too deeply")
    pieces, raw, at, dims, dtype = Pieces(), list[bytes | None](), 0, list[int](), ""
    while at < len(view):
        tag, at = _number(view, at)
        field, wire = tag >> 3, tag & 7
        if not field or wire not in (0, 1, 2, 5):
            raise NotATreeError(f"a field has the number {field} and the wire type {wire}")
        start, value = at, 0
        if wire in (0, 2):
            value, at = _number(view, at)
        end = at + {0: 0, 1: 8, 2: value, 5: 4}[wire]
        if end > len(view):
            raise NotATreeError("a field is longer than its message")
        whole: bytes | None = bytes(view[start:end])
        inside: Pieces = [bytes(view[start:end])]
        if wire == 2 and (kind, field) in NESTED:
            inside, whole = _message(view[at:end], NESTED[kind, field], depth + 1, quotable)
        elif wire == 2 and kind == TENSOR and field in (4, 9):
            inside, whole = [Payload(bytes(view[at:end]), dtype, tuple(dims))], None
        raw.append(None if whole is None else varint(tag) + whole)
        place = quotable.get((kind, raw[-1] or b""), 0)
        quotation = varint(place << 3 | QUOTED)
        pieces += [quotation] if place and len(quotation) < len(raw[-1] or b"") else [varint(tag), *inside]
        at = end
        if (kind, field) == (TENSOR, 1):
            dims.append(value)
        elif (kind, field) == (TENSOR, 2):
            dtype = DTYPES.get(value, "")
    known = [part for part in raw if part is not None]
    return [*pieces, b"\0"], b"".join([*known, b"\0"]) if len(known) == len(raw) else None


@functools.cache
def _quotable() -> Quotable:
    """(kind of message, field as it is stored) -> where it stands in the reference."""
    found: Quotable = {}
    end = _fields(0, MODEL, found)
    assert end == len(REFERENCE)
    return found


def _fields(at: int, kind: int, found: Quotable) -> int:
    """Note the fields of the reference's message that starts at `at`; returns where it ends."""
    view = memoryview(REFERENCE)
    while view[at]:
        start = at
        tag, at = _number(view, at)
        field, wire = tag >> 3, tag & 7
        if wire == 2 and (kind, field) in NESTED:
            at = _fields(at, NESTED[kind, field], found)
        elif wire == 2 and kind == TENSOR and field == 9:
            at += REFERENCE_PAYLOAD
            continue
        else:
            value, at = _number(view, at) if wire in (0, 2) else (0, at)
            at += {0: 0, 1: 8, 2: value, 5: 4}[wire]
        found.setdefault((kind, REFERENCE[start:at]), start)
    return at + 1


def _number(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        byte = view[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise NotATreeError("a number does not end")


def _joined(pieces: Pieces) -> Pieces:
    """Neighbouring bytes as one piece."""
    joined: Pieces = []
    gathered: list[bytes] = []
    for piece in _then_end(pieces):
        if isinstance(piece, bytes):
            gathered.append(piece)
            continue
        if gathered:
            joined.append(b"".join(gathered))
            gathered = []
        if piece is not None:
            joined.append(piece)
    return joined


def _then_end(pieces: Pieces) -> Iterator[bytes | Payload | None]:
    yield from pieces
    yield None
