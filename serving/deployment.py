"""The application on Ray Serve: Watch knows the version, a Replica answers HTTP, a Part computes a piece of the graph.

Ray places, restarts and supervises them; requests do not go through its proxy: each replica listens by itself on the
shared port. The proxy answers the same, ten times slower, for whoever can only reach that.

    serve.run(app({"name": "mnist_prune", ...}))          what python -m search.serve does
    import_path: serving.deployment:app                   what serve.yaml names
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from serving import model as models
from serving import pieces
from serving.access_log import AccessLog
from serving.conductor import Conductor
from serving.listen import Listener, bound
from serving.model import Model
from serving.package import Package, PackageError
from serving.result_cache import ResultCache
from serving.server import Server
from serving.service import Service
from serving.settings import TOKEN, Settings
from serving.versions import Member

BEAT_S = 0.5
ANSWER_S = 10.0
PATIENCE_S = 20.0  # with a source that gives nothing, before that is told as the reason why nothing starts
MB = 1024 * 1024


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


class Following:
    """What replicas and parts share: they ask Watch what to serve, load it, and say what they have.

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
        """Load what is to be served; raises PackageError where that fails. Then go on with beats."""
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
        plan: dict[str, Any] = await asyncio.wait_for(_result(call), ANSWER_S)
        return plan

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            with contextlib.suppress(Exception):  # Watch is being started again: what is served goes on
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
        package: Package = await _result(self.watch.package.remote(key, -1 if self.parts else None))
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
            return await _result(call)

        while not all([await _result(part.has.remote(key)) for part in self.parts]):
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
        """What comes through Ray Serve's own proxy: the same application, in its own loop."""
        from starlette.responses import Response

        body = await request.body()
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.listener.from_outside(self.server(request.scope, receive, send))
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in sent[0]["headers"]}
        return Response(sent[1]["body"], sent[0]["status"], headers)

    async def _state(self) -> dict[str, Any]:
        found: dict[str, Any] = {"replicas": {}}
        with contextlib.suppress(Exception):  # while Watch is started again this replica speaks for itself
            found = await asyncio.wait_for(_result(self.watch.state.remote()), 2)
        return {**found, "replicas": {**found["replicas"], self.id: self.service.snapshot()}}

    async def _admin(self, what: str, version: str) -> dict[str, Any]:
        try:
            done: dict[str, Any] = await asyncio.wait_for(_result(self.watch.change.remote(what, version)), 330)
            return done
        except Exception as problem:
            return {"error": f"{what}: {str(problem)[:300] or type(problem).__name__}"}

    def __del__(self) -> None:
        """Ray Serve's call before the end: finish what has begun."""
        with contextlib.suppress(Exception):
            self.listener.close()
            self.log.flush()


class Part(Following):
    """Computes one piece of the graph, of the current version and of the next."""

    def __init__(self, settings: dict[str, Any], watch: DeploymentHandle, index: int) -> None:
        super().__init__(settings, watch, f"part{index}")
        self.index = index
        self.loaded: dict[str, pieces.Loaded] = {}
        self.listener.call(self.begin())

    async def load(self, key: str) -> None:
        """Fetch, verify and measure this piece of the version."""
        package: Package = await _result(self.watch.package.remote(key, self.index))
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


async def _result(call: Any) -> Any:
    return await call


def _ray_logs() -> str:
    return str(Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve")
