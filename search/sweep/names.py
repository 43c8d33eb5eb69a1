"""Names that sweeps of a study have had: what is recorded under one must not get into another's record."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from search.storage.database import is_server
from search.tracking.uri import store_uri


def recorded(root: Path, study: str, storage: str, known: Sequence[str]) -> list[str]:
    """Those that the record may hold besides the `known` ones of the storage.

    Every sweep leaves a folder under `root`. MLflow, which takes seconds to import, is asked where that does not say
    all: the record or the storage is a server's, or the storage is new and the record is not.
    """
    found = [path.name for path in (root / "trials").glob(f"{study}-*") if path.name.rpartition("-")[2].isdigit()]
    uri = store_uri(root)
    local = uri.startswith("sqlite") and not is_server(storage)
    if local and (known or not _holds(root / "mlflow.db", study)):
        return found
    from search.tracking.tracking import Tracking

    return [*found, *Tracking(root, study).sweeps()]


def _holds(database: Path, study: str) -> bool:
    """Whether MLflow's file may hold an experiment of that name; True where its tables are not those we know."""
    if not database.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as file:
            return file.execute("select 1 from experiments where name = ?", [study]).fetchone() is not None
    except sqlite3.Error:
        return True
