"""Damaged packed files, and ones made to harm: a clear error, in little time and memory."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import brotli
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.decode import BROTLI, MAGIC, RANGE, RANGE_LIMIT, SKELETON, TREE, PackError, unpack, varint
from packing.pack import CODERS, pack
from tests.onnx_graphs import random_model

ROOT = Path(__file__).parent.parent


@cache
def packed(coder: str) -> tuple[bytes, bytes]:
    """(a small model, the same packed): a tree with tensors of several kinds."""
    file = random_model(6).SerializeToString()
    return file, pack(file, coder)


def refused(data: bytes, file: bytes, limit: int | None = None) -> str:
    """What unpacking says; fails the test for anything but a PackError, and for a file that is not `file`."""
    try:
        assert unpack(data, limit) == file, "a damaged file gave another one"
    except PackError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("coder", CODERS)
def test_every_truncation_is_refused(coder: str) -> None:
    file, data = packed(coder)
    step = 1 if coder == "brotli" else len(data) // 15
    for length in range(0, len(data), step):
        assert refused(data[:length], file), f"cut to {length} bytes and not refused"


@pytest.mark.parametrize("coder", CODERS)
def test_a_changed_byte_is_refused_wherever_it_is(coder: str) -> None:
    """Or means the same: brotli's window, the padding of the last byte, what the range decoder looks ahead."""
    file, data = packed(coder)
    accepted = set()
    for place in range(0, len(data), 1 if coder == "brotli" else len(data) // 15):
        for flipped in (0x01, 0x80, 0xFF)[: 3 if coder == "brotli" else 1]:
            changed = bytearray(data)
            changed[place] ^= flipped
            if not refused(bytes(changed), file):
                accepted.add(place)
    assert len(accepted) <= 3


@settings(max_examples=20)
@given(st.sampled_from(CODERS), st.binary(min_size=5, max_size=9))
def test_bytes_at_the_end_are_refused(coder: str, more: bytes) -> None:
    """A range decoder looks four bytes ahead, and what it need not know of them may be anything."""
    file, data = packed(coder)
    assert refused(data + more, file)


@given(st.binary(max_size=300), st.integers(0, 15))
def test_any_bytes_after_a_header_are_refused_or_unpacked(body: bytes, flags: int) -> None:
    for size in (0, 5, 1000):
        header = MAGIC + bytes([16 | flags]) + hashlib.sha256(b"").digest()[:8] + varint(size)
        refused(header + body, b"")


@given(st.binary(max_size=300), st.integers(0, 15), st.integers(0, 2000))
def test_any_skeleton_is_refused_or_unpacked(plain: bytes, flags: int, size: int) -> None:
    """Bytes as the parser sees them, past brotli's own checks."""
    flags = (flags | BROTLI) & ~RANGE & ~SKELETON
    header = MAGIC + bytes([16 | flags]) + bytes(8) + varint(size)
    assert "damaged" in refused(header + brotli.compress(plain), b"")


def framed(file_size: int, flags: int, stream: bytes) -> bytes:
    return MAGIC + bytes([16 | flags]) + bytes(8) + varint(file_size) + stream


def test_a_bomb_of_zeros_is_refused_before_it_unfolds() -> None:
    bomb = brotli.compress(bytes(300_000_000), quality=5)
    assert len(bomb) < 1000
    for size, words in ((300_000_000, "limit is 67,108,864"), (1000, "longer than what it stands for")):
        start = time.monotonic()
        assert words in refused(framed(size, BROTLI, bomb), b"")
        assert time.monotonic() - start < 5


def test_a_file_above_the_limit_is_refused_and_the_limit_can_be_raised() -> None:
    file, data = packed("brotli")
    assert f"would have {len(file):,} bytes and the limit is 100: raise limit=" in refused(data, file, limit=100)
    assert unpack(data, limit=len(file)) == file


def test_a_tensor_that_claims_to_be_huge_is_refused() -> None:
    """Shapes are checked against the file's length before anything is allocated, axis by axis too."""
    name = varint(1 << 3) + varint(1 << 62)
    for dims in (name * 2, varint(8) + b"\0" + name, name * 40, varint(8) + varint(10_000) + varint(8) + varint(9_999)):
        tensor = varint(7 << 3 | 2) + varint(5 << 3 | 2) + dims + varint(9 << 3 | 2) + b"\x01"
        plain = varint(len(tensor)) + b"\0" + tensor
        assert "damaged" in refused(framed(5000, BROTLI | TREE, brotli.compress(plain)), b"")


def test_range_coded_work_is_bounded() -> None:
    """A matrix that would take minutes is refused by its size alone."""
    rows = RANGE_LIMIT // 2 // 1000
    tensor = varint(5 << 3 | 2) + varint(8) + varint(rows) + varint(8) + varint(1001) + varint(9 << 3 | 2)
    plain = varint(7 << 3 | 2) + tensor + b"\x21\x00\x01" + b"\0\0\0"
    stream = brotli.compress(varint(len(plain)) + b"\0" + plain)
    data = framed(3 * RANGE_LIMIT, BROTLI | RANGE | TREE, varint(len(stream)) + stream + bytes(1000))
    start = time.monotonic()
    assert f"more than {RANGE_LIMIT:,} decisions" in refused(data, b"")
    assert time.monotonic() - start < 2


def test_messages_nested_without_end_are_refused() -> None:
    inside = (varint(1 << 3 | 2) + varint(5 << 3 | 2) + varint(6 << 3 | 2)) * 100
    plain = varint(7 << 3 | 2) + inside
    data = framed(5000, BROTLI | TREE, brotli.compress(varint(len(plain)) + b"\0" + plain))
    assert "nested too deeply" in refused(data, b"")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a packed model"),
        (b"PK\x03\x04 a zip file", "not a packed model: its first bytes are not 97 50 52"),
        (MAGIC, "ends in its header, after 3 bytes"),
        (MAGIC + b"\x21" + bytes(20), "format version 2 is not known; this decoder reads version 1"),
        (MAGIC + b"\x01" + bytes(20), "format version 0 is not known"),
        (MAGIC + b"\x10" + bytes(20), "flags 0 or a stream's length are not valid"),
        (MAGIC + b"\x15" + bytes(20), "flags 5 or a stream's length are not valid"),
        (MAGIC + b"\x11" + bytes(8) + b"\xff" * 12, "a number does not end"),
    ],
)
def test_the_error_says_what_is_wrong(data: bytes, words: str) -> None:
    with pytest.raises(PackError, match=words):
        unpack(data)


def test_damage_takes_little_memory() -> None:
    """Random damage of a real model, in a process that may use some 400 MB more than it starts with."""
    code = """
import random, resource, sys
from packing.decode import PackError, unpack
from packing.pack import pack
from tests.onnx_graphs import random_model
file = random_model(6).SerializeToString()
data = pack(file)
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)
rng = random.Random(3)
for _ in range(1500):
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(3, len(changed))] = rng.randrange(256)
    try:
        assert unpack(bytes(changed), limit=1 << 27) == file
    except PackError:
        pass
print("done")
"""
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert said.stdout == "done\n", said.stderr
