"""Where the Optuna studies lie: a file under `root`, or a PostgreSQL server that several machines look at.

The server's address holds a password: it comes from the environment and goes nowhere but into a connection.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import sqlalchemy
from sqlalchemy.engine import URL, make_url

from search.errors import SettingsError, SweepError

VARIABLE = "PARE_STORAGE_URL"
STORAGES = ("sqlite", "postgres")
_EXAMPLE = f"{VARIABLE}=postgresql://USER:PASSWORD@HOST:5432/DATABASE"
# Both ends notice within half a minute that the other machine is gone; the server then gives the study free.
_KEEPALIVE = {"keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3", "tcp_user_timeout": "20000"}
_OPTIONS = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
_PATIENT_START = 2.0  # seconds in which a driver that was just killed may still be let go by the server

_DRIVERS = ("psycopg", "sqlalchemy")

Result = TypeVar("Result")


class _StillHeldError(RuntimeError):
    """The server still keeps our own lost connection."""


def address(root: Path, name: str = "sqlite") -> str:
    """URL of the named storage; raises SettingsError when the environment does not say where the server is."""
    if name == "sqlite":
        return f"sqlite:///{root}/optuna.db"
    given = os.environ.get(VARIABLE, "")
    if not given:
        raise SettingsError(f"storage=postgres: {VARIABLE} is not set; set {_EXAMPLE}")
    try:
        url = make_url(re.sub(r"^postgres(ql)?(\+psycopg)?://", "postgresql+psycopg://", given))
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise SettingsError(f"{VARIABLE}: not an address; write {_EXAMPLE}, special characters as %XX") from None
    if url.drivername != "postgresql+psycopg":
        raise SettingsError(f"{VARIABLE}: its scheme is {url.drivername!r}, not postgresql; write {_EXAMPLE}")
    if not url.database:
        raise SettingsError(f"{VARIABLE}: names no database; write {_EXAMPLE}")
    asked = {"connect_timeout": "5", **_KEEPALIVE, "options": _OPTIONS} | dict(url.query)
    return url.set(query=asked).render_as_string(hide_password=False)


def is_server(url: str) -> bool:
    """Whether several machines can reach it."""
    return url.startswith("postgresql")


def place(url: str) -> str:
    """The storage in words that give nothing away: a file, or HOST:PORT/DATABASE."""
    parsed = make_url(url)
    if not is_server(url):
        return str(parsed.database)
    host = parsed.host or dict(parsed.query).get("host", "localhost")
    return f"{host}:{parsed.port or 5432}/{parsed.database}"


def folder(url: str) -> Path | None:
    """The folder that a file of studies lies in; None for a server."""
    return None if is_server(url) else Path(str(make_url(url).database)).parent


def opened(url: str, read_only: bool = False) -> Any:
    """Optuna's storage at `url`; raises SweepError when it cannot be opened, or read.

    `read_only`: nothing is made, upgraded or locked.
    """
    import optuna

    if read_only and not is_server(url):
        file = f"file:{quote(str(make_url(url).database))}"
        url = str(URL.create("sqlite", database=file, query={"mode": "ro", "uri": "true"}))
    if read_only and is_server(url):
        url = _with_options(url, "-c default_transaction_read_only=on")
    # A reader of a long study must not make the driver's write fail.
    arguments = {} if is_server(url) else {"timeout": 60}
    settings = {"pool_pre_ping": is_server(url), "connect_args": arguments}
    with telling(url), contextlib.ExitStack() as alone:
        if is_server(url) and not read_only:
            # One at a time: two first drivers that both make the tables would stumble over each other.
            connection = alone.enter_context(connected(url))
            connection.execute("select pg_advisory_lock(%s)", [_key("tables")])
        return optuna.storages.RDBStorage(url, engine_kwargs=settings, skip_compatibility_check=read_only)


@contextmanager
def telling(url: str) -> Iterator[None]:
    """Turn what Optuna and the database raise into one SweepError that names the place, never the password."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("sqlalchemy", "sqlite3", "optuna", "alembic", "psycopg"):
            raise
        remedy = f"check the server and {VARIABLE}" if is_server(url) else "if the file is broken, move it away"
        raise SweepError(
            f"storage: {place(url)} cannot be opened ({_reason(error, url)}); {remedy}, then run the same command again"
        ) from (None if is_server(url) else error)


def _reason(error: BaseException, url: str) -> str:
    origin = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error
    lines = [line.strip() for line in str(origin).splitlines() if line.strip()] or [type(error).__name__]
    if is_server(url):
        lines = [line.split("failed: ", 1)[-1].removeprefix("FATAL:  ") for line in lines[:1]]
        if secret := make_url(url).password:
            lines = [line.replace(secret, "***") for line in lines]
    return lines[0]


