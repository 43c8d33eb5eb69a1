"""Unpacks `model.pare`: one file that needs NumPy and brotli only, to be copied into any project.

    python decode.py model.pare model.onnx

docs/format.md describes the format precisely enough to port it; deploy/c/pare_decode.c is the same in C.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import mul
from pathlib import Path
from typing import Protocol

import numpy as np

MAGIC, VERSION = b"\x97PR", 1
BROTLI, RANGE, SKELETON, TREE = 1, 2, 4, 8  # flags: which streams there are; the skeleton is range-coded; is a tree
RANGE_LIMIT = 1 << 22  # decisions of one file's range coder, as `Source.allow` counts them: microseconds each
DEPTH_LIMIT, RANK_LIMIT = 32, 32
SLOTS = 1024
QUOTED = 3  # a wire type that ONNX does not use: a field of the reference, which starts where the tag says
# What a payload's elements are (low three bits of its descriptor), and how they are stored (the next three).
LITERAL, INT8, STEP16, STEP32, PALETTE, NIBBLES, PLANES, HALF = range(8)
SPARSE, COLUMNS, RANGED = 8, 16, 32
# Messages of ONNX in which others are nested: (kind of message, field) -> kind of the one inside.
LEAF, MODEL, GRAPH, NODE, ATTRIBUTE, TENSOR, VALUE, TYPE, TENSOR_TYPE, SHAPE, FUNCTION, SPARSE_TENSOR = range(12)
NESTED = {
    (MODEL, 7): GRAPH, (MODEL, 8): LEAF, (MODEL, 14): LEAF, (MODEL, 25): FUNCTION,
    (GRAPH, 1): NODE, (GRAPH, 5): TENSOR, (GRAPH, 11): VALUE, (GRAPH, 12): VALUE, (GRAPH, 13): VALUE,
    (GRAPH, 14): LEAF, (GRAPH, 15): SPARSE_TENSOR, (NODE, 5): ATTRIBUTE, (ATTRIBUTE, 5): TENSOR,
    (ATTRIBUTE, 6): GRAPH, (ATTRIBUTE, 10): TENSOR, (ATTRIBUTE, 11): GRAPH, (VALUE, 2): TYPE, (TYPE, 1): TENSOR_TYPE,
    (TENSOR_TYPE, 2): SHAPE, (SHAPE, 1): LEAF, (FUNCTION, 7): NODE, (FUNCTION, 9): LEAF,
    (SPARSE_TENSOR, 1): TENSOR, (SPARSE_TENSOR, 2): TENSOR,
}  # fmt: skip
# What the model of range-coded skeletons has read before it starts: the skeleton of a small ONNX file.
REFERENCE = base64.b85decode(
    b"2nsq13ITKy0d*n?RB~Z%b8v5SWhx2;aAk6BKmb4jKmkAlpaBN}0165LbqWD?5&?H22U2BoXkl<=0165LcM1V`5&?N422EjfO?7Ml3JL*v5&?Q52U"
    b"BlmbZudHDhdQ)cxiJO|NsC0|NsC0{{f%@0ssIC3ITcw0YM4@LJ|Q(A`(ntd1Z1=Z*py6Y-xI7bZKvHDhdQ)cxiJO|NsC0|NsC0{{f%@0stxs2W4<"
    b"`X>4z96|BW4H=qFl000UK0YeG_L=pi-A_hlcbZBLADhdQ)cxiJO0iXc_000UK0YwS{MiK!>A_hZmZew9|DhdQ)cxiJO0iXc_000UK0Y?%6NFoPQX"
    b"=iP3X=DHj3IRt70Z0-7Ng@MHb!-3%3IRz90ZIx1OA-N0A_PNhX>b4v3IR+C0Zj@4P6`1}3IR|O0Z}3nLSb}cXijf(ZDDL_dSP^FZ*Bkz3IS0P0a7"
    b"9hL3U+wVP|DfZ*OcW3Jhyya&Bd8Uvp?-aAiOOKmwov2LLJx2Xl0CX=G({KmtGlpaBN}0165LVG03a5&=^p5JY8hbzyFFX?kT$X>Mg<asUbn0b>dQ"
    b"WD)^XA`nDnadlyCbZL5JOlfXqVR8Tp3IS9K0c8pSW)cBaA`Ve?VQzG3dSy&$Ze?L|0165LRSE%R3IS#k0ahXqL}hVxVQzG3dSy&$Ze?L|0165LRt"
    b"f=U3IS*m0aqdfLvL<&DhdT>a&L8T7!aTV0stxs1aM(wb3g$=0YCvj0iXc~04fRxb98cPWMy+e0zd+w0S5p83JL*N5&>8u1X5*ebpQ$q0aywFX$k>"
    b"q5&>Bv1Ve9bb}9-4aA9O~KmkAjKmkAjpaBN}0165LSqcGI5&>Ew13_eD0165LS`q?bVIl-lWo&f-3JL;YVG;siVj>YoY;R&=Y(aKqa$#p>P;YN+0"
    b"165MVPX;jVPhf(Mr>hpbY*S;3JL;YV+sLd3ISvi25)tAaCLMd1V?3UZ7K=|baG*Cb3zyapaB8^0165PX>M?JbP54s3ISpg0cj!xLvL<&0165LX%Y"
    b"cyA_P)pY;^z%3IS>o0c#=$O<{OYZ*OcW3Jhyya&Bd8Uvp?-aAiOOKmwov2LLJx2Xl0CX=G({KmtGlpaBN}0165LYYG8l3ISvi0c;`!LvL<&0165L"
    b"Y!U%&A_P)pY;^z%3IS~r0d67(O<{OYZ*OcW3Jhyya&Bd8Uvp?-aAiOOKmwov2LLJx2Xl0CX=G({KmtGlpaBN}0165LZV~}+A_qonVRUq5ZU71j0d"
    b"EQcWeNdi5&>``1V?3UZ7K=|baG*Cb3zyapaB8^0165La1sG=A_P)pY;^z%3ITBn0cQ#UXc7i&Z)a(Ab0P#sWo>OL3I=p?VQzCm7y+OG0ssIK0cR="
    b"*5C{PX0|)~U0YU*`N+JL+0s#Oj2oMkfLIGk*G5{<D0RSopAP5i$0|)~U0YU*|N+JL+0s#Oj2p|vvLIGq-G5{<D0RSopKnQ>W5CK8~WlACdF9HDoD"
    b"hNOj0YU+0N-_W}1OWgl2nq;55CK8~XG$UfF9HDoDhLV?0YU+2N-_W}1OWhA3I%CyaCLMN3J3ub3K9ikVRU0?015~L015~o015~o000000AdOTY;R"
    b"|2baN642mulb5(Q#mbYo}$3J3}S000000741?5E1|Y"
)
_REFERENCE = memoryview(REFERENCE)


class PackError(ValueError):
    """A packed file that cannot be unpacked; the message says what is wrong with it."""


def damaged(what: str) -> PackError:
    """The error of a file whose bytes are not those that were written."""
    return PackError(f"the packed file is damaged: {what}")


@dataclass(frozen=True)
class Header:
    """`digest`: the first 8 bytes of the unpacked file's sha256; `size`: its length; `brotli`, `range`: the streams."""

    flags: int
    digest: bytes
    size: int
    brotli: bytes
    range: bytes


