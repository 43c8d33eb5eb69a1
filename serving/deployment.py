"""The application on Ray Serve: Watch knows the version, a Replica answers HTTP, a Part computes a piece of the graph.

Ray places, restarts and supervises them; requests do not go through its proxy: each replica listens by itself on the
shared port. The proxy answers the same, ten times slower, for whoever can only reach that.

    serve.run(app({"name": "mnist_prune", ...}))          what python -m search.serve does
    import_path: serving.deployment:app                   what serve.yaml names
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from serving import pieces
from serving.conductor import Conductor
from serving.following import Following, result
from serving.package import Package
from serving.replica import Replica
from serving.settings import TOKEN, Settings
from serving.versions import Member


def app(args: dict[str, Any]) -> Any:
    """The application of a model; `args`: the fields of Settings. Raises ValueError for one that does not exist."""
    settings = Settings.from_dict(args)
    if settings.open_to_others and not os.environ.get(TOKEN):
        raise ValueError(f"host: {settings.host} is open to others; set the environment variable {TOKEN} to a secret")
    count = pieces.count(settings)
    each: dict[str, Any] = {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus}
    watch = _deployed(Watch, "Watch", _beside(settings)).bind(settings.to_dict(), count)
    parts = [
        _deployed(Part, f"Part{index}", each).bind(settings.to_dict(), watch, index)
        for index in range(count if count > 1 else 0)
    ]
    replicas = settings.replicas or _fitting(settings)
    front = _deployed(Replica, "Replica", {"num_cpus": 0.1} if parts else each, replicas)
    return front.bind(settings.to_dict(), watch, parts)


def _deployed(what: type, name: str, needs: dict[str, Any], replicas: int = 1) -> Any:
    """A deployment; the token goes into the processes' environment, so that it is in no file."""
    token = os.environ.get(TOKEN)
    secret = {"runtime_env": {"env_vars": {TOKEN: token}}} if token else {}
    return serve.deployment(
        what,
        name=name,
        num_replicas=replicas,
        max_ongoing_requests=1000,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=15,
        ray_actor_options={**needs, **secret},
    )


def _beside(settings: Settings) -> dict[str, Any]:
    """Watch reads the registry or the folder: on the node that has it."""
    where = {"resources": {f"node:{settings.address}": 0.001}} if settings.address else {}
    return {"num_cpus": 0, **where}


def _fitting(settings: Settings) -> int:
    """As many replicas as the cluster's CPUs carry."""
    cpus = ray.cluster_resources().get("CPU", 1.0) if ray.is_initialized() else 1.0
    return max(1, int(cpus / max(settings.num_cpus, 0.01)))


class Part(Following):
    """Computes one piece of the graph, of the current version and of the next."""

    def __init__(self, settings: dict[str, Any], watch: DeploymentHandle, index: int) -> None:
        super().__init__(settings, watch, f"part{index}")
        self.index = index
        self.loaded: dict[str, pieces.Loaded] = {}
        self.listener.call(self.begin())

    async def load(self, key: str) -> None:
        """Fetch, verify and measure this piece of the version."""
        package: Package = await result(self.watch.package.remote(key, self.index))
        self.loaded[key] = await asyncio.to_thread(pieces.load, package, self.home(key))

    def switch(self, key: str) -> None:
        """It computes whatever version a batch names; the one before stays for what is on its way."""
        self.serving = key

    def ready(self) -> set[str]:
        """All that are loaded."""
        return set(self.loaded)

    def forget(self, kept: set[str]) -> None:
        """All but these and the latest two, whose batches may be on their way."""
        for key in [s for s in self.loaded if s not in kept and s != self.serving][:-1]:
            del self.loaded[key]

    async def has(self, key: str) -> bool:
        """Whether the version is loaded here."""
        return key in self.loaded

    async def compute(self, key: str, arrays: Any) -> Any:
        """The tensors that later parts need, of the tensors that come in."""
        return await asyncio.to_thread(self.loaded[key].compute, arrays)

    async def check_health(self) -> None:
        """Raises where a piece on disk is no longer the one that was cut."""
        for loaded in list(self.loaded.values()):
            await asyncio.to_thread(loaded.verify)


class Watch:
    """Holds the versions and their packages, and decides on switches; see serving/conductor.py."""

    def __init__(self, settings: dict[str, Any], parts: int) -> None:
        self.conductor = Conductor(Settings.from_dict(settings), parts)

    async def beat(self, name: str, said: dict[str, Any], snapshot: dict[str, Any]) -> dict[str, Any]:
        """What a replica has -> what it must do."""
        member = Member(said["role"], time.time(), said["serving"], frozenset(said["ready"]), snapshot)
        return await self.conductor.beat(name, member, said["failed"])

    async def package(self, key: str, index: int | None) -> Package:
        """A version; with an index that piece of it, -1 for everything but the file."""
        return self.conductor.package(key, index)

    async def state(self) -> dict[str, Any]:
        """The replicas' latest counts, and what is on its way."""
        return self.conductor.state()

    async def change(self, what: str, version: str) -> dict[str, Any]:
        """`update` or `rollback`; answers when all replicas have switched, or why they have not."""
        return await self.conductor.change(what, version)
