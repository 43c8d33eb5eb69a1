"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers import data

CACHE = Path(__file__).parent.parent / "mlruns" / "cache"


@pytest.fixture(scope="session")
def fetched() -> Path:
    """The project's cache with MNIST in it, fetched if it is not there yet."""
    data.load("mnist", CACHE)
    return CACHE


@pytest.fixture
def root(fetched: Path, tmp_path: Path) -> Path:
    """A new, empty `root=` folder that need not fetch MNIST again."""
    made = tmp_path / "mlruns"
    (made / "cache").mkdir(parents=True)
    (made / "cache" / "data").symlink_to(fetched / "data")
    return made
