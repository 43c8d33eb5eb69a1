"""A PostgreSQL server of the tests' own, from the package `pgserver`: loopback, a free port, a password."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PASSWORD = "p@ss/w0rd-of-the-tests"
QUOTED = "p%40ss%2Fw0rd-of-the-tests"  # as an address spells it


@dataclass
class Server:
    """A running server; `url()` is what PARE_STORAGE_URL is set to."""

    folder: Path
    port: int
    user: str | None  # PostgreSQL refuses to be run by root

    def url(self, database: str = "pare", password: str = QUOTED) -> str:
        return f"postgresql://pare:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        where = f"-h 127.0.0.1 -p {self.port} -k {self.folder}"
        self._control("-w", "-l", str(self.folder / "log"), "-o", where, "start")

    def stop(self) -> None:
        self._control("-w", "-m", "immediate", "stop")

    def sql(self, command: str, database: str = "postgres") -> str:
        from pgserver._commands import POSTGRES_BIN_PATH

        words = ["-h", str(self.folder), "-p", str(self.port), "-U", "postgres", "-At", database]
        done = subprocess.run(
            [POSTGRES_BIN_PATH / "psql", *words], input=command, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def _control(self, *words: str) -> None:
        from pgserver._commands import pg_ctl

        pg_ctl([*words], pgdata=self.folder, user=self.user, timeout=60)


@contextmanager
def server() -> Iterator[Server]:
    """Made, started, and removed at the end; takes about 3 s."""
    import pgserver

    folder = Path(tempfile.mkdtemp(prefix="pare-pg-"))
    made = pgserver.get_server(folder / "data", cleanup_mode=None)  # makes the user and the files; a socket, no port
    running = Server(folder / "data", free_port(), made.system_user)
    running._control("-w", "-m", "fast", "stop")
    (running.folder / "pg_hba.conf").write_text(
        "local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n"  # the password is really asked for
    )
    try:
        running.start()
        running.sql(f"create role pare login password '{PASSWORD}';")
        running.sql("create database pare owner pare;")
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
