"""A Ray cluster of several nodes on this machine: 127.0.0.2 is the head, 127.0.0.3 and so on are further nodes."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Node:
    """One `ray start --block` with everything it started."""

    ip: str
    scratch: Path
    process: subprocess.Popen[bytes]

    def processes(self) -> list[psutil.Process]:
        """`ray start`, and below it the raylet and its workers."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return []

    def workers(self) -> list[psutil.Process]:
        """The processes that carry out our work on this node."""
        return [p for p in self.processes() if _title(p).startswith("ray::Worker")]

    def kill(self) -> None:
        """As if the power had gone: every process at once, with -9."""
        doomed = self.processes()
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)  # so that none sees another die first
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(doomed, timeout=30)
        self.process.wait()


@dataclass
class Cluster:
    """The nodes, the first of them the head; `env` is what a driver needs to be let in."""

    folder: Path
    port: int
    env: dict[str, str]
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        """What `executor.address=` is told."""
        return f"127.0.0.2:{self.port}"

    def add(self, cpus: int, resources: str = "{}") -> Node:
        """Start one more node and wait until it says that it runs."""
        ip = f"127.0.0.{len(self.nodes) + 2}"
        scratch = self.folder / f"node{len(self.nodes) + 1}"
        scratch.mkdir()
        head = ["--head", f"--port={self.port}", f"--temp-dir={self.folder / 'ray'}", "--include-dashboard=false"]
        words = [
            *([f"--address={self.address}"] if self.nodes else head),
            "--block",
            f"--node-ip-address={ip}",
            f"--num-cpus={cpus}",
            f"--resources={resources}",
            "--object-store-memory=300000000",
            "--disable-usage-stats",
        ]
        output = (self.folder / f"{ip}.log").open("wb")
        ray = Path(sys.executable).parent / "ray"
        env = self.env | {"PARE_SCRATCH": str(scratch)}
        process = subprocess.Popen(
            [str(ray), "start", *words], stdout=output, stderr=output, env=env, cwd=scratch, start_new_session=True
        )
        node = Node(ip, scratch, process)
        self.nodes.append(node)
        deadline = time.monotonic() + 90
        while b"Ray runtime started" not in (said := (self.folder / f"{ip}.log").read_bytes()):
            assert process.poll() is None, said.decode()
            assert time.monotonic() < deadline, said.decode()
            time.sleep(0.2)
        return node


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster without nodes; whatever was added is ended in the end, and nothing of it is left behind."""
    folder = Path(tempfile.mkdtemp(prefix="pr", dir="/tmp"))  # short: Ray's sockets lie in it
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # Without the address of another test's record, which MLflow leaves in the environment.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))} | token
    made = Cluster(folder, free_port(), env | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", "PYTHONPATH": str(ROOT)})
    try:
        yield made
    finally:
        for node in reversed(made.nodes):
            node.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return (process.cmdline() or [""])[0]
    return ""
