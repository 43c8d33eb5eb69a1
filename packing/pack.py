"""Pack a model file into as few bytes as a device must download; `decode.unpack` gives the very file again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain

import brotli

from packing import encode, onnx_tree, storage, tflite
from packing.decode import (
    BROTLI,
    COLUMNS,
    MAGIC,
    RANGE,
    RANGE_LIMIT,
    SKELETON,
    SPARSE,
    TREE,
    VERSION,
    PackError,
    Parser,
    Source,
    unpack,
    varint,
)
from packing.onnx_tree import Payload
from packing.storage import Stored

CODERS = ("brotli", "range")
THOROUGH = 4 << 20  # bytes up to which brotli's slowest setting is used: it does half a megabyte a second
UNIFORM = 1 << 20  # bytes up to which one way for all tensors is tried too
REFINED, REFINED_PAYLOADS = 1 << 13, 6  # packed bytes up to which single payloads are tried in other ways; how many
RANGED_SKELETON = 1 << 14  # bytes, of 64 decisions each as the decoder counts them


def pack(file: bytes, coder: str = "brotli") -> bytes:
    """The packed file; what it unpacks to has been compared with `file`, byte by byte.

    `coder`: `brotli` (decoders everywhere, unpacks in milliseconds) or `range` (smaller by a tenth or so for small
    files, 4 microseconds for each weight). Any file can be packed: what is neither ONNX nor LiteRT, and what gains
    nothing, becomes one plain brotli stream. Raises PackError for an unknown coder.
    """
    if coder not in CODERS:
        raise PackError(f"coder: {coder!r} is not valid; choose from {', '.join(CODERS)}")
    plain = best = _plain(file)
    for flags, pieces in _readings(file, coder):
        for candidate in _packed(file, flags, pieces, coder):
            if len(candidate) < len(best) and _unpacks_to(candidate, file):
                best = candidate
    assert best is not plain or _unpacks_to(best, file)
    return best


def _unpacks_to(packed: bytes, file: bytes) -> bool:
    try:
        return unpack(packed, limit=len(file)) == file
    except PackError:  # a model written in an unusual way, such as numbers longer than needed
        return False


def _plain(file: bytes) -> bytes:
    return _framed(file, BROTLI, _parts(varint(len(file)) + file if file else b"", b"", b""), b"")


def _readings(file: bytes, coder: str) -> Iterator[tuple[int, list[bytes | Payload]]]:
    """(flags, the file in pieces) as its format says; nothing for a file of another kind."""
    try:
        if tflite.is_tflite(file):
            yield 0, _flat(file)
        else:
            yield TREE, onnx_tree.tree(file, quoting=coder == "brotli")
    except (tflite.NotAFlatbufferError, onnx_tree.NotATreeError):
        return


def _flat(file: bytes) -> list[bytes | Payload]:
    pieces, end = list[bytes | Payload](), 0
    for stretch in tflite.stretches(file):
        pieces.append(file[end : stretch.offset])
        end = stretch.offset + stretch.length
        pieces.append(Payload(file[stretch.offset : end], stretch.dtype, stretch.dims))
    return [*pieces, file[end:]] if end < len(file) else pieces


def _packed(file: bytes, flags: int, pieces: Sequence[bytes | Payload], coder: str) -> Iterator[bytes]:
    """Candidates, one of which is likely the shortest."""
    payloads = [piece for piece in pieces if isinstance(piece, Payload)]
    if coder == "range":
        for tiny in (True, False) if any(len(payload.data) <= storage.TINY for payload in payloads) else (False,):
            yield from _ranged(
                file, flags, pieces, storage.for_range(payloads, RANGE_LIMIT - 64 * RANGED_SKELETON, tiny)
            )
        return
    choices = [[storage.for_brotli(payload) for payload in payloads]]
    # The tensors share a stream, so one way for all of them can be shorter than the best way for each.
    for way in (SPARSE, SPARSE | COLUMNS) if len(file) <= UNIFORM else ():
        choices.append([storage.uniform(payload, way) for payload in payloads])
    made = [_brotli(file, flags, pieces, choice) for choice in choices]
    yield from made
    best = made.index(min(made, key=len))
    if len(made[best]) <= REFINED:
        yield _refined(file, flags, pieces, choices[best], made[best])


def _refined(
    file: bytes, flags: int, pieces: Sequence[bytes | Payload], choice: Sequence[Stored], packed: bytes
) -> bytes:
    """The packed file with each large payload stored in the other ways too, where that makes the whole shorter."""
    payloads = [piece for piece in pieces if isinstance(piece, Payload)]
    choice = list(choice)
    for place in sorted(range(len(payloads)), key=lambda each: -len(payloads[each].data))[:REFINED_PAYLOADS]:
        for way in storage.ways(payloads[place]):
            other = _brotli(file, flags, pieces, [*choice[:place], way, *choice[place + 1 :]])
            if len(other) < len(packed):
                packed, choice[place] = other, way
    return packed


def _brotli(file: bytes, flags: int, pieces: Sequence[bytes | Payload], stored: Sequence[Stored]) -> bytes:
    parts = storage.streams(pieces, stored, not flags & TREE)
    return _framed(file, flags | BROTLI, _parts(b"".join(parts.skeleton), parts.values, parts.gaps), b"")


def _ranged(file: bytes, flags: int, pieces: Sequence[bytes | Payload], stored: Sequence[Stored]) -> Iterator[bytes]:
    parts = storage.streams(pieces, stored, not flags & TREE)
    skeleton, plain, bits = b"".join(parts.skeleton), b"", parts.bits
    flags |= RANGE
    if len(skeleton) <= RANGED_SKELETON:
        flags |= SKELETON
        bits = [[*encode.bits_of_bytes(s), *weights] for s, weights in zip(parts.skeleton, parts.bits, strict=True)]
        skeleton = b""
    if skeleton or parts.values or parts.gaps:
        flags |= BROTLI
        plain = _parts(skeleton, parts.values, parts.gaps)
    encoder = encode.RangeEncoder(chain.from_iterable(bits))
    try:
        Parser(Source(plain, encoder, flags), len(file)).parse()
    except (PackError, StopIteration):  # written in an unusual way: see _unpacks_to
        return
    yield _framed(file, flags, plain, encoder.finish())


def _parts(skeleton: bytes, values: bytes, gaps: bytes) -> bytes:
    return varint(len(skeleton)) + varint(len(values)) + skeleton + values + gaps


def _framed(file: bytes, flags: int, plain: bytes, ranged: bytes) -> bytes:
    """Header and streams."""
    header = MAGIC + bytes([VERSION << 4 | flags]) + hashlib.sha256(file).digest()[:8] + varint(len(file))
    if not flags & BROTLI:
        return header + ranged
    # A window of 16 bits takes a byte less to say than any other.
    window = 16 if len(plain) <= 1 << 16 else 24
    stream = brotli.compress(plain, quality=11 if len(plain) <= THOROUGH else 9, lgwin=window)
    return header + (varint(len(stream)) if flags & RANGE else b"") + stream + ranged
