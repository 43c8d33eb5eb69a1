"""Smaller answers on demand, and smaller bytes of an answer: `outputs=top5|float16|labels`, Accept-Encoding."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import zstandard

from serving.errors import RequestError
from tasks.base import Port

WAYS = ("top5", "float16", "labels")
TOP = 5
SMALL = 1024  # bytes; a smaller answer is sent as it is
ENCODINGS = ("zstd", "gzip")  # best first
_LEVEL = {"zstd": 3, "gzip": 1}


def check(way: str) -> str:
    """The way itself, "" for none; raises RequestError."""
    if way and way not in WAYS:
        raise RequestError(f"outputs: {way[:40]!r} is not valid; choose from {', '.join(WAYS)}")
    return way


def reduced(outputs: Mapping[str, np.ndarray], ports: Sequence[Port], way: str) -> dict[str, np.ndarray]:
    """The outputs made smaller; scores of classes only, where it is about classes.

    - float16: floating point outputs at half precision
    - labels: NAME_label, the best class along the class axis, in the smallest unsigned type
    - top5: NAME_index uint16 and NAME_score float32, the five best classes along the class axis, best first
    """
    made: dict[str, np.ndarray] = {}
    for port in ports:
        values = outputs[port.name]
        scored = port.kind == "logits" and values.ndim > port.axis
        if way == "float16" and values.dtype.kind == "f":
            made[port.name] = values.astype(np.float16)
        elif way == "labels" and scored:
            made[f"{port.name}_label"] = values.argmax(port.axis).astype(_smallest(values.shape[port.axis]))
        elif way == "top5" and scored:
            order = np.argsort(-values, axis=port.axis, kind="stable").take(
                range(min(TOP, values.shape[port.axis])), port.axis
            )
            made[f"{port.name}_index"] = order.astype(np.uint16 if values.shape[port.axis] <= 65536 else np.uint32)
            made[f"{port.name}_score"] = np.take_along_axis(values, order, port.axis).astype(np.float32)
        else:
            made[port.name] = values
    return made


def _smallest(classes: int) -> type[np.unsignedinteger]:
    return np.uint8 if classes <= 256 else np.uint16 if classes <= 65536 else np.uint32


def encoding(accepted: str, size: int) -> str:
    """What an answer of so many bytes is compressed with, of what the client accepts; "" for nothing."""
    if size < SMALL or not accepted:
        return ""
    offered: dict[str, float] = {}
    for part in accepted.lower().split(","):
        name, _, rest = part.strip().partition(";")
        try:
            quality = float(rest.strip().removeprefix("q=") or 1.0) if rest else 1.0
        except ValueError:
            quality = 0.0
        offered[name.strip()] = quality
    anything = offered.get("*", 0.0)
    usable = [(offered.get(each, anything), -place, each) for place, each in enumerate(ENCODINGS)]
    quality, _, best = max(usable)
    return best if quality > 0 else ""


def compressed(body: bytes, how: str) -> bytes:
    """The body, compressed."""
    if how == "zstd":
        return zstandard.ZstdCompressor(level=_LEVEL["zstd"]).compress(body)
    return gzip.compress(body, _LEVEL["gzip"], mtime=0)


def decompressed(body: bytes, how: str, limit: int) -> bytes:
    """A request's body without its Content-Encoding; raises RequestError for what is damaged or larger than `limit`."""
    try:
        if how == "zstd":
            made = zstandard.ZstdDecompressor().stream_reader(body).read(limit + 1)
        else:
            reader = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, by its header
            made = reader.decompress(body, limit + 1)
            if not reader.eof and len(made) <= limit:
                raise zlib.error("it ends early")
    except (zlib.error, zstandard.ZstdError) as problem:
        raise RequestError(f"content-encoding: the body is no {how} ({str(problem)[:80]})") from None
    if len(made) > limit:
        raise TooLargeError(f"content-encoding: the body is larger than {limit:,} bytes when unpacked")
    return made


class TooLargeError(RequestError):
    """A body above the limit: 413."""
