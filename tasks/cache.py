"""A cache of folders: each is made once, checked on every use, and either complete or absent.

Dense baselines, teacher logits and data splits live in it. A folder's files are listed with their sha256 in
`SHA256SUMS.json`, written last, so that a folder that was cut off, damaged or edited is noticed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS.json"
KEY = "key.json"
POLL_S = 0.2

log = logging.getLogger(__name__)


class CacheError(RuntimeError):
    """A folder could not be made; the message names it, the reason and the remedy."""


def _silent(stage: str, fraction: float) -> None:
    pass


def entry(root: Path, kind: str, key: Mapping[str, Any]) -> Path:
    """`root/kind/<16 hex digits of the key's sha256>`: equal keys share a folder, any difference gives another."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return root / kind / digest


def get(folder: Path) -> bool:
    """Whether `folder` is complete and every file has its sha256.

    A broken folder is removed with a warning that names the file; False then means: make it again. An intact
    folder is only read, never written, so a cache may be shared read-only.
    """
    if not folder.exists():
        return False
    if _problem(folder) is None:
        return True
    with locked(folder, _silent):
        return intact(folder)


def fill(
    folder: Path,
    make: Callable[[Path], None],
    key: Mapping[str, Any] | None = None,
    progress: Callable[[str, float], None] = _silent,
) -> bool:
    """Let `make` write the files into a new folder which then becomes `folder`; True when it was made here.

    An intact folder is left as it is. Of several processes that fill the same folder one makes it, the others
    wait (reported through `progress`) and find it. `key` is written beside the files for people to read.
    Whatever `make` raises leaves nothing behind; a full disk raises CacheError.
    """
    if get(folder):
        return False
    with locked(folder, progress):
        if intact(folder):
            return False
        partial = folder.with_name(f".{folder.name}.partial")
        _remove(partial)  # of a process that was killed: whoever holds the lock is the only one here
        try:
            partial.mkdir()
            make(partial)
            if key is not None:
                (partial / KEY).write_text(json.dumps(key, sort_keys=True, indent=1) + "\n")
            (partial / SUMS).write_text(json.dumps(_sums(partial), indent=1) + "\n")
            partial.rename(folder)
        except BaseException as error:
            _remove(partial)
            if _disk_is_full(error):
                raise CacheError(_full_disk(folder)) from error
            raise
    return True


def trim(folders: Path, most: int) -> None:
    """Remove those of a kind that were used longest ago, by their time of change, until they hold at most `most` bytes.

    Whoever reads one that is removed meets an OSError, and makes it again.
    """
    found = []
    for folder in folders.iterdir():
        with contextlib.suppress(OSError):  # another process removes them too
            if folder.is_dir() and not folder.name.startswith("."):
                size = sum(path.stat().st_size for path in folder.rglob("*"))
                found.append((folder.stat().st_mtime, size, folder))
    held = sum(size for _, size, _ in found)
    for _, size, folder in sorted(found):
        if held <= most:
            return
        with locked(folder, _silent), contextlib.suppress(OSError):
            _remove(folder)
        held -= size


def sha256_of(path: Path) -> str:
    """64 hex digits over the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def _problem(folder: Path) -> str | None:
    """What is wrong with the folder, naming the file; None when it is complete and intact."""
    try:
        sums = json.loads((folder / SUMS).read_text())
        for name, expected in sums.items():
            if sha256_of(folder / name) != expected:
                return f"{name} does not have the sha256 it was written with"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, AttributeError):
        return f"{SUMS} is damaged"
    return None


def intact(folder: Path) -> bool:
    """As `get`, for a caller that holds the lock."""
    if not folder.exists():
        return False
    problem = _problem(folder)
    if problem is None:
        return True
    log.warning("cache: %s is broken (%s); it is removed and made again", folder, problem)
    _remove(folder)
    return False


def _remove(folder: Path) -> None:
    if not folder.exists():
        return
    # Renamed first, so that no reader ever meets half a folder.
    doomed = folder.with_name(f".{folder.name.strip('.')}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _disk_is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # safetensors and NumPy report it in words alone.
    said = str(error)
    return "No space left on device" in said or re.search(r"\d+ requested and \d+ written", said) is not None


def _full_disk(folder: Path) -> str:
    free = shutil.disk_usage(folder.parent).free
    return (
        f"cache: {folder} could not be written: the disk is full ({free / 1e6:.0f} MB free); nothing was kept. "
        "Free some space, or put the cache on another disk, and run the same command again"
    )


@contextlib.contextmanager
def locked(folder: Path, progress: Callable[[str, float], None]) -> Iterator[None]:
    """Hold the lock of `folder`, which need not exist; one thread or process at a time, waiting told to `progress`.

    The system releases it when its holder dies, however it dies.

    The lock file stays: removing it would let a process that waits on it and one that makes a new one both in.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress(f"waiting for another process to make {folder.parent.name}/{folder.name}", 0.0)
                time.sleep(POLL_S)
        yield
    finally:
        os.close(handle)
