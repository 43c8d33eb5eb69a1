"""Paths below `root` as they are stored: relative to it, so that a folder that is moved or copied still works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MARK = "root:"


def relative(value: Any, root: Path | None) -> Any:
    """Nested plain data with every text that is a path below root written as `root:REST`."""
    return value if root is None else _each(value, f"{root}/", MARK)


def absolute(value: Any, root: Path | None) -> Any:
    """What `relative` gave, below the root as it is now."""
    return value if root is None else _each(value, MARK, f"{root}/")


def _each(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return new + value.removeprefix(old) if value.startswith(old) else value
    if isinstance(value, dict):
        return {key: _each(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_each(inner, old, new) for inner in value]
    return value
