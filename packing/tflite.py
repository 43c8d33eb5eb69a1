"""Where a LiteRT file keeps its weights: just enough of the flatbuffer format to find them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

# TFLite's TensorType -> NumPy's name of what its buffer holds; what is missing here is kept as it is.
DTYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 7: "int16", 9: "int8", 10: "float64"}
DTYPES |= {12: "uint64", 15: "uint32", 16: "uint16", 17: "int4"}


class NotAFlatbufferError(ValueError):
    """Bytes that are no LiteRT file, or offsets in it that lead nowhere."""


@dataclass(frozen=True)
class Stretch:
    """`length` bytes from `offset` are a tensor's; `dtype` and `dims` as in `onnx_tree.Payload`."""

    offset: int
    length: int
    dtype: str
    dims: tuple[int, ...]


def is_tflite(file: bytes) -> bool:
    """Whether the file says of itself that it is a LiteRT file."""
    return file[4:8] == b"TFL3"


def stretches(file: bytes) -> list[Stretch]:
    """The weights and quantization scales in the file, in order of their place, none over another.

    Raises NotAFlatbufferError for a file that cannot be read.
    """
    try:
        found = _found(_Table(file, _u32(file, 0)))
    except (struct.error, IndexError, OverflowError) as error:
        raise NotAFlatbufferError(str(error)) from None
    end, apart = 0, list[Stretch]()
    for stretch in sorted(found, key=lambda s: (s.offset, -s.length)):
        if stretch.length and end <= stretch.offset and stretch.offset + stretch.length <= len(file):
            apart.append(stretch)
            end = stretch.offset + stretch.length
    return apart


def _found(model: _Table) -> list[Stretch]:
    meaning: dict[int, tuple[str, tuple[int, ...]]] = {}
    found = []
    for graph in model.tables(2):
        for tensor in graph.tables(0):
            meaning[tensor.number(2)] = DTYPES.get(tensor.byte(1), ""), tensor.shape(0)
            for quantization in tensor.table(4):
                offset, count = quantization.vector(2)
                found.append(Stretch(offset, 4 * count, "float32", (count,)))
    for index, buffer in enumerate(model.tables(4)):
        offset, length = buffer.vector(0)
        dtype, dims = meaning.get(index, ("", (length,)))
        found.append(Stretch(offset, length, dtype, dims))
    return found


def _u32(data: bytes, at: int) -> int:
    value: int = struct.unpack_from("<I", data, at)[0]
    return value


class _Table:
    """A flatbuffer's table: fields by number, found through its vtable."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at
        self.vtable = at - struct.unpack_from("<i", data, at)[0]
        self.fields = (struct.unpack_from("<H", data, self.vtable)[0] - 4) // 2

    def _place(self, field: int) -> int:
        if field >= self.fields:
            return 0
        offset: int = struct.unpack_from("<H", self.data, self.vtable + 4 + 2 * field)[0]
        return self.at + offset if offset else 0

    def byte(self, field: int) -> int:
        place = self._place(field)
        return self.data[place] if place else 0

    def number(self, field: int) -> int:
        place = self._place(field)
        return _u32(self.data, place) if place else 0

    def vector(self, field: int) -> tuple[int, int]:
        """(where its first element lies, how many there are)."""
        place = self._place(field)
        if not place:
            return 0, 0
        start = place + _u32(self.data, place)
        return start + 4, _u32(self.data, start)

    def shape(self, field: int) -> tuple[int, ...]:
        start, count = self.vector(field)
        shape: tuple[int, ...] = struct.unpack_from(f"<{count}i", self.data, start)
        return shape

    def table(self, field: int) -> list[_Table]:
        """The table that the field refers to, if it does."""
        place = self._place(field)
        return [_Table(self.data, place + _u32(self.data, place))] if place else []

    def tables(self, field: int) -> list[_Table]:
        start, count = self.vector(field)
        if 4 * count > len(self.data):
            raise IndexError("a vector is longer than the file")
        return [_Table(self.data, at + _u32(self.data, at)) for at in range(start, start + 4 * count, 4)]
