"""The command lines beside search.run: `KEY=VALUE` words, one clear message, exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

from search.errors import SettingsError, SweepError
from search.tracking.uri import TrackingError


class UsageError(ValueError):
    """A command line that cannot be carried out; the message says what to write."""


class RefusedError(RuntimeError):
    """Something that cannot be done now; the message says why, and what to do."""


def settings(words: Sequence[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """The defaults with what the words set; raises UsageError for a word that is none of them."""
    asked = dict(defaults)
    for word in words:
        key, equals, value = word.partition("=")
        if key not in defaults:
            near = get_close_matches(key, defaults, 1)
            hint = f" (did you mean {near[0]}=?)" if near else ""
            raise UsageError(f"{word}: no such argument{hint}; choose from {', '.join(f'{k}=' for k in defaults)}")
        if not equals or not value:
            raise UsageError(f"{key}: needs a value; write {key}=...")
        asked[key] = value
    return asked


def needs_study(asked: Mapping[str, str]) -> None:
    """Raise UsageError when no study is named."""
    if not asked["study"]:
        raise UsageError("study: missing; write study=NAME, such as study=mnist_prune")


def command(name: str, text: str, argv: Sequence[str] | None, action: Callable[[list[str]], int]) -> int:
    """Run `python -m NAME`: 2 for a mistake in it, 1 for what cannot be done or read, else what it returns.

    `text` is its help.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if set(words) & {"-h", "--help"}:
        print(text, end="")
        return 0
    try:
        return action(words)
    except (UsageError, SettingsError) as error:
        print(f"{name}: {error}\nSee python -m {name} --help", file=sys.stderr)
        return 2
    except (TrackingError, SweepError, RefusedError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
