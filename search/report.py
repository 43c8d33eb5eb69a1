"""The front as a table, a picture and a page; printed again by `python -m search.report study=mnist_prune`."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from search import terminal
from search.command import UsageError, command, needs_study, settings
from search.front.places import files, show
from search.front.publish import layers_of, write
from search.front.summary import Summary, read
from search.front.tables import figures, listing, markdown

HELP = """\
The front of a study's sweep, from what was recorded.

  python -m search.report study=NAME [sweep=NAME] [format=table|csv|json|html|md] [rows=front|all] [out=FILE]
                          [root=mlruns]

  study   the study, as in experiments/study
  sweep   one of its sweeps; the newest if left out
  format  table: for the terminal; csv, json: figures for other programs; html: the whole page; md: a Markdown table.
          If left out, the ending of out= decides, else table
  rows    csv and json hold the front's trials, or all
  out     a file to write instead of printing
  root    the folder that holds the record
"""
FORMATS = ("table", "csv", "json", "html", "md")
_KEYS = {"study": "", "sweep": "", "format": "", "rows": "front", "out": "", "root": "mlruns"}


def say(root: Path, study: str, sweep: str | None = None, console: Console | None = None) -> None:
    """Print the front, where picture and page lie, and the command for the UI; draw them if they are missing."""
    summary = read(root, study, sweep)
    made = files(root, summary.sweep)
    if not made.written:
        made = write(root, summary)
    show(listing(summary), made, console or terminal.console())


def arguments(argv: Sequence[str]) -> dict[str, str]:
    """`key=value` words -> the settings; raises UsageError."""
    asked = settings(argv, _KEYS)
    needs_study(asked)
    asked["format"] = asked["format"] or (Path(asked["out"]).suffix.removeprefix(".") if asked["out"] else "table")
    for key, valid in (("format", FORMATS), ("rows", ("front", "all"))):
        if asked[key] not in valid:
            raise UsageError(f"{key}: {asked[key]!r} is not valid; choose from {', '.join(valid)}")
    return asked


def rendered(summary: Summary, form: str, rows: str, root: Path | None = None) -> str:
    """The sweep in the asked format, as text."""
    if form == "csv":
        return figures(summary, rows).to_csv(index=False)
    if form == "json":
        return str(figures(summary, rows).to_json(orient="records", indent=2, force_ascii=False)) + "\n"
    if form == "html":
        from search.front import page

        return page.page(summary, layers_of(files(root, summary.sweep)) if root else None)
    if form == "md":
        return markdown(summary) + "\n"
    text = io.StringIO()
    listing(summary).show(terminal.console(text))
    return text.getvalue()


def _carry_out(words: list[str]) -> int:
    asked = arguments(words)
    root = Path(asked["root"])
    if asked["format"] == "table" and not asked["out"]:
        say(root, asked["study"], asked["sweep"] or None)
        return 0
    text = rendered(read(root, asked["study"], asked["sweep"] or None), asked["format"], asked["rows"], root)
    if asked["out"]:
        Path(asked["out"]).write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0, 2 for a mistake in it, 1 for a record that cannot be read or a file not written."""
    return command("search.report", HELP, argv, _carry_out)


if __name__ == "__main__":
    sys.exit(main())
