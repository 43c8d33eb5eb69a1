"""The ASGI application of a replica: the routes, their limits, and what is written down of each request.

    POST /v2/models/NAME[/versions/V]/infer   the Open Inference Protocol, JSON or binary tensors
    GET  /v2, /v2/health/live, /v2/health/ready, /v2/models/NAME[/versions/V][/ready]
    POST /predict                             an image file, a text, a JSON row, through the task's preprocessing
    GET  /                                    a page with a form to try it
    GET  /healthz, /metrics, /status          for load balancers, Prometheus, search.serve
    POST /admin/update, /admin/rollback       what `search.serve update` and `rollback` ask for

A client pins a version by the path or by the header `pare-version`; every answer names its own there.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import orjson

from runtimes.base import ArtifactError
from serving import metrics, page, predict, protocol, reduce
from serving.access_log import AccessLog
from serving.batcher import BusyError
from serving.errors import RequestError
from serving.protocol import BINARY, HEADER, JSON
from serving.reduce import TooLargeError
from serving.service import NotReadyError, PinnedError, Service

READING_BYTES = 256 * 1024 * 1024  # of bodies that are not complete yet; above it a request is turned away
COMPRESS_ASIDE = 64 * 1024  # bytes; a larger answer is compressed in a thread
VERSION = b"pare-version"
PINNED_BY = "pare-version"
Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
State = Callable[[], Awaitable[dict[str, Any]]]
Admin = Callable[[str, str], Awaitable[dict[str, Any]]]


class HttpError(Exception):
    """A request that is answered with this status and sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class Answer:
    """What is sent: `note`: what the access log says besides (batch, cache)."""

    status: int
    body: bytes
    kind: str = JSON
    version: str = ""
    header_length: int | None = None
    note: str = "-"
    inference: bool = False


