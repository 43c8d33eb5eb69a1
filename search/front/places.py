"""Where a sweep's picture and page lie, and what a command prints of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from search.front.listing import Listing


@dataclass(frozen=True)
class Files:
    """Where a sweep's picture and page lie."""

    picture: Path
    page: Path
    layers: Path

    @property
    def written(self) -> bool:
        """Whether both are there."""
        return self.picture.exists() and self.page.exists()


def files(root: Path, sweep: str) -> Files:
    """Their places under `root`, whether or not they have been written."""
    folder = root / "reports" / sweep
    return Files(folder / "front.png", folder / "report.html", folder / "layers.json")


def show(listing: Listing, made: Files, console: Console) -> None:
    """The front, where picture and page lie, and the command for the UI."""
    listing.show(console)
    console.print(f"\nReport   {made.page}\nPicture  {made.picture}\nMLflow   python -m search.ui", soft_wrap=True)
