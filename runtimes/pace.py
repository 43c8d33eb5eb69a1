"""How fast a baseline ran on this host lately: what tells a slow phase of the whole machine from a slow model.

A phase can outlast a measurement. Nothing inside that measurement shows it, so the last few are remembered, in
the same folder as the locks; after 20 slower ones in a row the host counts as having changed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from runtimes.base import Artifact
from runtimes.quiet import default_folder

REMEMBERED = 20


def known(artifact: Artifact, how: str, folder: Path | None = None) -> float:
    """The fastest of the last 20 figures noted for this file measured `how`, in ns; NaN when there is none."""
    return min(_read(_place(artifact, folder)).get(how, [float("nan")]))


def note(artifact: Artifact, how: str, taken_ns: float, folder: Path | None = None) -> None:
    """Remember one more figure; only ever called by the one process that measures on this host."""
    place = _place(artifact, folder)
    figures = _read(place)
    figures[how] = [*figures.get(how, []), taken_ns][-REMEMBERED:]
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = place.with_suffix(".new")
    fresh.write_text(json.dumps(figures))
    os.replace(fresh, place)


def _place(artifact: Artifact, folder: Path | None) -> Path:
    return (folder or default_folder()) / f"pace-{artifact.sha256[:16]}.json"


def _read(place: Path) -> dict[str, list[float]]:
    """What was noted; nothing when there is no such file or it was damaged."""
    try:
        figures = json.loads(place.read_text())
        return {str(how): [float(ns) for ns in taken] for how, taken in figures.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
