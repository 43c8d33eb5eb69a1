"""TensorBoard's event files, written without TensorBoard: its own writer imports TensorFlow where that is installed.

A file is a row of records (length, checksum, bytes, checksum), each a protobuf message `Event`. Its fields, and those
of the messages in it, are numbered in tensorboard/compat/proto/{event,summary}.proto,
tensorboard/plugins/hparams/plugin_data.proto and google/protobuf/struct.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from search.trial.record import TrialRecord

# Statuses of a session on the HParams page.
_SUCCESS, _FAILURE = 1, 2
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # wire types


def write(record: TrialRecord, folder: Path) -> Path:
    """The trial's event file in `folder`, left alone if it is there: scalars, the curves per epoch, the HParams."""
    path = folder / f"events.out.tfevents.{record.start_ms // 1000}.pare"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        aside.write_bytes(b"".join(map(_framed, _events(record))))
        aside.rename(path)
    return path


def _events(record: TrialRecord) -> Iterator[bytes]:
    start, end = record.start_ms / 1000, record.end_ms / 1000
    yield _real(1, start) + _text(3, "brain.Event:2")
    hparams = {key: value for key, value in record.params.items() if value is not None}
    begin = b"".join(_part(1, _text(1, key) + _part(2, _value(value))) for key, value in hparams.items())
    yield _event(start, 0, _hparams("session_start_info", _part(3, begin + _real(5, start))))
    for name, value, step in record.figures():
        yield _event(end, step, _text(1, name) + _tag(2, _FLOAT) + struct.pack("<f", value))
    status = _FAILURE if record.state == "failed" else _SUCCESS
    yield _event(end, 0, _hparams("session_end_info", _part(4, _whole(1, status) + _real(2, end))))


def _event(seconds: float, step: int, value: bytes) -> bytes:
    """An Event whose Summary holds the one Value."""
    return _real(1, seconds) + _whole(2, step) + _part(5, _part(1, value))


def _hparams(name: str, content: bytes) -> bytes:
    """A Value that carries the HParams plugin's data (version 0) in its metadata, and an empty float tensor."""
    metadata = _part(1, _text(1, "hparams") + _part(2, content))
    return _text(1, f"_hparams_/{name}") + _part(9, metadata) + _part(8, _whole(1, 1) + _part(2, b""))


def _value(value: object) -> bytes:
    """A google.protobuf.Value."""
    if isinstance(value, bool):
        return _whole(4, int(value))
    return _real(2, float(value)) if isinstance(value, int | float) else _text(3, str(value))


def _tag(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _whole(number: int, value: int) -> bytes:
    return _tag(number, _VARINT) + _varint(value)


def _real(number: int, value: float) -> bytes:
    return _tag(number, _DOUBLE) + struct.pack("<d", value)


def _text(number: int, value: str) -> bytes:
    return _part(number, value.encode())


def _part(number: int, content: bytes) -> bytes:
    return _tag(number, _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _framed(message: bytes) -> bytes:
    length = struct.pack("<Q", len(message))
    return length + _checksum(length) + message + _checksum(message)


def _checksum(content: bytes) -> bytes:
    """CRC-32C (Castagnoli), masked as TFRecord masks it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _row(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


_TABLE = [_row(byte) for byte in range(256)]
