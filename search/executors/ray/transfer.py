"""Arguments and results on their way between hosts that share no disk.

A path below `root` is sent as its place there and stands for the same place below the receiver's root. If it is a
file, or a folder of the cache, its content goes along; any other folder is a place to write to. So what is sent
needs no changes: a Baseline, an Artifact and the Config are written as if there were one disk.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import cache


@dataclass(frozen=True)
class Blob:
    """A file or a folder of the cache. `place`: below root. `digest`: 64 hex digits over all of its content.

    `content`: name -> bytes, "" being the file itself; or whatever a receiver's `fetch` makes that of.
    """

    place: str
    folder: bool
    digest: str
    content: Any


@dataclass(frozen=True)
class Payload:
    """A packed value, with the blobs that its paths name."""

    value: bytes
    blobs: tuple[Blob, ...]


class Sender:
    """Packs values; `ship` puts the content of blobs where receivers fetch it, once for each digest."""

    def __init__(self, root: Path, ship: Callable[[dict[str, bytes]], Any] = lambda content: content):
        self._root = root
        self._ship = ship
        self._known: dict[tuple[str, int, int], Blob] = {}

    def blobs(self, path: Path) -> Blob | None:
        """The file or folder of the cache at `path`; None for any other folder, and where there is nothing."""
        proof = path / cache.SUMS if path.is_dir() else path
        if not proof.is_file():
            return None
        place, found = path.relative_to(self._root).as_posix(), proof.stat()
        key = (place, found.st_mtime_ns, found.st_size)
        if key not in self._known:
            content = _content(path) if path.is_dir() else {"": path.read_bytes()}
            self._known[key] = Blob(place, path.is_dir(), cache.sha256_of(proof), self._ship(content))
        return self._known[key]

    def pack(self, value: Any) -> Payload:
        """The value with the content of its paths below root."""
        blobs: dict[str, Blob] = {}
        sent = io.BytesIO()
        root, find = self._root, self.blobs

        class Packer(pickle.Pickler):
            def persistent_id(self, obj: Any) -> str | None:
                if not isinstance(obj, Path) or not obj.is_relative_to(root):
                    return None
                place = obj.relative_to(root).as_posix()
                if place not in blobs and (found := find(obj)) is not None:
                    blobs[place] = found
                return place

        Packer(sent, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
        return Payload(sent.getvalue(), tuple(blobs.values()))


class Receiver:
    """Unpacks below `root`; `fetch` gives the content that the sender's `ship` put away."""

    def __init__(self, root: Path, fetch: Callable[[Any], dict[str, bytes]] = lambda content: content):
        self._root = root
        self._fetch = fetch
        self._seen: dict[str, str] = {}

    def accept(self, blobs: Blob) -> None:
        """Have the blobs lie in their place, checked; of several processes of a host one unpacks a folder."""
        target = self._root / blobs.place
        if self._seen.get(blobs.place) == blobs.digest and target.exists():
            return
        with cache.locked(target, _silent) if blobs.folder else contextlib.nullcontext():
            if _digest(target) != blobs.digest:
                self._write(target, blobs)
        self._seen[blobs.place] = blobs.digest

    def _write(self, target: Path, blobs: Blob) -> None:
        mark = "" if blobs.folder else f".{os.getpid()}"  # files are written without a lock
        fresh, old = (target.with_name(f".{target.name}{mark}.{state}") for state in ("unpacked", "old"))
        for leftover in (fresh, old):  # of a process that was killed
            _remove(leftover)
        content = blobs.content if isinstance(blobs.content, dict) else self._fetch(blobs.content)
        for name, part in content.items():
            file = fresh / name if name else fresh
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(part)
        if _digest(fresh) != blobs.digest:
            _remove(fresh)
            raise cache.CacheError(f"cache: {target} did not arrive as it was sent; run the same command again")
        if target.is_dir():
            os.replace(target, old)
        os.replace(fresh, target)
        _remove(old)

    def unpack(self, payload: Payload) -> tuple[Any, set[Path]]:
        """(the value, the folders it names as places to write to)."""
        carried = {blobs.place for blobs in payload.blobs}
        for blobs in payload.blobs:
            self.accept(blobs)
        root, places = self._root, set[Path]()

        class Unpacker(pickle.Unpickler):
            def persistent_load(self, pid: Any) -> Path:
                if pid not in carried and pid != ".":
                    places.add(root / pid)
                return root / pid

        return Unpacker(io.BytesIO(payload.value)).load(), places


def _silent(stage: str, fraction: float) -> None:
    pass


def _content(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _digest(path: Path) -> str:
    """Of a file its sha256; of a folder whose files have theirs, that of their list; "" for anything else."""
    if path.is_dir():
        return cache.sha256_of(path / cache.SUMS) if cache.intact(path) else ""
    return cache.sha256_of(path) if path.is_file() else ""


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
