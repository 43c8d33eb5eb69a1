"""Where a result comes from: the commit of the code that made it."""

from __future__ import annotations

import functools
import hashlib
import subprocess
from pathlib import Path


@functools.cache
def git_commit() -> str:
    """The commit of the caller's checkout, `+` behind it when files are changed; empty outside a repository."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""


@functools.cache
def code_digest() -> str:
    """16 hex digits over the code that carries out trials, which two hosts of one sweep must share."""
    home, digest = Path(__file__).parents[2], hashlib.sha256()
    for room in ("search", "tasks", "trainers", "runtimes"):
        for file in sorted((home / room).rglob("*.py")):
            digest.update(file.relative_to(home).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