def read_header(data: bytes) -> Header:
    """The header of a packed file; raises PackError for bytes that are not one, or of another version."""
    if data[:3] != MAGIC:
        raise PackError("not a packed model: its first bytes are not 97 50 52")
    if len(data) < 13:
        raise damaged(f"it ends in its header, after {len(data)} bytes")
    version, flags = data[3] >> 4, data[3] & 15
    if version != VERSION:
        raise PackError(f"format version {version} is not known; this decoder reads version {VERSION}")
    size, at = _varint_at(data, 12)
    end = len(data) if flags & BROTLI else at
    if flags & BROTLI and flags & RANGE:
        length, at = _varint_at(data, at)
        end = at + length
    if not flags & (BROTLI | RANGE) or flags & (SKELETON | RANGE) == SKELETON or end > len(data):
        raise damaged(f"flags {flags} or a stream's length are not valid")
    return Header(flags, data[4:12], size, data[at:end], data[end:])


def unpack(data: bytes, limit: int | None = None) -> bytes:
    """The very file that was packed. Raises PackError when the bytes are damaged, of another version or too large.

    `limit`: the most bytes that the file may have; left out, 64 MiB or 64 times the packed file, whichever is more.
    Time and memory stay within a small multiple of it, whatever the bytes say.
    """
    header = read_header(data)
    limit = max(64 << 20, 64 * len(data)) if limit is None else limit
    if header.size > limit:
        raise PackError(f"the unpacked file would have {header.size:,} bytes and the limit is {limit:,}: raise limit=")
    plain = _decompress(header.brotli, header.size) if header.flags & BROTLI else b""
    coder = RangeDecoder(header.range) if header.flags & RANGE else None
    found = Parser(Source(plain, coder, header.flags), header.size).parse()
    if hashlib.sha256(found).digest()[:8] != header.digest:
        raise damaged("the sha256 of what it unpacks to is another than the file's that was packed")
    return found


