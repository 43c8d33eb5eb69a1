"""What replicas and parts share: they follow Watch, which says what to serve and what to hold ready besides."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from serving.listen import Listener
from serving.package import PackageError
from serving.settings import Settings

BEAT_S = 0.5
ANSWER_S = 10.0
PATIENCE_S = 20.0  # with a source that gives nothing, before that is told as the reason why nothing starts


class Following:
    """Asks Watch what to serve, loads it, and says what it has.

    Everything but loading happens in `loop`, the listener's.
    """

    def __init__(self, settings: dict[str, Any], watch: DeploymentHandle, role: str) -> None:
        self.settings, self.watch, self.role = Settings.from_dict(settings), watch, role
        self.id = f"{role}-{os.urandom(3).hex()}@{ray.util.get_node_ip_address()}"
        self.folder = Path(tempfile.mkdtemp(prefix="pare-model-"))
        self.failed: dict[str, str] = {}
        self.listener = Listener()
        self.serving = ""
        self._loading: asyncio.Task | None = None
        self._wanted = ("", 0.0)

    async def begin(self) -> None:
        """Load what is to be served; raises PackageError where that fails. Then continue with beats."""
        plan, began = await self._plan(), time.monotonic()
        while not plan["serve"]:
            if plan["problem"] and time.monotonic() - began > PATIENCE_S:
                raise PackageError(plan["problem"])
            await asyncio.sleep(BEAT_S)
            plan = await self._plan()
        await self.load(plan["serve"])
        self.switch(plan["serve"])
        self._beats = asyncio.get_running_loop().create_task(self._beat())

    async def load(self, key: str) -> None:
        """Hold the version ready."""
        raise NotImplementedError

    def switch(self, key: str) -> None:
        """Serve a version that was loaded."""
        raise NotImplementedError

    def ready(self) -> set[str]:
        """The versions that are loaded."""
        raise NotImplementedError

    def forget(self, kept: set[str]) -> None:
        """Let go of versions that are not to come."""
        raise NotImplementedError

    def snapshot(self) -> dict[str, Any]:
        """Counts, for Watch."""
        return {}

    async def _plan(self) -> dict[str, Any]:
        said = {"role": self.role, "serving": self.serving, "ready": sorted(self.ready()), "failed": dict(self.failed)}
        call = self.watch.beat.remote(self.id, said, self.snapshot())
        plan: dict[str, Any] = await asyncio.wait_for(result(call), ANSWER_S)
        return plan

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            with contextlib.suppress(Exception):  # Watch is being started again: what is served stays in service
                self._follow(await self._plan())

    def _follow(self, plan: dict[str, Any]) -> None:
        wanted, at = plan["serve"], plan["at"]
        if wanted and wanted != self.serving and wanted in self.ready() and (wanted, at) != self._wanted:
            self._wanted = (wanted, at)
            asyncio.get_running_loop().call_later(max(0.0, at - time.time()), self._switch, wanted, at)
        self.forget({wanted, plan["prepare"]})
        missing = [s for s in (wanted, plan["prepare"]) if s and s != self.serving and s not in self.ready()]
        missing = [s for s in missing if s not in self.failed]
        self.failed = {s: why for s, why in self.failed.items() if s in (wanted, plan["prepare"])}
        if missing and self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._load(missing[0]))

    def _switch(self, key: str, at: float) -> None:
        if (key, at) == self._wanted and key in self.ready():
            self.switch(key)

    async def _load(self, key: str) -> None:
        try:
            await self.load(key)
        except Exception as problem:  # whatever it is, Watch must know that this version is not to be
            self.failed[key] = str(problem)[:500] or type(problem).__name__
        finally:
            self._loading = None

    def home(self, key: str) -> Path:
        """The folder of a version."""
        return self.folder / key


async def result(call: Any) -> Any:
    """What a call of another deployment returns: its handle's response can be awaited, but is no coroutine."""
    return await call
