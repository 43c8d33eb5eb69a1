"""To a Ray cluster and from it: an address becomes a connection, or one clear message within seconds."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from search.errors import SweepError
from search.executors.base import cores
from search.study import config

ANSWER_S = 5.0
FRESH_S = 2.0  # how long what is known of the cluster's size holds

# Read by ray when it is imported: no usage reports, no log lines on the terminal.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")


class RayConnection:
    """A connection; `ray` is the module. `own`: the folder of a Ray that was started for it, and ends with it."""

    def __init__(self, settings: config.Executor, ray: ModuleType, own: Path | None):
        self.ray = ray
        self._settings = settings
        self._own = own
        self._known = (-FRESH_S, 1)

    def resources(self) -> dict[str, float]:
        """What all nodes together carry."""
        found: dict[str, float] = self.ray.cluster_resources()
        return found

    def slots(self) -> int:
        """Workers that the cluster has room for now, or what the settings say."""
        if self._settings.workers != "auto":
            return self._settings.workers
        if time.monotonic() - self._known[0] > FRESH_S:
            self._known = (time.monotonic(), max(1, self.room()))
        return self._known[1]

    def room(self) -> int:
        """Workers that fit on the nodes that are alive, were they all free."""
        wanted = {"CPU": self._settings.num_cpus, "GPU": self._settings.num_gpus}
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        # Rounding must not make 0.1 fit nine times into 1.
        fits = (min(int(node.get(k, 0.0) / v + 1e-9) for k, v in wanted.items() if v) for node in nodes)
        return sum(fits)

    def close(self) -> None:
        """Disconnect; end what was started."""
        self.ray.shutdown()
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)


def attach(settings: config.Executor, target: str) -> RayConnection:
    """Connect as `executor.address` says. Raises SweepError when the cluster does not answer or is not complete."""
    own = None
    if settings.address == "local":
        own = Path(tempfile.mkdtemp(prefix="pare-ray-", dir=short()))
        private()
    import ray  # after the environment it reads

    if ray.is_initialized():
        raise SweepError("executor: this process is connected to a Ray cluster already; close that first")
    if own is None:
        probe(settings.address)
    where = {"address": settings.address, "namespace": "pare", "logging_level": logging.ERROR, "log_to_driver": False}
    mine = {"num_cpus": cores(), "resources": {target: 1}, "include_dashboard": False, "_temp_dir": str(own)}
    try:
        with signals_kept(), silent():
            ray.init(**(where | mine if own else where))
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise SweepError(
            f"executor.address: no connection to Ray at {settings.address}: {reason}; check that RAY_AUTH_MODE and "
            "RAY_AUTH_TOKEN are the cluster's, that this host belongs to it (from others: ray://HOST:10001), and that "
            "it runs the same Ray"
        ) from error
    # It prints paragraphs about every worker that dies; what matters of them is told by us.
    ray._private.worker.print_to_stdstream = lambda *args, **kwargs: None
    connection = RayConnection(settings, ray, own)
    try:
        _check(connection, settings, target)
    except SweepError:
        connection.close()
        raise
    return connection


def _check(connection: RayConnection, settings: config.Executor, target: str) -> None:
    there = connection.resources()
    if there.get(target, 0.0) < 1:
        raise SweepError(
            f"study.target: no node of the Ray cluster at {settings.address} carries the resource {target!r}, so no "
            f"latency can be measured; start the node to measure on with --resources='{{\"{target}\": 1}}'"
        )
    if not connection.room():
        raise SweepError(
            f"executor.num_cpus, executor.num_gpus: no node of the Ray cluster at {settings.address} has the "
            f"{settings.num_cpus:g} CPU and {settings.num_gpus:g} GPU that a worker takes; ask for less, or start a "
            f"larger node (all together carry {there.get('CPU', 0.0):g} and {there.get('GPU', 0.0):g})"
        )


def private() -> None:
    """What makes a Ray of our own ours alone: on loopback, and open only to who knows the token."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def short() -> str | None:
    """A folder for sockets, whose paths may have 107 characters: /tmp where the system's own is elsewhere."""
    return "/tmp" if os.path.isdir("/tmp") else None


def probe(address: str, field: str = "executor.address") -> None:
    """Raise SweepError unless something answers: Ray itself would try for a minute and more. `field`: who named it."""
    if address == "auto":
        from ray._private.services import canonicalize_bootstrap_address

        try:
            address = str(canonicalize_bootstrap_address("auto"))
        except ConnectionError:
            raise SweepError(
                f"{field}: this host belongs to no running Ray cluster; start one with `ray start --head`, name one "
                f"with {field}=HOST:PORT, or write {field}=local"
            ) from None
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except OSError as error:
        raise SweepError(
            f"{field}: nothing answers at {address} ({error.strerror or error}); check that the cluster's "
            "head runs and that a firewall lets its port through"
        ) from None


@contextmanager
def silent() -> Iterator[None]:
    """What Ray's C++ side prints while it connects goes nowhere; what matters of it is in the exception."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself; who starts a sweep may have a better use for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