def connected(url: str, name: str = "pare") -> Any:
    """A connection of its own to the server; `name` is what the server shows of it."""
    try:
        import psycopg
    except ImportError as error:
        raise SweepError(
            f"storage=postgres needs psycopg ({error}); run .venv/bin/pip install -e '.[postgres]' -c constraints.txt"
        ) from None
    parsed = make_url(url)
    words = parsed.translate_connect_args(username="user", database="dbname") | dict(parsed.query)
    return psycopg.connect(autocommit=True, **words | {"application_name": name})


def _with_options(url: str, more: str) -> str:
    parsed = make_url(url)
    options = f"{dict(parsed.query).get('options', '')} {more}".strip()
    return parsed.update_query_dict({"options": options}).render_as_string(hide_password=False)


def _key(text: str) -> int:
    """What PostgreSQL's advisory locks are numbered by: 64 bits, signed."""
    return int.from_bytes(hashlib.sha256(f"pare {text}".encode()).digest()[:8], "big", signed=True)


def _away(error: BaseException | None) -> bool:
    """Whether the error says that the server, or the way to it, was gone."""
    while error is not None:
        if isinstance(error, _StillHeldError):
            return True
        names = {each.__name__ for each in type(error).__mro__ if each.__module__.split(".")[0] in _DRIVERS}
        if names & {"OperationalError", "InterfaceError", "PendingRollbackError"}:
            return True
        error = error.__cause__ or error.__context__
    return False


class Hold:
    """One study held by this driver. A file needs no more than the lock on it; see ServerHold."""

    def call(self, action: Callable[[], Result], repair: Callable[[], None] = lambda: None) -> Result:
        """What `action`, which reads or writes the storage, gives."""
        return action()


class ServerHold(Hold):
    """One study held on a PostgreSQL server, by an advisory lock of a connection of its own.

    The server gives it free when this process or its machine is gone. `patience`: seconds that the server may be away.
    """

    def __init__(self, url: str, study: str, patience: float, say: Callable[[str], None] = print):
        self._url, self._study, self._patience, self._say = url, study, patience, say
        self._name = f"pare {os.getpid()}@{socket.gethostname()}"[:63]
        self._connection: Any = None
        with telling(url):
            deadline = time.monotonic() + _PATIENT_START
            while (holder := self._take()) and time.monotonic() < deadline:
                time.sleep(0.2)
        if holder:
            self.release()
            raise self._taken(holder)

    def _take(self) -> str | None:
        """None when the study is ours now, else who has it."""
        self.release()
        self._connection = connected(self._url, self._name)
        key = _key(f"driver {self._study}")
        if self._connection.execute("select pg_try_advisory_lock(%s)", [key]).fetchone()[0]:
            return None
        row = self._connection.execute(
            "select application_name from pg_locks join pg_stat_activity using (pid) where locktype = 'advisory' and "
            "granted and datname = current_database() and (classid::bigint << 32) + objid::bigint = %s",
            [key],
        ).fetchone()
        return (row and row[0]) or "another process"

    def _take_again(self) -> None:
        holder = self._take()
        if holder == self._name:
            raise _StillHeldError("it has not noticed yet that the former connection is gone")
        if holder:
            raise self._taken(holder)

    def _taken(self, holder: str) -> SweepError:
        pid, _, host = holder.removeprefix("pare ").partition("@")
        who = f"process {pid} on {host}" if host else holder
        return SweepError(f"study {self._study}: {who} is running it; wait for it, or stop it and rerun this command")

    def call(self, action: Callable[[], Result], repair: Callable[[], None] = lambda: None) -> Result:
        """What `action` gives. While the server is away: wait, take the study again, `repair`, and try once more.

        Raises SweepError when the server stays away or another driver has taken the study meanwhile.
        """
        since: float | None = None
        while True:
            try:
                if since is None:
                    self._connection.execute("select 1")
                else:
                    self._take_again()
                    repair()
                return action()
            except Exception as error:
                if not _away(error):
                    raise
                now = time.monotonic()
                if since is None:
                    since = now
                    self._say(
                        f"storage: {place(self._url)} does not answer; trying again for {self._patience:g} s "
                        "(storage.patience)"
                    )
                if now - since >= self._patience:
                    raise SweepError(
                        f"storage: {place(self._url)} has not answered for {self._patience:g} s "
                        f"({_reason(error, self._url)}); finished trials are kept: when the server is back, rerun "
                        "the same command to resume"
                    ) from None
                time.sleep(1.0)

    def release(self) -> None:
        """Give the study free."""
        if self._connection is not None:
            self._connection.close()
