"""The command lines beside search.run: `KEY=VALUE` words, help made of the same table, clear messages, exit codes."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from search import terminal
from search.errors import SettingsError, SweepError
from search.tracking.uri import TrackingError


class UsageError(ValueError):
    """A command line that cannot be run; the message says what to write."""


class RefusedError(RuntimeError):
    """Something that cannot be done now; the message says why, and what to do."""


@dataclass(frozen=True)
class Setting:
    """One `NAME=VALUE` of a command. `value`: what the help calls the value; `choices`: all that are valid."""

    name: str
    about: str
    default: str = ""
    value: str = "NAME"
    choices: tuple[str, ...] = ()

    def help(self, width: int) -> list[str]:
        """Its lines: `NAME=VALUE  what it means; the default`."""
        value = "|".join(self.choices) or self.value
        default = f"; default: {self.default}" if self.default else ""
        return terminal.entry(f"{self.name}={value}", self.about + default, width)


@dataclass(frozen=True)
class Usage:
    """What a command is and takes: its help is made of it, its words are checked against it.

    `synopsis`: words after `python -m MODULE`. `groups`: title -> settings. `examples`: (words, what they do).
    `notes`: paragraphs at the end.
    """

    module: str
    about: str
    synopsis: str
    groups: Mapping[str, tuple[Setting, ...]]
    examples: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()

    def help(self, width: int | None = None) -> str:
        """The help, `width` columns wide or as wide as the terminal."""
        width = width or terminal.text_width()
        lines = [*textwrap.wrap(self.about, width), "", f"  python -m {self.module} {self.synopsis}".rstrip()]
        for title, members in self.groups.items():
            lines += ["", title, *(line for setting in members for line in setting.help(width))]
        lines += ["", "Examples"]
        for words, meaning in self.examples:
            lines += [f"  python -m {self.module} {words}".rstrip(), *terminal.wrapped(meaning, width, 6)]
        for note in self.notes:
            lines += ["", *textwrap.wrap(note, width)]
        return "\n".join(lines) + "\n"

    def read(self, words: Sequence[str]) -> dict[str, str]:
        """`NAME=VALUE` words -> every setting's value; raises UsageError for a word that is none of them."""
        known = {setting.name: setting for members in self.groups.values() for setting in members}
        given = settings(words, {name: setting.default for name, setting in known.items()})
        for name, value in given.items():
            choices = known[name].choices
            if choices and value != known[name].default and value not in choices:
                raise UsageError(f"{name}: {value!r} is not valid; choose from {', '.join(choices)}")
        return given


ROOT = Setting("root", "the folder that holds everything a search writes", "mlruns", "FOLDER")
STUDY = Setting("study", "the study, as in experiments/study")
SWEEP = Setting("sweep", "one of the study's sweeps, such as mnist_prune-001; the newest if left out")
STORAGE = Setting(
    "storage",
    "where the study lies; postgres takes its address from PARE_STORAGE_URL",
    "sqlite",
    "",
    ("sqlite", "postgres"),
)


def writable(root: Path) -> Path:
    """The folder `root`, absolute, made if missing; raises OSError naming it when nothing can be written there."""
    root = root.expanduser().absolute()
    root.mkdir(parents=True, exist_ok=True)
    probe = root / f".writable-{os.getpid()}"
    probe.touch()
    probe.unlink()
    return root


def settings(words: Sequence[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """The defaults with what the words set; raises UsageError for a word that is none of them."""
    given = dict(defaults)
    for word in words:
        key, equals, value = word.partition("=")
        if key not in defaults:
            near = get_close_matches(key, defaults, 1)
            hint = f" (did you mean {near[0]}=?)" if near else ""
            raise UsageError(f"{word}: no such argument{hint}; choose from {', '.join(f'{k}=' for k in defaults)}")
        if not equals or not value:
            raise UsageError(f"{key}: needs a value; write {key}=...")
        given[key] = value
    return given


def needs_study(asked: Mapping[str, str]) -> None:
    """Raise UsageError when no study is named."""
    if not asked["study"]:
        raise UsageError("study: missing; write study=NAME, such as study=mnist_prune")


def command(name: str, text: str | Usage, argv: Sequence[str] | None, action: Callable[[list[str]], int]) -> int:
    """Run `python -m NAME`: 2 for a mistake in it, 1 for what cannot be done or read, else what it returns.

    `text` is its help. Ends with exit code 141 when the reader of its output has gone.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    terminal.quiet_third_parties()
    with terminal.closed_pipe_ends():
        if set(words) & {"-h", "--help"}:
            print(text.help() if isinstance(text, Usage) else text, end="")
            return 0
        try:
            return action(words)
        except (UsageError, SettingsError) as error:
            print(f"{name}: {error}\nSee python -m {name} --help", file=sys.stderr)
            return 2
        except (TrackingError, SweepError, RefusedError, OSError) as error:
            if terminal.reader_gone():
                terminal.leave_closed_pipe()
            print(f"{name}: {error}", file=sys.stderr)
            return 1
