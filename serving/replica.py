"""A replica: answers HTTP by itself, with the model in its own process or through the parts."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from serving import model as models
from serving.access_log import AccessLog
from serving.following import BEAT_S, Following, result
from serving.listen import bound
from serving.model import Model
from serving.package import Package
from serving.result_cache import ResultCache
from serving.server import Server
from serving.service import Service
from serving.settings import TOKEN

MB = 1024 * 1024


class Replica(Following):
    """Answers HTTP. It holds the model, or sends batches through the parts."""

    def __init__(self, settings: dict[str, Any], watch: DeploymentHandle, parts: list[DeploymentHandle]) -> None:
        super().__init__(settings, watch, "replica")
        self.parts = parts
        own = self.settings
        self.service = Service(ResultCache(int(own.cache_mb * MB), int(own.cache_max_input_kb * 1024)))
        log = AccessLog(Path(own.log or _ray_logs()) / f"access-{self.id.replace('@', '-')}.log")
        self.log = log
        self.server = Server(
            self.service,
            own.name,
            int(own.max_body_mb * MB),
            os.environ.get(TOKEN, ""),
            log,
            self._state,
            self._admin,
        )
        self.listener.call(self.begin())
        host = ray.util.get_node_ip_address() if own.host == "node" else own.host
        try:
            self.listener.serve(self.server, bound(host, own.port))
        except OSError as problem:
            raise RuntimeError(f"port: {host}:{own.port} cannot be listened on: {problem.strerror}") from None

    async def load(self, key: str) -> None:
        """Fetch, verify, load, check, measure."""
        package: Package = await result(self.watch.package.remote(key, -1 if self.parts else None))
        if self.parts:
            made = await self._piped(package)
        else:
            own = self.settings
            make = models.load
            made = await asyncio.to_thread(make, package, self.home(key), own.p99_ms, own.max_batch)
        await self.service.prepare(made)

    async def _piped(self, package: Package) -> Model:
        """The model in parts, measured as its requests will go: through all of them, Ray's own share included."""
        key, own = package.about.key, self.settings

        async def run(inputs: Any) -> Any:
            call: Any = inputs
            for part in self.parts:  # a response as an argument: its arrays go from part to part, not through here
                call = part.compute.remote(key, call)
            return await result(call)

        while not all([await result(part.has.remote(key)) for part in self.parts]):
            await asyncio.sleep(BEAT_S)  # the parts load it at the same time
        loop = asyncio.get_running_loop()

        def wait(inputs: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(run(inputs), loop).result()

        plan = await asyncio.to_thread(models.planned, package.about, wait, own.p99_ms, own.max_batch)
        return models.piped(package, self.home(key), plan, run, concurrent=2 * len(self.parts))

    def switch(self, key: str) -> None:
        """The next request is answered by this version."""
        self.service.switch(key)
        self.serving = key

    def ready(self) -> set[str]:
        """Prepared, and the current one."""
        return {*self.service.prepared, *([self.serving] if self.serving else [])}

    def forget(self, kept: set[str]) -> None:
        """Of the prepared ones, all but these."""
        self.service.forget(kept)

    def snapshot(self) -> dict[str, Any]:
        """Counts; the access log is written at the same time."""
        self.log.flush()
        return self.service.snapshot()

    async def check_health(self) -> None:
        """Raises where the file on disk is no longer the one that was picked, or HTTP is no longer answered."""
        if not self.listener.alive:
            raise RuntimeError("the HTTP server has ended")
        await asyncio.to_thread(self.service.verify)

    async def __call__(self, request: Any) -> Any:
        """What comes through Ray Serve's own proxy, below the application's prefix: the same, in its own loop."""
        from starlette.responses import Response

        prefix = request.scope.get("root_path", "")
        scope = {**request.scope, "path": request.scope["path"].removeprefix(prefix), "root_path": ""}
        body = await request.body()
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.listener.from_outside(self.server(scope, receive, send))
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in sent[0]["headers"]}
        return Response(sent[1]["body"], sent[0]["status"], headers)

    async def _state(self) -> dict[str, Any]:
        found: dict[str, Any] = {"replicas": {}}
        with contextlib.suppress(Exception):  # while Watch is started again this replica speaks for itself
            found = await asyncio.wait_for(result(self.watch.state.remote()), 2)
        return {**found, "replicas": {**found["replicas"], self.id: self.service.snapshot()}}

    async def _admin(self, what: str, version: str) -> dict[str, Any]:
        try:
            done: dict[str, Any] = await asyncio.wait_for(result(self.watch.change.remote(what, version)), 330)
            return done
        except Exception as problem:
            return {"error": f"{what}: {str(problem)[:300] or type(problem).__name__}"}

    def __del__(self) -> None:
        """Ray Serve's call before the end: finish what has begun."""
        with contextlib.suppress(Exception):
            self.listener.close()
            self.log.flush()


def _ray_logs() -> str:
    return str(Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve")
