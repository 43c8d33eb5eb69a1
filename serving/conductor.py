"""Watch's own work, without Ray: packages from the source, versions to the replicas, update and rollback."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from serving import pieces, source
from serving.package import Package, PackageError
from serving.settings import Settings
from serving.versions import Member, Versions

CHECK_S = 0.2
KEPT = 3  # packages: the current one, the next, the one before


class Conductor:
    """All of it belongs to one event loop; reading a package happens in a thread."""

    def __init__(self, settings: Settings, parts: int) -> None:
        self._settings, self._source = settings, source.of(settings)
        roles = {"replica": 1, **{f"part{index}": 1 for index in range(parts if parts > 1 else 0)}}
        self._parts = parts
        self._versions = Versions(roles)
        self._packages: dict[str, Package] = {}
        self._pieces: dict[str, list[Package]] = {}
        self._seen = self._problem = ""
        self._background: asyncio.Task | None = None
        self._changing = asyncio.Lock()

    async def beat(self, name: str, member: Member, failed: dict[str, str]) -> dict[str, Any]:
        """A replica's beat -> its plan; the first one begins the work."""
        if self._background is None:
            self._background = asyncio.get_running_loop().create_task(self._begin(member.serving))
        return {**self._versions.beat(name, member, failed), "problem": self._problem}

    def package(self, key: str, index: int | None) -> Package:
        """A version; with an index that piece of it, -1 for everything but the file. Raises PackageError."""
        found = self._packages.get(key)
        if found is None:
            raise PackageError(f"version {key} is not known here")
        if index is None:
            return found
        return replace(found, content=b"") if index < 0 else self._pieces[key][index]

    def state(self) -> dict[str, Any]:
        """Counts of the replicas that answer requests; what is being loaded, and what was refused and why."""
        self._versions.step(time.time())
        replicas = {name: member.snapshot for name, member in self._versions.members.items() if member.snapshot}
        return {"replicas": replicas, "loading": self._versions.prepare, "refused": self._versions.refused}

    async def change(self, what: str, version: str) -> dict[str, Any]:
        """Update to the source's newest (or the named) version, or roll back; waits until that is done."""
        async with self._changing:
            try:
                return await (self._back(version) if what == "rollback" else self._update(version))
            except PackageError as problem:
                return {"error": f"{what}: {problem}; version {self._label()} stays in service"}

    async def _begin(self, served: str) -> None:
        """Offer the first version; after Watch itself was started again, the one that replicas serve already."""
        while not self._versions.serve:
            try:
                label = await asyncio.to_thread(self._source.newest)
                package = await self._read(served.partition("-")[2] or label)
                self._seen = label
                self._versions.offer(package.about.key, time.time())
                self._problem = ""
            except PackageError as problem:  # the record does not answer yet, or holds nothing that can be served
                self._problem = str(problem)
                await asyncio.sleep(1)
        while self._settings.watch:
            await asyncio.sleep(self._settings.every_s)
            await self._look()

    async def _look(self) -> None:
        """Follow the source where it has moved since the last look."""
        try:
            label = await asyncio.to_thread(self._source.newest)
            if label != self._seen:
                async with self._changing:
                    await self._update(label)
        except PackageError:
            return  # it is said in `refused`; what is served stays in service

    async def _update(self, label: str) -> dict[str, Any]:
        label = label or await asyncio.to_thread(self._source.newest)
        package = await self._read(label)
        self._seen = label
        await self._switch(package.about.key)
        return {"version": self._label()}

    async def _back(self, label: str) -> dict[str, Any]:
        """To the version before, or to the named one; the registry's alias moves too, so that a new start agrees."""
        if label:
            key = (await self._read(label)).about.key
        elif self._versions.history:
            key = self._versions.history[-1]
        else:
            raise PackageError("no other version was served since the start; name one with version=N")
        await self._switch(key, back=True)
        label = self._label()
        await asyncio.to_thread(self._source.point, label)
        if not self._settings.model:
            self._seen = label
        return {"version": label}

    async def _switch(self, key: str, back: bool = False) -> None:
        """Offer it and wait for the end. Raises PackageError where it is refused."""
        if key == self._versions.serve and not self._versions.prepare:
            return
        if refused := self._versions.offer(key, time.time(), back):
            raise PackageError(refused)
        while key not in self._versions.refused and not self._versions.settled(time.time()):
            await asyncio.sleep(CHECK_S)
        if key in self._versions.refused:
            raise PackageError(f"refused: {self._versions.refused[key]}")
        if self._versions.serve != key:
            raise PackageError("another version was chosen meanwhile")

    async def _read(self, label: str) -> Package:
        package = await asyncio.to_thread(self._source.read, label)
        key = package.about.key
        if self._parts > 1 and key not in self._pieces:
            self._pieces[key] = await asyncio.to_thread(pieces.cut, package, self._settings, self._parts)
        self._packages[key] = package
        kept = self._versions.known() | {key}
        for old in [s for s in self._packages if s not in kept][:-KEPT]:
            self._packages.pop(old)
            self._pieces.pop(old, None)
        return package

    def _label(self) -> str:
        found = self._packages.get(self._versions.serve)
        return found.about.label if found else self._versions.serve[:12]
