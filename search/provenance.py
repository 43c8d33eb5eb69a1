"""Where a result comes from: the commit of the code that made it."""

from __future__ import annotations

import functools
import subprocess


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