def _decompress(stream: bytes, size: int) -> bytes:
    """The brotli stream's content, at most `size` + 64 KiB, piece by piece so that a bomb never unfolds."""
    import brotli  # a file that is all range-coded needs none

    decompressor, pieces, left = brotli.Decompressor(), list[bytes](), size + (64 << 10)
    try:
        while not decompressor.is_finished():
            piece = decompressor.process(stream, output_buffer_limit=1 << 20)
            stream, left = b"", left - len(piece)
            pieces.append(piece)
            if left < 0 or not (piece or decompressor.is_finished()):
                raise damaged("its brotli stream is longer than what it stands for" if left < 0 else "it ends early")
    except brotli.error as error:
        raise damaged(str(error)) from None
    return b"".join(pieces)


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    """(the number at `at`, where it ends): seven bits a byte, the lowest first, 128 added while more follow."""
    value = 0
    for place, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise damaged("a number does not end")


def varint(value: int) -> bytes:
    """The bytes that `_varint_at` reads as `value`, which is not negative."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


class Parser:
    """Puts the file together again: a tree of ONNX messages, or stretches of any file with payloads between them."""

    def __init__(self, source: Source, size: int) -> None:
        self.source, self.left = source, size
        self.chunks: list[bytes] = []

    def parse(self) -> bytes:
        """The whole file; raises PackError when its length is not `size` or a stream is not used up."""
        if self.source.flags & TREE:
            self.message(MODEL, 0)
        while self.left and not self.source.flags & TREE:
            self.put(self.literal(1))
            if self.left:
                self.put(self.payload(2, None))
        if self.left or not self.source.finished():
            raise damaged(f"{self.left} bytes are missing, or some were not used")
        return b"".join(self.chunks)

    def put(self, chunk: bytes) -> int:
        """Append to the file; returns the chunk's length."""
        self.left -= len(chunk)
        if self.left < 0:
            raise damaged("it holds more than it says")
        self.chunks.append(chunk)
        return len(chunk)

    def message(self, kind: int, depth: int) -> int:
        """A message with what is nested in it, up to a tag of 0; returns its length, which is counted, not stored."""
        if depth > DEPTH_LIMIT:
            raise damaged("its messages are nested too deeply")
        length, field, dims = 0, 0, list[int]()
        while tag := self.source.varint(kind << 6 | min(field, 31)):
            if tag & 7 == QUOTED:
                with self.source.reference(tag >> 3):
                    tag = self.source.varint(0)
                    length += self.field(kind, tag, dims, depth)
            else:
                length += self.field(kind, tag, dims, depth)
            field = tag >> 3
        return length

    def field(self, kind: int, tag: int, dims: list[int], depth: int) -> int:
        """What follows a tag in a message; returns its length. A tensor's `dims` are gathered for its payload."""
        field, wire, length = tag >> 3, tag & 7, self.put(varint(tag))
        slot = kind << 6 | 32 | min(field, 31)
        if wire == 0:
            value = self.source.varint(slot)
            if (kind, field) == (TENSOR, 1):
                dims.append(value)
            return length + self.put(varint(value))
        if wire == 2 and (kind, field) in NESTED:
            place = len(self.chunks)
            self.put(b"")
            inside = self.message(NESTED[kind, field], depth + 1)
            self.chunks[place] = varint(inside)
            self.left -= len(self.chunks[place])
            return length + inside + len(self.chunks[place])
        if wire == 2:
            text = self.payload(slot, dims) if kind == TENSOR and field in (4, 9) else self.literal(slot)
            return length + self.put(varint(len(text))) + self.put(text)
        if wire not in (1, 5):
            raise damaged(f"a message has no wire type {wire}")
        return length + self.put(self.source.take(8 if wire == 1 else 4, slot))

    def literal(self, slot: int) -> bytes:
        """A length and as many bytes."""
        return self.source.take(self.source.varint(slot), slot)

    def payload(self, slot: int, dims: Sequence[int] | None) -> bytes:
        """A tensor's bytes. `dims`: its shape where the skeleton says it; None where rows and columns are stored."""
        source, kind = self.source, self.source.byte(slot)
        what = kind & 7
        if what == LITERAL:
            return self.literal(slot)
        if dims is not None and len(dims) > RANK_LIMIT:
            raise damaged(f"a tensor has {len(dims)} axes")
        rows, columns = ((*dims, 1)[0], math.prod(dims[1:])) if dims is not None else source.pair(slot)
        width = source.byte(slot) if what in (PALETTE, PLANES) else 1
        bits = {STEP16: 32, STEP32: 32, NIBBLES: 4, HALF: 32}.get(what, 8 * width)
        if kind > 63 or width not in (1, 2, 4, 8) or not 0 < rows * columns * bits <= 8 * self.left + 4:
            raise damaged(f"a payload of {rows} x {columns} elements of {bits} bits, described by {kind}")
        if what in (PLANES, HALF):
            raw = source.planes(kind, rows * columns, width if what == PLANES else 2, slot)
            return np.frombuffer(raw, "<f2").astype("<f4").tobytes() if what == HALF else raw
        step = source.take({STEP16: 2, STEP32: 4}.get(what, 0), slot)
        palette = source.take((source.byte(slot) + 1) * width, slot) if what == PALETTE else b""
        symbols = source.symbols(kind, rows, columns, slot)
        if what == NIBBLES:
            low = np.append(symbols, np.zeros(len(symbols) % 2, np.int8)).view(np.uint8) & 15
            return (low[0::2] | low[1::2] << 4).tobytes()
        if what == PALETTE:
            chosen, entries = symbols.view(np.uint8), np.frombuffer(palette, f"V{width}")
            if chosen.max(initial=0) >= len(entries):
                raise damaged("an index lies outside its palette")
            return entries[chosen].tobytes()
        if what == INT8:
            return symbols.tobytes()
        return (symbols.astype("<f4") * np.frombuffer(step, "<f2" if what == STEP16 else "<f4").astype("<f4")).tobytes()


