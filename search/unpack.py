"""Unpack a packed model: `python -m search.unpack model.pare` writes the very file that was packed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from packing.decode import PackError, unpack
from packing.tflite import is_tflite
from search.command import RefusedError, Setting, Usage, UsageError, command
from search.pack import file_of

USAGE = Usage(
    "search.unpack",
    "Unpack a model that python -m search.pack has packed: the same bytes again, checked by their sha256.",
    "FILE [out=FILE.onnx] [limit=BYTES]",
    {
        "How": (
            Setting("out", "where to write; FILE with the ending .onnx or .tflite if left out", "", "FILE"),
            Setting(
                "limit",
                "the most bytes that the model may have; 64 MiB, or 64 times the packed file, if left out",
                "",
                "BYTES",
            ),
        ),
    },
    (("model.pare", "writes model.onnx, or model.tflite where it is one"),),
)


def _carry_out(words: list[str]) -> int:
    file, given = file_of(words, USAGE)
    if given["limit"] and not given["limit"].isdecimal():
        raise UsageError(f"limit: {given['limit']!r} must be a number of bytes, such as limit=100000000")
    try:
        found = unpack(file.read_bytes(), int(given["limit"]) if given["limit"] else None)
    except PackError as error:
        raise RefusedError(f"{file}: {error}") from None
    out = Path(given["out"] or file.with_suffix(".tflite" if is_tflite(found) else ".onnx"))
    if out.exists() and not given["out"] and out.read_bytes() != found:
        raise RefusedError(f"{out}: is there already and differs; name it with out={out} to write over it")
    out.write_bytes(found)
    print(f"{out}: {len(found):,} bytes")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0, 2 for a mistake in it, 1 for a file that cannot be unpacked, read or written."""
    return command("search.unpack", USAGE, argv, _carry_out)


if __name__ == "__main__":
    sys.exit(main())
