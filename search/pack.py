"""Pack a model file: `python -m search.pack model.onnx` writes model.pare, all that a device must download."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from packing.decode import read_header
from packing.pack import CODERS, pack
from search.command import Setting, Usage, UsageError, command

USAGE = Usage(
    "search.pack",
    "Pack an ONNX or LiteRT model into as few bytes as a device must download. What it unpacks to is the very file, "
    "compared before anything is written.",
    "FILE [out=FILE.pare] [coder=brotli|range] [shrink=no|yes]",
    {
        "How": (
            Setting("out", "where to write; FILE with the ending .pare if left out", "", "FILE"),
            Setting(
                "coder",
                "brotli: decoders are everywhere; range: smaller by several per cent, microseconds a weight",
                "brotli",
                "",
                CODERS,
            ),
            Setting(
                "shrink",
                "yes: an ONNX model without what is dead or implied, and with short names, goes into FILE.small.onnx "
                "and its metadata into FILE.json; that model is packed",
                "no",
                "",
                ("no", "yes"),
            ),
        ),
    },
    (
        ("model.onnx", "writes model.pare"),
        ("model.onnx coder=range shrink=yes", "the fewest bytes; the model is model.small.onnx"),
    ),
    ("The format: docs/format.md. packing/decode.py unpacks it and needs NumPy and brotli alone.",),
)


def file_of(words: Sequence[str], usage: Usage) -> tuple[Path, dict[str, str]]:
    """(the file that is named, the settings); raises UsageError unless exactly one file is named and is there."""
    files = [word for word in words if "=" not in word or Path(word).is_file()]
    given = usage.read([word for word in words if word not in files])
    if len(files) != 1:
        raise UsageError(f"FILE: exactly one is needed, {len(files) or 'none'} given; write {usage.synopsis}")
    if not Path(files[0]).is_file():
        raise UsageError(f"FILE: {files[0]} is no file")
    return Path(files[0]), given


def shrunk(file: Path) -> Path:
    """Write the smaller model and what it said of itself; returns the model's file."""
    import onnx  # half a second, where it is asked for
    from google.protobuf.message import DecodeError

    from packing.graph.smaller import smaller

    try:
        made, about = smaller(onnx.load_from_string(file.read_bytes()))
        onnx.checker.check_model(made)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise UsageError(f"shrink: {file} is no ONNX model that can be read ({str(error).splitlines()[0]})") from None
    small = file.with_suffix(".small.onnx")
    small.write_bytes(made.SerializeToString())
    file.with_suffix(".json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
    return small


def _carry_out(words: list[str]) -> int:
    file, given = file_of(words, USAGE)
    out = Path(given["out"] or file.with_suffix(".pare"))
    if out == file:
        raise UsageError(f"out: {out} is the file itself; name another one")
    source = shrunk(file) if given["shrink"] == "yes" else file
    data = source.read_bytes()
    packed = pack(data, given["coder"])
    out.write_bytes(packed)
    ratio = len(data) / len(packed)
    print(f"{out}: {len(packed):,} bytes; unpacked {read_header(packed).size:,} bytes, {ratio:,.1f} times as many")
    if source != file:
        print(f"It unpacks to {source}, {file.stat().st_size - len(data):,} bytes less than {file}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0, 2 for a mistake in it, 1 for a file that cannot be read or written."""
    return command("search.pack", USAGE, argv, _carry_out)


if __name__ == "__main__":
    sys.exit(main())