class Server:
    """The ASGI application. `name`: of the model; `limit`: bytes of a body; `token`: needed when not empty.

    `state`: the snapshots of all replicas, by their names; `admin`: carries out update or rollback.
    """

    def __init__(
        self,
        service: Service,
        name: str,
        limit: int,
        token: str = "",
        log: AccessLog | None = None,
        state: State | None = None,
        admin: Admin | None = None,
    ) -> None:
        self.service, self.name, self.limit, self.token = service, name, limit, token
        self._log, self._state, self._admin = log, state, admin
        self._reading = 0
        self._infer_path = f"/v2/models/{name}/infer"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Only a fault of ours is a 500."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        answer = await self._answered(scope, headers, receive)
        sent = await self._send(answer, headers, scope["method"] == "HEAD", send)
        ms = 1e3 * (time.perf_counter() - began)
        self.service.count(answer.status, ms, answer.inference)
        if self._log is not None:
            self._log.write(scope, answer.status, ms, answer.version, answer.note, sent)

    async def _answered(self, scope: Scope, headers: Mapping[str, str], receive: Receive) -> Answer:
        try:
            if scope["path"] == self._infer_path and scope["method"] == "POST":
                self._authorize(headers)
                return await self._infer(headers, receive, headers.get(PINNED_BY, ""))
            return await self._routed(scope, headers, receive)
        except HttpError as problem:
            status, message = problem.status, problem.message
        except TooLargeError as problem:
            status, message = 413, str(problem)
        except RequestError as problem:
            status, message = 400, str(problem)
        except (NotReadyError, BusyError) as problem:
            status, message = 503, str(problem)
        except PinnedError as problem:
            status, message = 409, str(problem)
        except ArtifactError as problem:  # the model refuses these inputs, such as an id beyond its table
            status, message = 400, f"inputs: the model cannot compute them: {str(problem)[-300:]}"
        current = self.service.current
        return Answer(status, orjson.dumps({"error": message}), version=current.about.label if current else "")

    async def _routed(self, scope: Scope, headers: Mapping[str, str], receive: Receive) -> Answer:
        path, method = scope["path"].rstrip("/") or "/", scope["method"]
        if path in ("/healthz", "/v2/health/live", "/v2/health/ready", "/"):
            _only(method, "GET", "HEAD")
            return self._open_to_all(path)
        self._authorize(headers)
        if path.startswith("/v2"):
            return await self._protocol(path, method, headers, receive)
        if path == "/predict":
            _only(method, "POST")
            return await self._predict(scope, headers, receive)
        if path in ("/metrics", "/status"):
            _only(method, "GET", "HEAD")
            alone = {"replicas": {"": self.service.snapshot()}}
            found = await self._state() if self._state is not None else alone
            if path == "/status":
                return Answer(200, orjson.dumps({"name": self.name, **found}))
            return Answer(200, metrics.text(self.name, found["replicas"]).encode(), metrics.KIND)
        if path in ("/admin/update", "/admin/rollback") and self._admin is not None:
            _only(method, "POST")
            if "x-pare-admin" not in headers:  # which no page of another site can send
                raise HttpError(403, "admin: the header X-Pare-Admin is missing; use python -m search.serve")
            version = parse_qs(scope["query_string"].decode("latin-1")).get("version", [""])[0]
            done = await self._admin(path.rpartition("/")[2], version)
            return Answer(200 if "error" not in done else 409, orjson.dumps(done))
        raise HttpError(404, f"{path[:80]}: there is nothing; see / or /v2/models/{self.name}")

    def _open_to_all(self, path: str) -> Answer:
        if path == "/v2/health/live":
            return Answer(200, b'{"live":true}')
        if path == "/":
            return Answer(200, page.html(self.name, self.service, bool(self.token)).encode(), page.KIND)
        model = self.service.model()  # NotReadyError is a 503
        key = "status" if path == "/healthz" else "ready"
        value = "ok" if path == "/healthz" else True
        said = {key: value, "version": model.about.label, "sha256": model.about.sha256}
        return Answer(200, orjson.dumps(said), version=model.about.label)

    async def _protocol(self, path: str, method: str, headers: Mapping[str, str], receive: Receive) -> Answer:
        parts = path.split("/")[2:]
        if not parts:
            about = {"name": "pare", "version": "2", "extensions": protocol.EXTENSIONS}
            return Answer(200, orjson.dumps(about))
        if parts[0] != "models" or len(parts) < 2 or parts[1] != self.name:
            raise HttpError(404, f"{path[:80]}: there is nothing; the model served here is {self.name}")
        pin, rest = headers.get(PINNED_BY, ""), parts[2:]
        if len(rest) >= 2 and rest[0] == "versions":
            pin, rest = rest[1], rest[2:]
        if rest == ["infer"]:
            _only(method, "POST")
            return await self._infer(headers, receive, pin)
        _only(method, "GET", "HEAD")
        model = self.service.model(pin)
        if rest == ["ready"]:
            return Answer(200, orjson.dumps({"name": self.name, "ready": True}), version=model.about.label)
        if rest:
            raise HttpError(404, f"{path[:80]}: there is nothing; the model has infer, ready and versions/V")
        said = protocol.metadata(
            self.name, model.about.label, f"{model.about.format}_{model.about.runtime}", model.ends
        )
        said["parameters"] = {"sha256": model.about.sha256}
        return Answer(200, orjson.dumps(said), version=model.about.label)

    async def _infer(self, headers: Mapping[str, str], receive: Receive, pin: str) -> Answer:
        model = self.service.model(pin)
        body = await self._body(headers, receive)
        request = protocol.parse(body, headers.get(HEADER), model.ends)
        outputs, rows, cached = await self.service.infer(model, request.inputs)
        about = model.about
        if request.reduced:
            outputs = reduce.reduced(outputs, about.outputs, reduce.check(request.reduced))
        body, length = protocol.encode(request, outputs, self.name, about.label, model.process.classes)
        note = "hit" if cached else str(rows)
        return Answer(200, body, JSON if length is None else BINARY, about.label, length, note, True)

    async def _predict(self, scope: Scope, headers: Mapping[str, str], receive: Receive) -> Answer:
        model = self.service.model(headers.get(PINNED_BY, ""))
        way = reduce.check(parse_qs(scope["query_string"].decode("latin-1")).get("outputs", [""])[0])
        request = predict.read(await self._body(headers, receive), headers.get("content-type", ""), model.process.kind)
        if model.process.kind in ("image", "text"):  # decoding takes milliseconds
            inputs = await asyncio.get_running_loop().run_in_executor(None, model.process.inputs, request)
        else:
            inputs = model.process.inputs(request)
        outputs, rows, cached = await self.service.infer(model, inputs)
        body, kind = predict.written(model, outputs, way, headers.get("accept", ""), self.name)
        return Answer(200, body, kind, model.about.label, None, "hit" if cached else str(rows), True)

    async def _body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        """The whole body, its Content-Encoding undone; 413 above the limit, before it is read where it says so."""
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self.limit:
            raise HttpError(413, f"body: {int(declared):,} bytes are too many; send at most {self.limit:,}")
        message = await receive()
        body = message.get("body", b"")
        if message.get("more_body"):
            body, message = await self._rest(body, receive)
        if message["type"] == "http.disconnect":
            raise HttpError(400, "body: the client went before it had sent all")
        how = headers.get("content-encoding", "").strip().lower()
        if how in ("", "identity"):
            return body
        if how not in ("gzip", "deflate", "zstd"):
            raise HttpError(415, f"content-encoding: {how[:20]!r} is not known; send gzip, deflate or zstd")
        return reduce.decompressed(body, how, self.limit)

    async def _rest(self, body: bytes, receive: Receive) -> tuple[bytes, Mapping[str, Any]]:
        """(all of a body that comes in pieces, the last message); what all such bodies hold together is bounded."""
        chunks, size = [body], 0
        try:
            while True:
                size += len(chunks[-1])
                self._reading += len(chunks[-1])
                if size > self.limit:
                    raise HttpError(413, f"body: it is larger than {self.limit:,} bytes")
                if self._reading > READING_BYTES and size < self._reading:
                    raise BusyError(f"{self._reading:,} bytes of other requests are being read; try again in a moment")
                message = await receive()
                chunks.append(message.get("body", b""))
                if not message.get("more_body"):
                    return b"".join(chunks), message
        finally:
            self._reading -= size

    async def _send(self, answer: Answer, headers: Mapping[str, str], head: bool, send: Send) -> int:
        body = answer.body
        how = reduce.encoding(headers.get("accept-encoding", ""), len(body)) if answer.kind != "image/png" else ""
        if how and len(body) > COMPRESS_ASIDE:
            body = await asyncio.get_running_loop().run_in_executor(None, reduce.compressed, body, how)
        elif how:
            body = reduce.compressed(body, how)
        fields = [(b"content-type", answer.kind.encode()), (b"content-length", b"%d" % len(body))]
        if answer.version:
            fields.append((VERSION, answer.version.encode()))
        if answer.header_length is not None:
            fields.append((HEADER.encode(), b"%d" % answer.header_length))
        if how:
            fields += [(b"content-encoding", how.encode()), (b"vary", b"accept-encoding")]
        if answer.status == 503:
            fields.append((b"retry-after", b"1"))
        if answer.status == 401:
            fields.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        await send({"type": "http.response.body", "body": b"" if head else body})
        return len(body)

    def _authorize(self, headers: Mapping[str, str]) -> None:
        if not self.token:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
            raise HttpError(401, "authorization: a token is needed; send the header `Authorization: Bearer TOKEN`")


def _only(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise HttpError(405, f"{method[:20]}: not allowed here; use {' or '.join(allowed)}")


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
