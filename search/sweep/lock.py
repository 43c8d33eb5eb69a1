"""One driver per study, on this machine and, where the storage is a server, on all."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from search.errors import SweepError
from search.storage import database as storages
from search.storage.database import Hold


@contextmanager
def driver_lock(root: Path, study: str, storage: str = "", patience: float = 300) -> Iterator[Hold]:
    """Only one driver per study: a second would evaluate enqueued trials twice. Raises SweepError when taken.

    `storage`: the URL; on a server the study is held there as well, against drivers on other machines.
    """
    path = root / "locks" / f"{study}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepError(
                f"study {study}: another process is running it; wait for it, or stop it and rerun this command"
            ) from None
        if not storages.is_server(storage):
            yield Hold()
            return
        hold = storages.ServerHold(storage, study, patience)
        try:
            yield hold
        finally:
            hold.release()