class Coder(Protocol):
    """What the models read from: a RangeDecoder; while packing an encoder, while priming the reference's own bits."""

    def bit(self, chance: int) -> int:
        """The next bit, which is 1 with probability `chance` / 65536."""
        ...

    def finished(self) -> bool:
        """Whether nothing is left."""
        ...


class Source:
    """Where the parser reads from: the brotli stream's content (skeleton, values, gaps), the range coder, or both."""

    def __init__(self, plain: bytes, coder: Coder | None, flags: int, text: TextModel | None = None) -> None:
        self.coder, self.flags = coder, flags
        self.parts, self.at = [memoryview(b"")] * 3, [0, 0, 0]
        if flags & BROTLI:
            skeleton, at = _varint_at(plain, 0)
            values, at = _varint_at(plain, at)
            if at + skeleton + values > len(plain):
                raise damaged("its brotli stream is shorter than its parts")
            view, values = memoryview(plain)[at:], skeleton + values
            self.parts = [view[:skeleton], view[skeleton:values], view[values:]]
        self.text = text or (TextModel.primed() if flags & SKELETON else None)
        self.weights, self.allowance = None if isinstance(coder, _Given) else WeightModel(), RANGE_LIMIT

    def finished(self) -> bool:
        """Whether every stream is used up."""
        return self.at == [len(part) for part in self.parts] and (self.coder is None or self.coder.finished())

    def cut(self, part: int, length: int) -> bytes:
        """The next bytes of the brotli stream's skeleton (0), values (1) or gaps (2)."""
        start = self.at[part]
        self.at[part] += length
        if self.at[part] > len(self.parts[part]):
            raise damaged("one of its parts ends early")
        return bytes(self.parts[part][start : self.at[part]])

    @contextlib.contextmanager
    def reference(self, start: int) -> Iterator[None]:
        """Read from the reference for a while: a field that it has too is quoted."""
        kept = self.parts[0], self.at[0]
        if self.flags & SKELETON or self.parts[0] is _REFERENCE:
            raise damaged("a field is quoted where none can be")
        self.parts[0], self.at[0] = _REFERENCE, start
        yield
        self.parts[0], self.at[0] = kept

    def byte(self, slot: int) -> int:
        """The skeleton's next byte; `slot` says where in which message, for the model."""
        return self.take(1, slot)[0]

    def take(self, length: int, slot: int) -> bytes:
        """The skeleton's next bytes."""
        if self.text is None or self.coder is None:
            return self.cut(0, length)
        self.allow(64 * length)
        return bytes([self.text.byte(self.coder, slot) for _ in range(length)])

    def varint(self, slot: int) -> int:
        """The number that is next in the skeleton."""
        value = 0
        for place in range(10):
            byte = self.byte(slot)
            value |= (byte & 127) << 7 * place
            if byte < 128:
                return value
        raise damaged("a number does not end")

    def pair(self, slot: int) -> tuple[int, int]:
        """Rows and columns."""
        return self.varint(slot), self.varint(slot)

    def symbols(self, kind: int, rows: int, columns: int, slot: int) -> np.ndarray:
        """int8 [rows * columns], row by row: a payload's integers."""
        count = rows * columns
        shape = (columns, rows) if kind & COLUMNS else (rows, columns)
        if kind & RANGED:
            bits, width = self.byte(slot), self.varint(slot)
            if bits > 7 or not 0 < width <= max(1, columns) or self.coder is None:
                raise damaged(f"weights of {bits} bits cannot be range-coded with neighbours {width} columns away")
            self.allow(count * (bits + 2))
            drawn = self.weights.matrix(self.coder, *shape, width, bits) if self.weights else [0] * count
            found = np.array(drawn, np.int64).astype(np.int8)
        elif kind & SPARSE:
            found, places = np.zeros(count, np.int8), self.places(count, slot)
            found[places] = np.frombuffer(self.cut(1, len(places)), np.int8)
        else:
            found = np.frombuffer(self.cut(1, count), np.int8)
        return found.reshape(shape).T.flatten() if kind & COLUMNS else found

    def planes(self, kind: int, count: int, width: int, slot: int) -> bytes:
        """Elements of `width` bytes, which are stored byte by byte: all first bytes, then all second ones."""
        places = self.places(count, slot) if kind & SPARSE else np.arange(count)
        found = np.zeros((count, width), np.uint8)
        found[places] = np.frombuffer(self.cut(1, len(places) * width), np.uint8).reshape(width, -1).T
        return found.tobytes()

    def places(self, count: int, slot: int) -> np.ndarray:
        """int64, ascending: where the nonzeros are, from the zeros before each; a byte of 255 is 255 zeros and more."""
        gaps = np.frombuffer(self.cut(2, self.varint(slot)), np.uint8)
        last = gaps < 255
        places: np.ndarray = np.cumsum(np.where(last, gaps.astype(np.int64) + 1, 255))[last] - 1
        if len(places) and places[-1] >= count:
            raise damaged("a weight lies outside its tensor")
        return places

    def allow(self, decisions: int) -> None:
        """Count what is range-coded; raises PackError when it is more than any packer writes."""
        self.allowance -= decisions
        if self.allowance < 0:
            raise damaged(f"more than {RANGE_LIMIT:,} decisions are range-coded")


