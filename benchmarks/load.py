"""A closed-loop load generator in a process of its own: N connections, each sends its next request when answered.

    python -m benchmarks.load HOST PORT PATH CONNECTIONS SECONDS BODY_FILE [HEADER: VALUE ...]

httptools reads the answers and uvloop moves the bytes: one core drives some 20,000 requests a second. Prints one
line of JSON: requests per second, p50 and p99 in milliseconds, answers that were not 200.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httptools
import numpy as np
import uvloop


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, request: bytes, until: float, spent: list[float], answers: Counter[int]) -> None:
        self.request, self.until, self.spent, self.answers = request, until, spent, answers
        self.loop = asyncio.get_running_loop()
        self.done = self.loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport: Any = transport
        self.send()

    def send(self) -> None:
        """The next request."""
        self.parser = httptools.HttpResponseParser(self)
        self.began = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """A part of an answer."""
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        """An answer is there."""
        now = time.perf_counter()
        self.spent.append(now - self.began)
        self.answers[self.parser.get_status_code()] += 1
        if now < self.until:
            self.loop.call_soon(self.send)
        elif not self.done.done():
            self.done.set_result(None)
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """The server closed it."""
        if not self.done.done():
            self.answers[0] += 1
            self.done.set_result(None)


async def load(host: str, port: int, request: bytes, connections: int, seconds: float) -> dict[str, float]:
    """What came of it."""
    spent: list[float] = []
    answers: Counter[int] = Counter()
    loop = asyncio.get_running_loop()
    until = time.perf_counter() + seconds
    made = [
        (await loop.create_connection(lambda: Client(request, until, spent, answers), host, port))[1]
        for _ in range(connections)
    ]
    began = time.perf_counter()
    await asyncio.gather(*(client.done for client in made))
    took = time.perf_counter() - began
    ms = 1e3 * np.array(spent or [np.nan])
    return {
        "rate": answers[200] / took,
        "p50": float(np.percentile(ms, 50)),
        "p99": float(np.percentile(ms, 99)),
        "bad": sum(count for status, count in answers.items() if status != 200),
    }


def run(
    host: str, port: int, path: str, connections: int, seconds: float, body: Path, headers: Sequence[str] = ()
) -> dict[str, float]:
    """The same in a process of its own."""
    words = [host, str(port), path, str(connections), str(seconds), str(body), *headers]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", *words], capture_output=True, text=True, timeout=seconds + 60
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    host, port, path, connections, seconds, file, *headers = sys.argv[1:]
    body = Path(file).read_bytes()
    fields = [f"Host: {host}", f"Content-Length: {len(body)}", *(headers or ["Content-Type: application/json"])]
    head = "".join(f"{line}\r\n" for line in (f"POST {path} HTTP/1.1", *fields))
    request = head.encode() + b"\r\n" + body
    print(json.dumps(uvloop.run(load(host, int(port), request, int(connections), float(seconds)))))


if __name__ == "__main__":
    main()
