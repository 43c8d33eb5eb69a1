"""One line per request, gathered and written once in a while; two files of a bounded size."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIMIT = 64 * 1024 * 1024  # bytes; then the file becomes NAME.1, in place of the one before
GATHERED = 2000  # lines


class AccessLog:
    """`time client "METHOD path" status ms version batch bytes`; batch: rows it ran with, `hit`: from the cache."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self._lines: list[str] = []

    def write(self, scope: Mapping[str, Any], status: int, ms: float, version: str, note: str, size: int) -> None:
        """Note one request."""
        client = scope.get("client")
        path = scope["path"][:200].encode("unicode_escape").decode().replace('"', "%22")
        self._lines.append(
            f'{time.time():.3f} {client[0] if client else "-"} "{scope["method"][:10]} {path}" {status} {ms:.3f} '
            f"{version or '-'} {note} {size}\n"
        )
        if len(self._lines) >= GATHERED:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered; a full disk costs the lines, not the service."""
        if not self._lines:
            return
        text, self._lines = "".join(self._lines), []
        try:
            with self._file.open("a") as out:
                out.write(text)
                full = out.tell() > LIMIT
            if full:
                self._file.replace(f"{self._file}.1")
        except OSError:
            return
