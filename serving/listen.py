"""A replica's own HTTP server: uvicorn on uvloop, on a port that the replicas of a host share.

Ray Serve's proxy answers 400 requests a second on this machine and its HAProxy 3,100, a replica that listens by itself
22,000 (experiments/LOG.md): the kernel deals out connections among the sockets bound with SO_REUSEPORT.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SLOW_S = 20.0  # that a client may take to send a request, from its first byte (or its connection) to its last
KEEP_ALIVE_S = 60
CONNECTIONS = 8000  # at once, per replica; the next is answered with 503
BACKLOG = 4096
_TOO_SLOW = b'{"error":"request: it was not complete within %d s"}' % SLOW_S
_ANSWER = b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: "


class Together:
    """A transport that sends the head of an answer along with its body: one system call and one packet, not two."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        """Send it, or keep it where it is a head whose body is still to come."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        elif data.endswith(b"\r\n\r\n") and data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Send a head that has no body."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Close it, after all that was written."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class TimedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which knows since when it waits for the rest of a request."""

    since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """The first request is awaited from here on."""
        super().connection_made(Together(transport))
        self.since = self.loop.time()

    def on_response_complete(self) -> None:
        """An answer to HEAD has no body."""
        self.transport.flush()
        super().on_response_complete()

    def on_message_begin(self) -> None:
        """A further request on the connection."""
        super().on_message_begin()
        self.since = self.loop.time()

    def on_message_complete(self) -> None:
        """All of it is here."""
        super().on_message_complete()
        self.since = None

    def close_if_slow(self, now: float) -> None:
        """Answer 408 and close where the client takes too long."""
        if self.since is None or now - self.since < SLOW_S or self.transport is None or self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(_ANSWER + b"%d\r\n\r\n" % len(_TOO_SLOW) + _TOO_SLOW)
        self.transport.close()


def bound(host: str, port: int) -> socket.socket:
    """A listening socket that others may share; raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


class Listener:
    """A thread with an event loop of its own, in which the application and what it calls run."""

    def __init__(self) -> None:
        _more_files()
        self.loop = uvloop.new_event_loop()
        self._server: uvicorn.Server | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()

    def call(self, coroutine: Awaitable[Any]) -> Any:
        """Run it in the loop and wait for what it returns; from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()  # type: ignore[arg-type]

    async def from_outside(self, coroutine: Awaitable[Any]) -> Any:
        """The same from another event loop, which continues meanwhile."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.loop))  # type: ignore[arg-type]

    def serve(self, app: Callable, where: socket.socket) -> None:
        """Answer on the socket from now on."""
        config = uvicorn.Config(
            app,
            http=TimedProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_level="critical",
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=10,
            limit_concurrency=CONNECTIONS,
            backlog=BACKLOG,
        )
        self._server = uvicorn.Server(config)

        async def start() -> None:
            assert self._server is not None
            self.loop.create_task(self._served(self._server, where))
            self.loop.create_task(self._watch(self._server))
            while not self._server.started and not self._server.should_exit:
                await asyncio.sleep(0.01)

        self.call(start())

    @property
    def alive(self) -> bool:
        """Whether the loop runs and, once it was told to, answers."""
        return self._thread.is_alive() and not self._done.is_set()

    def close(self, seconds: float = 12.0) -> None:
        """Take no more connections, finish what has begun, end."""
        if self._server is not None and self._thread.is_alive():
            self._server.should_exit = True
            self._done.wait(seconds)
        asyncio.run_coroutine_threadsafe(self._stop(), self.loop)

    async def _stop(self) -> None:
        """Whatever still runs in the loop, beats and the like, ends with it."""
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        self.loop.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    async def _served(self, server: uvicorn.Server, where: socket.socket) -> None:
        try:
            await server.serve([where])
        finally:
            where.close()
            self._done.set()

    async def _watch(self, server: uvicorn.Server) -> None:
        while not server.should_exit:
            await asyncio.sleep(1)
            now = self.loop.time()
            for connection in list(server.server_state.connections):
                if isinstance(connection, TimedProtocol):
                    connection.close_if_slow(now)


def _more_files() -> None:
    """As many open connections as this user may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
