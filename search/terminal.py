"""What every command does with the terminal: its width, a reader that has gone, other packages' warnings."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

CLOSED_PIPE = 141  # what a shell reports of a program that SIGPIPE ended: 128 + 13
WIDE = 200  # columns of a log file or a pipe, where nothing is lost by a long line
_NARROW, _READABLE = 40, 100
NAMES = 22  # columns of the settings' names in a help
OURS = ("search", "tasks", "trainers", "runtimes", "serving", "packing", "pare", "benchmarks")
# They print to the terminal by themselves, some in colour; errors still pass.
_LOUD = ("mlflow", "alembic", "optuna", "matplotlib", "ray", "urllib3", "git", "numexpr")


def console(file: IO[str] | None = None, width: int | None = None) -> Console:
    """A console without guessed colours, as wide as the terminal; WIDE columns where the output is none."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            """Leave it to `closed_pipe_ends`; rich itself would end with exit code 1."""
            raise BrokenPipeError(errno.EPIPE, "the reader has gone")

    made = Plain(highlight=False, file=file, width=width)
    if width is None and not made.is_terminal:
        made.width = int(os.environ.get("COLUMNS", "0") or 0) or WIDE
    return made


def text_width() -> int:
    """Columns for running text: the terminal's, within what reads well."""
    return min(max(shutil.get_terminal_size((_READABLE, 24)).columns, _NARROW), _READABLE)


def entry(name: str, about: str, width: int, column: int = NAMES) -> list[str]:
    """The lines `  NAME   what it means`, folded; a name that is too long has a line of its own."""
    text = wrapped(about, width, column + 4)
    if len(name) > column:
        return [f"  {name}", *text]
    return [f"  {name:<{column}}  {text[0].strip() if text else ''}".rstrip(), *text[1:]]


def wrapped(text: str, width: int, indent: int) -> list[str]:
    """The text folded to `width` columns, each line behind `indent` blanks."""
    blank = " " * indent
    return textwrap.wrap(text, max(width, indent + 24), initial_indent=blank, subsequent_indent=blank)


@contextlib.contextmanager
def closed_pipe_ends() -> Iterator[None]:
    """Ends the process quietly, with exit code 141, when what reads our output (`| head`) has gone."""
    try:
        yield
        sys.stdout.flush()
    except OSError:
        if not reader_gone():
            raise
        leave_closed_pipe()


def reader_gone() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads any more; a broken connection elsewhere is none of it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            watched = select.poll()
            watched.register(stream.fileno(), 0)
            if any(state & (select.POLLERR | select.POLLHUP) for _, state in watched.poll(0)):
                return True
    return False


def leave_closed_pipe() -> NoReturn:
    """End with exit code 141; the interpreter's own last flush must find a place to write to."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    sys.exit(CLOSED_PIPE)


def quiet_third_parties() -> None:
    """From now on warnings of other packages stay off the terminal; ours are shown. `python -W` overrides it."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=rf"({'|'.join(OURS)})(\.|$)")
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
