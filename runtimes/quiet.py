"""No quiet, no number: while a latency is measured on this host, no training step of ours runs here.

Two locked files in a folder of the user's (flock: the kernel releases what a killed process held). `room` is
shared by those who train and exclusive to the one who measures. `turnstile` is passed on the way into the room:
who measures keeps it closed, so trainers that ask between batches see that somebody waits, leave the room and
queue up. Measurements wait for at most one batch, and for each other.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_open: set[int] = set()
_turn = threading.RLock()
_here = threading.local()  # .training, .measuring: folders that this thread is in


def _close_in_child() -> None:
    """A forked child shares its parent's locks: it must not keep them when the parent is killed."""
    for descriptor in _open:
        os.close(descriptor)
    _open.clear()


os.register_at_fork(after_in_child=_close_in_child)


def default_folder() -> Path:
    """Where this user's locks lie on this host: processes in other containers with another /tmp are not seen."""
    return Path(tempfile.gettempdir()) / f"pare-{os.getuid()}"


@contextmanager
def training(folder: Path | None = None) -> Iterator[Callable[..., None]]:
    """Hold the room shared while training; yields `pause`, to be called before each batch.

    `pause()` returns at once (about 1 µs) or, when a measurement waits, once it has ended. `pause(leaving)` calls
    `leaving()` before it lets the measurement in: threads that work beside the training finish in it. Entering again
    within the same thread is free, and `pause` is the outer one: who held the room twice would never let a
    measurement in.
    """
    place = folder or default_folder()
    pauses: dict[Path, Callable[..., None]] = _here.__dict__.setdefault("pauses", {})
    if place in pauses:
        yield pauses[place]
        return
    with _opened(folder, "turnstile") as turnstile, _opened(folder, "room") as room:

        def enter() -> None:
            fcntl.flock(turnstile, fcntl.LOCK_SH)
            fcntl.flock(room, fcntl.LOCK_SH)
            fcntl.flock(turnstile, fcntl.LOCK_UN)

        def pause(leaving: Callable[[], object] | None = None) -> None:
            try:
                fcntl.flock(turnstile, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                if leaving is not None:
                    leaving()
                fcntl.flock(room, fcntl.LOCK_UN)
                enter()
            else:
                fcntl.flock(turnstile, fcntl.LOCK_UN)

        enter()
        pauses[place] = pause
        try:
            with _noted("training", folder):
                yield pause
        finally:
            del pauses[place]


@contextmanager
def measuring(folder: Path | None = None) -> Iterator[None]:
    """Hold the room alone: waits for other measurements and until every trainer has paused or left.

    Threads of one process take turns; entering again within the same thread is free. Raises RuntimeError inside
    `training`, which would wait for itself.
    """
    if _is_noted("measuring", folder):
        yield
        return
    if _is_noted("training", folder):
        raise RuntimeError("quiet.measuring() inside quiet.training() would wait for itself: leave training() first")
    with _turn, _opened(folder, "turnstile") as turnstile, _opened(folder, "room") as room:
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX)
        with _noted("measuring", folder):
            yield


def _is_noted(what: str, folder: Path | None) -> bool:
    return (folder or default_folder()) in getattr(_here, what, ())


@contextmanager
def _noted(what: str, folder: Path | None) -> Iterator[None]:
    """Remember that this thread is in there."""
    before: tuple[Path, ...] = getattr(_here, what, ())
    setattr(_here, what, (*before, folder or default_folder()))
    try:
        yield
    finally:
        setattr(_here, what, before)


@contextmanager
def _opened(folder: Path | None, name: str) -> Iterator[int]:
    """A file descriptor of the lock file; closing it gives back whatever is held through it."""
    place = folder or default_folder()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if place.stat().st_uid != os.getuid():
        raise PermissionError(f"{place}: belongs to another user; remove it or set TMPDIR to a folder of your own")
    descriptor = os.open(place / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    _open.add(descriptor)
    try:
        os.utime(descriptor)  # cleaners of /tmp must not take it for forgotten
        yield descriptor
    finally:
        if descriptor in _open:
            _open.remove(descriptor)
            os.close(descriptor)
