"""The packer's half of the streams: gaps and values for brotli, bits for the range coder.

The range coder's models are the decoder's own: the parser runs over what is being packed, and the coder that it asks
for each bit is an encoder that knows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from packing.decode import WeightModel

ESCAPE = 255


class RangeEncoder:
    """A `decode.Coder` that writes the bits it is given, in order: `data` is complete after `finish`."""

    def __init__(self, bits: Iterable[int]) -> None:
        self.bits: Iterator[int] = iter(bits)
        self.low, self.high = 0, 0xFFFFFFFF
        self.data = bytearray()

    def bit(self, chance: int) -> int:
        """Write the next bit and return it."""
        bit = next(self.bits)
        middle = self.low + ((self.high - self.low) * chance >> 16)
        if bit:
            self.high = middle
        else:
            self.low = middle + 1
        while (self.low ^ self.high) < 1 << 24:
            self.data.append(self.high >> 24)
            self.low, self.high = self.low << 8 & 0xFFFFFFFF, self.high << 8 & 0xFFFFFFFF | 255
        return bit

    def finished(self) -> bool:
        """Whether every bit is written."""
        return next(self.bits, None) is None

    def finish(self) -> bytes:
        """The stream: closed by the number between the bounds with the most zeros at its end, and without those."""
        for kept in range(5):
            value = self.high >> 8 * (4 - kept) << 8 * (4 - kept)
            if value >= self.low:
                break
        return (bytes(self.data) + value.to_bytes(4, "big")).rstrip(b"\0")


def bits_of_bytes(data: bytes) -> list[int]:
    """The bits of each byte, the highest first."""
    found: list[int] = np.unpackbits(np.frombuffer(data, np.uint8)).tolist()
    return found


def bits_of_weights(matrix: np.ndarray, size_bits: int) -> list[int]:
    """int [rows, columns] -> the decisions that `decode.WeightModel` makes: zero or not, sign, size less 1."""
    found = list[int]()
    for value in matrix.flatten().tolist():
        if not value:
            found.append(0)
            continue
        size = abs(value) - 1
        found += [1, int(value < 0), *(size >> place & 1 for place in range(size_bits - 1, -1, -1))]
    return found


def size_bits(symbols: np.ndarray) -> int:
    """How many bits the largest size less 1 takes: 0 for -1, 0 and 1."""
    return int(max(1, np.abs(symbols.astype(np.int16)).max(initial=0)) - 1).bit_length()


def ranged_length(matrix: np.ndarray, width: int) -> int:
    """Bytes that the matrix alone takes range-coded, with a model that has seen nothing."""
    bits, (rows, columns) = size_bits(matrix), matrix.shape
    encoder = RangeEncoder(bits_of_weights(matrix, bits))
    WeightModel().matrix(encoder, rows, columns, width, bits)
    return len(encoder.finish())


def gaps(present: np.ndarray) -> bytes:
    """bool [count] -> the zeros before each that is present, one byte each, with 255 for 255 more."""
    zeros = np.diff(np.flatnonzero(present), prepend=-1) - 1
    escapes = zeros // ESCAPE
    stored = np.full(len(zeros) + int(escapes.sum()), ESCAPE, np.uint8)
    stored[np.cumsum(escapes + 1) - 1] = zeros % ESCAPE
    return stored.tobytes()
