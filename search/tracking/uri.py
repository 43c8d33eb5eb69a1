"""Where the record lies, and what its failures mean for a person."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path


class TrackingError(RuntimeError):
    """The record could not be written or read; the message says where, why and what to do."""


def store_uri(root: Path) -> str:
    """Where the record lies: MLFLOW_TRACKING_URI, or else the database under `root`, with its absolute path."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the migration's hundred log lines off the terminal; warnings and errors pass."""
    before = {name: logging.getLogger(name).level for name in ("mlflow", "alembic")}
    for name in before:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn whatever MLflow, its database or the disk raises into one TrackingError that says what to do."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in ("mlflow", "sqlalchemy"):
            raise
        remedy = "check free space (`df -h`) and write permission there"
        if uri.startswith("http"):
            remedy = "check that the server runs and that MLFLOW_TRACKING_URI is right"
        reason = " ".join(str(error).split())[:300]
        raise TrackingError(
            f"tracking: {uri} does not answer or cannot be written: {reason}; {remedy}, then run the same command "
            "again: the results are kept and logged then"
        ) from error
