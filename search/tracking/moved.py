"""A record whose folder was moved or copied: MLflow keeps absolute addresses of files, which are put right on opening.

Its tables are MLflow's own; this is the only file that writes to them. Tables or columns that are not there are passed
over, so that another version of MLflow costs the repair of those, not the record.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote

from search.tracking.uri import TrackingError

_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_checked: set[tuple[Path, int]] = set()  # of this process: a file is looked at once


def _warn(text: str) -> None:
    print(text, file=sys.stderr)


def repair(root: Path, say: Callable[[str], None] = _warn) -> None:
    """Make the record below `root` name its files there; says so when something had to be changed.

    A record elsewhere (MLFLOW_TRACKING_URI) is left alone. Raises TrackingError when the file cannot be changed.
    """
    file = root.resolve() / "mlflow.db"
    if "MLFLOW_TRACKING_URI" in os.environ or not file.exists() or (key := (file, file.stat().st_ino)) in _checked:
        return
    now = (root.resolve() / "artifacts").as_uri()
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=60)) as database:
            for old in _former(database, now):
                with database:
                    for table, column in _ADDRESSES:
                        _move(database, table, column, old, now)
                _forget()
                say(
                    f"{root}: moved or copied from {unquote(old.removeprefix('file://')).removesuffix('/artifacts')}; "
                    "the record now names the files here"
                )
    except sqlite3.OperationalError as error:
        raise TrackingError(
            f"tracking: {file} was moved or copied, and its addresses cannot be put right ({error}); make it writable"
        ) from None
    except sqlite3.DatabaseError:
        return  # no database: MLflow says so itself
    _checked.add(key)


def _forget() -> None:
    """MLflow keeps in memory where a run's files are, by the run's id alone, and a copy has the ids of its original."""
    if known := getattr(sys.modules.get("mlflow.tracking._tracking_service.utils"), "_artifact_repos_cache", None):
        known.clear()


def _former(database: sqlite3.Connection, now: str) -> list[str]:
    """Where the artifacts of our studies were when they were recorded, if that is elsewhere."""
    try:
        rows = database.execute(
            "select distinct e.name, e.artifact_location from experiments e join experiment_tags t "
            "on t.experiment_id = e.experiment_id and t.key = 'pare.study'"
        ).fetchall()
    except sqlite3.OperationalError:
        return []
    ours = [(f"/{quote(name)}", str(place)) for name, place in rows if str(place).startswith("file://")]
    found = {place.removesuffix(end) for end, place in ours if place.endswith(f"/artifacts{end}")}
    return sorted(found - {now})


def _move(database: sqlite3.Connection, table: str, column: str, old: str, now: str) -> None:
    if column in {row[1] for row in database.execute(f"pragma table_info({table})")}:
        database.execute(
            f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
            [now, len(old) + 1, len(old) + 1, f"{old}/"],
        )