class RangeDecoder:
    """A binary arithmetic decoder with 32-bit bounds, as in lpaq (Mahoney, 2007)."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 4
        self.low, self.high, self.value = 0, 0xFFFFFFFF, int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def bit(self, chance: int) -> int:
        """The next bit, which is 1 with probability `chance` / 65536. Zeros follow the last byte without end."""
        low, high = self.low, self.high
        middle = low + ((high - low) * chance >> 16)
        found = int(self.value <= middle)
        low, high = (low, middle) if found else (middle + 1, high)
        while (low ^ high) < 1 << 24:
            following = self.data[self.at] if self.at < len(self.data) else 0
            self.value = (self.value << 8 | following) & 0xFFFFFFFF
            low, high = low << 8 & 0xFFFFFFFF, high << 8 & 0xFFFFFFFF | 255
            self.at += 1
        self.low, self.high = low, high
        return found

    def finished(self) -> bool:
        """Whether every byte was used; an encoder leaves out zeros at the end."""
        return self.at >= len(self.data) and self.data[-1:] != b"\0"


def _squash_table() -> list[int]:
    """Probability * 65536 at each of 4096 log odds from -8 to 8: straight lines between 33 points of the logistic."""
    points = [22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743]
    points += [32768, *(65536 - p for p in reversed(points))]
    return [points[i >> 7] + ((points[(i >> 7) + 1] - points[i >> 7]) * (i & 127) >> 7) for i in range(4096)]


def _stretch_table() -> list[int]:
    """The inverse: log odds * 256, -2047 to 2047, at each of 4096 probabilities."""
    table, at = [], 0
    for chance in range(0, 65536, 16):
        while at < 4095 and SQUASH[at] < chance:
            at += 1
        table.append(max(-2047, at - 2048))
    return table


SQUASH = _squash_table()
STRETCH = _stretch_table()
COUNT_LIMIT = 255
RATE = [65536 * 2 // (2 * n + 3) for n in range(COUNT_LIMIT + 1)]  # 1 / (n + 1.5)
LEVEL = [min(i, 4) if i < 5 else 2 * i.bit_length() - 2 + (i >> i.bit_length() - 2 & 1) for i in range(65)]


class Mixer:
    """Predicts bits: each context has a probability of its own, and these are added as weighted log odds.

    Logistic mixing as in paq and lpaq (Mahoney, 2005), in whole numbers only, so that every machine does the same.
    """

    def __init__(self, contexts: int, inputs: int, weight: int) -> None:
        self.chance, self.count = [32768] * contexts, [0] * contexts
        self.weights = [weight] * inputs

    def bit(self, coder: Coder, contexts: Sequence[int]) -> int:
        """The next bit, given one context per input."""
        chances, counts, weights = self.chance, self.count, self.weights
        inputs = [STRETCH[chances[c] >> 4] for c in contexts]
        mixed = sum(map(mul, weights, inputs)) >> 16
        chance = SQUASH[2048 + (mixed if -2048 < mixed < 2048 else 2047 if mixed > 0 else -2047)]
        bit = coder.bit(chance)
        error = (bit << 16) - chance
        for place, c in enumerate(contexts):
            weights[place] += inputs[place] * error + 16384 >> 15
            count = counts[c]
            if bit:
                chances[c] += (65535 - chances[c]) * RATE[count] >> 16
            else:
                chances[c] -= chances[c] * RATE[count] >> 16
            if count < COUNT_LIMIT:
                counts[c] = count + 1
        return bit


_PRIMED: list[TextModel] = []


class TextModel:
    """Bytes of a skeleton, by the bytes before them, their place in which message, and what was there before."""

    INPUTS = 6

    def __init__(self) -> None:
        self.mixer = Mixer(self.INPUTS << 16, self.INPUTS, 20000)
        self.last, self.there = 0, [0] * SLOTS  # the four last bytes; the two last ones of each slot

    @staticmethod
    def primed() -> TextModel:
        """A model that has read the reference: a copy of the first one made."""
        if not _PRIMED:
            _PRIMED.append(TextModel())
            Parser(Source(b"", _Given(REFERENCE), SKELETON, _PRIMED[0]), 1 << 20).message(MODEL, 0)
        made, read = TextModel(), _PRIMED[0]
        made.last, made.there = read.last, read.there[:]
        made.mixer.chance, made.mixer.count = read.mixer.chance[:], read.mixer.count[:]
        made.mixer.weights = read.mixer.weights[:]
        return made

    def byte(self, coder: Coder, slot: int) -> int:
        """The next one, the highest bit first."""
        last, there = self.last, self.there[slot]
        seen = (slot, slot << 8 | last & 255, last & 0xFFFF, slot << 24 | last & 0xFFFFFF, last, slot << 16 | there)
        bases = [(place + 1) * 0x3C6EF372 + context * 0x2545F491 for place, context in enumerate(seen)]
        node = 1
        while node < 256:
            step = node * 0x9E3779B1
            contexts = [(base + step & 0xFFFFFFFF) >> 16 | place << 16 for place, base in enumerate(bases)]
            node = node << 1 | self.mixer.bit(coder, contexts)
        self.last = (last << 8 | node & 255) & 0xFFFFFFFF
        self.there[slot] = (there << 8 | node & 255) & 0xFFFF
        return node & 255


class _Given:
    """A coder for priming: the bits of bytes that are known."""

    def __init__(self, data: bytes) -> None:
        self.bits = iter([byte >> shift & 1 for byte in data for shift in range(7, -1, -1)])

    def bit(self, chance: int) -> int:
        return next(self.bits)

    def finished(self) -> bool:
        return True


class WeightModel:
    """Small integers of matrices: whether one is zero, its sign, its size, by the density of its row and column so
    far and by its neighbours; what is learned of one matrix serves the next.
    """

    def __init__(self) -> None:
        self.present, self.sign, self.size = Mixer(656, 5, 16000), Mixer(22, 4, 16000), Mixer(12416, 4, 16000)

    def matrix(self, coder: Coder, rows: int, columns: int, width: int, bits: int) -> list[int]:
        """Row by row; `width`: how many columns away the neighbour above lies in an image; sizes are 1 to 2^bits."""
        pad = width + 1
        above, found = [0] * (columns + 2 * pad), list[int]()
        totals, sums, signs = above[:], above[:], above[:]  # of each column: how many, of what size, with their signs
        for r in range(rows):
            row, total, size = [0] * len(above), 0, 0
            for c in range(pad, pad + columns):
                left, up, far = row[c - 1], above[c], row[c - width]
                around = totals[c - 1] + totals[c + 1] + totals[c - width] + totals[c + width]
                here, down, near = _level(total, c - pad), _level(totals[c], r), _level(around, 4 * r + 4)
                close = (left != 0) | (up != 0) << 1 | (above[c - 1] != 0) << 2 | (above[c + 1] != 0) << 3
                distant = (far != 0) | (row[c - pad] != 0) << 1 | (row[c - width + 1] != 0) << 2
                distant |= (above[c - width] != 0) << 3 | (left != 0) << 4
                places = here << 4 | down, 256 | near << 4 | down, 512 | close, 576 | distant, 640 | here
                if not self.present.bit(coder, places):
                    continue
                signs_near = _sign(left) * 3 + _sign(up), 9 + _sign(far) * 3 + _sign(left), 18 + _sign(signs[c]), 21
                negative = self.sign.bit(coder, signs_near)
                node, near = 1, min(7, abs(left).bit_length()) << 3 | min(7, abs(up).bit_length())
                here, down = (2 * size // (total or 1)).bit_length(), (2 * sums[c] // (totals[c] or 1)).bit_length()
                for _ in range(bits):
                    sizes = node, 128 + (node << 6 | near), 8320 + (node << 4 | here), 10368 + (node << 4 | down)
                    node = node << 1 | self.size.bit(coder, sizes)
                magnitude = node - (1 << bits) + 1
                row[c] = -magnitude if negative else magnitude
                total, totals[c] = total + 1, totals[c] + 1
                size, sums[c], signs[c] = size + magnitude, sums[c] + magnitude, signs[c] + row[c]
            found += row[pad : pad + columns]
            above = row
        return found


def _level(count: int, seen: int) -> int:
    """How dense `count` of `seen` are, 0 to 15, in steps that are finer where it is sparse."""
    return LEVEL[(64 * (5 * count + 2)) // (5 * (seen + 2))]


def _sign(value: int) -> int:
    return (value > 0) + 2 * (value < 0)


if __name__ == "__main__":
    try:
        Path(sys.argv[2]).write_bytes(unpack(Path(sys.argv[1]).read_bytes()))
    except IndexError:
        sys.exit("usage: python decode.py PACKED FILE")
    except (PackError, OSError) as error:
        sys.exit(f"decode.py: {error}")
