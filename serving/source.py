"""Where versions come from: MLflow's registry by its alias, or a picked folder. MLflow itself is search/tracking's."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Protocol

from search.tracking import registry
from search.tracking.uri import TrackingError
from serving.package import Package, PackageError
from serving.settings import Settings


class Source(Protocol):
    """Versions of one model, by labels."""

    def newest(self) -> str:
        """The label of the version that is to be served now. Raises PackageError."""
        ...

    def read(self, label: str) -> Package:
        """That version. Raises PackageError."""
        ...

    def point(self, label: str) -> None:
        """Make that version the one to be served, for a later start too; a folder has nothing to move."""
        ...


class RegistrySource:
    """`models:/STUDY@ALIAS`."""

    def __init__(self, uri: str, study: str, alias: str) -> None:
        self._uri, self._study, self._alias = uri, study, alias

    def newest(self) -> str:
        """The version that the alias names."""
        try:
            return registry.aliased(self._uri, self._study, self._alias)
        except TrackingError as problem:
            raise PackageError(str(problem)) from None

    def read(self, label: str) -> Package:
        """That version's artifacts."""
        with tempfile.TemporaryDirectory(prefix="pare-serve-") as scratch:
            try:
                folder = registry.download(self._uri, self._study, label, Path(scratch))
            except TrackingError as problem:
                raise PackageError(str(problem)) from None
            return Package.read(folder).named(label)

    def point(self, label: str) -> None:
        """Move the alias."""
        try:
            registry.move_alias(self._uri, self._study, self._alias, label)
        except TrackingError as problem:
            raise PackageError(str(problem)) from None


class FolderSource:
    """A folder as search.pick leaves it; its version is its file's sha256."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest(self) -> str:
        """The label of what lies there now."""
        return Package.read(self._folder).about.label

    def read(self, label: str) -> Package:
        """What lies there; only the newest does."""
        found = Package.read(self._folder)
        if found.about.label != label:
            raise PackageError(f"{self._folder}: version {label} is there no more; it holds {found.about.label}")
        return found

    def point(self, label: str) -> None:
        """There is no pointer."""


def of(settings: Settings) -> Source:
    """The source that the settings name; raises PackageError where they name none."""
    if settings.model:
        return FolderSource(Path(settings.model))
    uri = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise PackageError(
            "tracking_uri: missing; name the registry's address, or set MLFLOW_TRACKING_URI, or name model"
        )
    return RegistrySource(uri, settings.name, settings.alias)
