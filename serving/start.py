"""The application started on a Ray of its own or on a cluster, followed by a status line, ended cleanly."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from search.errors import SweepError
from search.executors.ray import connection
from serving.histogram import percentile
from serving.settings import Settings

STARTED_S = 240.0
LINE_S = 1.0
ENDED_S = 25.0
_RAISED = re.compile(r"(?:PackageError|ArtifactError|PartitionError|RuntimeError|ValueError|OSError)[^:\n]*: (.+)")


class ServeError(SweepError):
    """The service does not start or does not answer; the message says why."""


@contextlib.contextmanager
def started(settings: Settings, address: str) -> Iterator[str]:
    """The service, answering; yields its address. Ended with the block: what has begun is finished.

    `address`: `local` for a Ray of its own, `auto` for the cluster this host belongs to, else HOST:PORT of its head.
    """
    own = Path(tempfile.mkdtemp(prefix="pare-serve-", dir=connection.short())) if address == "local" else None
    if own is not None:
        connection.private()
    import ray
    from ray import serve

    from serving.deployment import app

    _join(ray, address, own, settings)
    if own is None and not settings.tracking_uri.startswith("http"):  # the record or folder is on this node's disk
        settings = replace(settings, address=ray.util.get_node_ip_address())
    name = f"pare-{settings.name}"
    try:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(http_options={"location": "NoServer"})
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
        if host == "node":
            host = ray.util.get_node_ip_address()
        try:
            made = app(settings.to_dict())
            serve.run(made, name=name, route_prefix=f"/{settings.name}", logging_config={"log_level": "ERROR"})
        except RuntimeError as problem:
            raise ServeError(f"the service does not start: {_reason(serve, name, problem)}") from None
        yield f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    finally:
        _end(ray, serve, name, own)


def _end(ray: Any, serve: Any, name: str, own: Path | None) -> None:
    """Let the replicas finish, then end a Ray of our own; by force where it no longer answers.

    Whoever ended this process may have ended Ray's own processes with it (a service manager does), and Ray then tries
    for a minute to reach them.
    """

    def orderly() -> None:
        with contextlib.suppress(Exception):
            serve.delete(name)
        if own is not None:
            with contextlib.suppress(Exception):
                serve.shutdown()

    ending = threading.Thread(target=orderly, daemon=True)
    with connection.silent(), contextlib.redirect_stdout(io.StringIO()):  # what Ray says of its own end matters not
        ending.start()
        ending.join(ENDED_S)
        if not ending.is_alive():
            ray.shutdown()
    for process in psutil.Process().children(recursive=True) if ending.is_alive() else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    if own is not None:
        shutil.rmtree(own, ignore_errors=True)
    if ending.is_alive():
        print("ended by force: Ray did not answer any more", flush=True)
        os._exit(0)


def _join(ray: Any, address: str, own: Path | None, settings: Settings) -> None:
    if own is None:
        connection.probe(address, "address")
    where: dict[str, Any] = {"namespace": "serve", "logging_level": logging.ERROR, "log_to_driver": False}
    cpus = max(1.0, settings.replicas) * settings.num_cpus + settings.parts * settings.num_cpus + 2
    mine = {"num_cpus": int(cpus), "include_dashboard": False, "_temp_dir": str(own)}
    try:
        with connection.signals_kept(), connection.silent():
            ray.init(**(where | (mine if own is not None else {"address": address})))
    except Exception as problem:
        reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
        raise ServeError(
            f"address: no connection to Ray at {address}: {reason}; check RAY_AUTH_MODE and RAY_AUTH_TOKEN, and that "
            "it runs the same Ray"
        ) from None


def _reason(serve: Any, name: str, problem: Exception) -> str:
    """The line of ours in the traceback that Ray gives."""
    text = str(problem)
    with contextlib.suppress(Exception):
        found = serve.status().applications.get(name)
        if found is not None:
            text += "\n" + "\n".join(each.message for each in found.deployments.values())
    lines = _RAISED.findall(text)
    return str(lines[-1]) if lines else text.strip().splitlines()[-1]


def free(host: str, port: int) -> None:
    """Raise ServeError when the port is taken by another program."""
    if host == "node":
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as problem:
            raise ServeError(
                f"port: {host}:{port} cannot be listened on ({problem.strerror}); name a free one with port=..."
            ) from None


def ask(url: str, path: str, method: str = "GET", seconds: float = 5.0, token: str = "") -> dict[str, Any]:
    """The service's JSON answer; raises ServeError, with its own words where it has some."""
    headers = {"X-Pare-Admin": "1"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url + path, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found
    except urllib.error.HTTPError as problem:
        body = problem.read()
        with contextlib.suppress(ValueError):
            raise ServeError(str(json.loads(body).get("error", body.decode("utf-8", "replace")))) from None
        raise ServeError(f"{url}{path}: {problem.code} {problem.reason}") from None
    except (OSError, ValueError) as problem:
        raise ServeError(
            f"{url} does not answer ({getattr(problem, 'reason', problem)}); is it served? write port=... or url=..."
        ) from None


def follow(url: str, token: str) -> None:
    """A line a second, until the process is told to end."""
    before, then = _totals(ask(url, "/status", token=token)), time.monotonic()
    lively = sys.stdout.isatty()
    refused: set[str] = set()
    while True:
        time.sleep(LINE_S if lively else 10 * LINE_S)
        try:
            found = ask(url, "/status", token=token)
        except ServeError as problem:
            print(f"{problem}", flush=True)
            continue
        now, at = _totals(found), time.monotonic()
        line = text(before, now, at - then)
        print(f"\r\033[K{line}" if lively else line, end="" if lively else "\n", flush=True)
        for key, why in found.get("refused", {}).items():
            if key not in refused:
                refused.add(key)
                print(f"\nversion {key.partition('-')[2]} was refused: {why}", flush=True)
        before, then = now, at


def text(before: Mapping[str, Any], now: Mapping[str, Any], seconds: float) -> str:
    """What happened between two looks, in one line."""
    counts = [max(0, b - a) for a, b in zip(before["counts"], now["counts"], strict=True)]
    done, batched = sum(counts), max(0, now["batched"] - before["batched"])
    rate = done / max(seconds, 1e-9)
    parts = [
        f"version {'/'.join(sorted(now['versions'])) or '?'}",
        f"{now['replicas']} replica{'s'[: now['replicas'] != 1]}",
        f"{rate:,.0f} requests/s" if rate >= 10 or not done else f"{rate:.1f} requests/s",
    ]
    if done:
        parts.append(f"p50 {percentile(counts, 0.5):.3g} ms")
        parts.append(f"p99 {percentile(counts, 0.99):.3g} ms")
    if batched:
        parts.append(f"batch {(now['batch_rows'] - before['batch_rows']) / batched:.1f}")
    looked = now["hits"] + now["misses"] - before["hits"] - before["misses"]
    if looked > 0:
        parts.append(f"cache {100 * (now['hits'] - before['hits']) / looked:.0f} %")
    if (errors := now["errors"] - before["errors"]) > 0:
        parts.append(f"{errors} error{'s'[: errors != 1]}")
    return ", ".join(parts)


def _totals(found: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of all replicas together."""
    all_of = [each for each in found["replicas"].values() if each]
    rows = [(int(rows), count) for each in all_of for rows, count in each["batch_rows"].items()]
    return {
        "replicas": len(all_of),
        "versions": {each["version"] for each in all_of if each["version"]},
        "counts": [sum(column) for column in zip(*(each["duration"]["counts"] for each in all_of), strict=True)],
        "batched": sum(count for _, count in rows),
        "batch_rows": sum(rows * count for rows, count in rows),
        "hits": sum(each["cache"]["hits"] for each in all_of),
        "misses": sum(each["cache"]["misses"] for each in all_of),
        "errors": sum(n for each in all_of for status, n in each["requests"].items() if status >= "400"),
    }


def ended(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the service as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
