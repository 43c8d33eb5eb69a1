"""The picked model behind a URL: `python -m search.serve study=mnist_prune`, on Ray Serve."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.command import ROOT, STUDY, RefusedError, Setting, Usage, UsageError, command
from search.tracking.uri import store_uri

if TYPE_CHECKING:
    from serving.settings import Settings

_WHAT = ("update", "rollback", "status")
_TOKEN = "PARE_SERVE_TOKEN"
_NUMBERS = {"port": int, "parts": int, "max_batch": int} | dict.fromkeys(
    ("num_cpus", "num_gpus", "max_part_mb", "p99_ms", "cache_mb", "cache_max_input_kb", "max_body_mb"), float
)
HELP = Usage(
    "search.serve",
    "The picked model behind a URL: the Open Inference Protocol for programs, a page for people. Answers "
    "given before come from a cache; requests that come together run together; all replicas change version at once.",
    "[update|rollback|status] study=NAME [SETTING=VALUE ...]",
    {
        "What": (
            replace(STUDY, about="the study whose picked model is served"),
            Setting("alias", "the registry's alias of the version to serve", "picked"),
            Setting("model", "a picked folder instead of the registry", "", "FOLDER"),
            Setting("watch", "yes: follow the alias (or the folder) when it moves", "no", "", ("yes", "no")),
            ROOT,
        ),
        "Where": (
            Setting("port", "where it listens", "8000", "NUMBER"),
            Setting(
                "host",
                f"beyond loopback {_TOKEN} must hold a secret that requests carry; node: each node's own address",
                "127.0.0.1",
                "ADDRESS",
            ),
            Setting("address", "local: a Ray of its own; auto: this host's cluster; or its head", "local", "HOST:PORT"),
            Setting("replicas", "listening processes; auto: as many as there are CPUs", "1", "NUMBER"),
            Setting("num_cpus", "CPUs of each replica, or of each part", "1", "NUMBER"),
            Setting("num_gpus", "GPUs of each", "0", "NUMBER"),
        ),
        "How": (
            Setting("p99_ms", "what 99 % of answers must keep; five times a single input if left out", "", "MS"),
            Setting("max_batch", "no larger batches, whatever was measured", "", "NUMBER"),
            Setting("parts", "cut an ONNX graph into that many deployments", "1", "NUMBER"),
            Setting("max_part_mb", "or into as many as keep each below", "", "MB"),
            Setting("balance", "of what the parts are to have the same", "time", "", ("time", "memory")),
            Setting("cache_mb", "memory for answers that were given before; 0 for none", "64", "MB"),
            Setting("cache_max_input_kb", "larger inputs are not kept", "256", "KB"),
            Setting("max_body_mb", "a larger request is refused", "16", "MB"),
        ),
        "For update, rollback and status": (
            Setting("version", "this version of the registry, instead of the alias's or the one before", "", "NUMBER"),
            Setting("url", "of the service, where it is not http://HOST:PORT", "", "URL"),
        ),
    },
    (
        ("study=mnist_prune", "serve the version that search.pick registered"),
        ("study=mnist_prune replicas=auto p99_ms=20 watch=yes", "on all CPUs, within 20 ms, following the alias"),
        ("update study=mnist_prune", "to what the alias names now; a version that does not work is refused"),
        ("rollback study=mnist_prune", "to the version before; the alias moves back, too"),
    ),
    ("Ends with Ctrl-C or SIGTERM, after what has begun. See docs/production.md.",),
)


def arguments(words: Sequence[str]) -> tuple[str, dict[str, str]]:
    """(update, rollback, status or "" to serve; the settings); raises UsageError for a value that is none."""
    what = words[0] if words and "=" not in words[0] else ""
    if what and what not in _WHAT:
        raise UsageError(f"{what}: no such action; choose from {', '.join(_WHAT)}, or write study=NAME to serve")
    asked = HELP.read(words[1:] if what else words)
    if not asked["study"] and not asked["model"] and not asked["url"]:
        raise UsageError("study: missing; write study=NAME, such as study=mnist_prune, or model=FOLDER")
    for name, kind in _NUMBERS.items():
        try:
            valid = not asked[name] or float("inf") > kind(asked[name]) >= (1 if kind is int else 0)
        except ValueError:
            valid = False
        if not valid:
            raise UsageError(f"{name}: {asked[name]!r} is not valid; write a number of at least {int(kind is int)}")
    if asked["address"] not in ("local", "auto") and not re.fullmatch(r"(ray://)?[^\s/]+:\d{1,5}", asked["address"]):
        raise UsageError(f"address: {asked['address']!r} is not valid; write local, auto, or HOST:PORT of Ray's head")
    if int(asked["port"]) > 65535:
        raise UsageError(f"port: {asked['port']!r} is not valid; write a number from 1 to 65535")
    if asked["replicas"] != "auto" and not (asked["replicas"].isdecimal() and int(asked["replicas"]) > 0):
        raise UsageError(f"replicas: {asked['replicas']!r} is not valid; write a number, or auto")
    return what, asked


def _carry_out(words: list[str]) -> int:
    what, asked = arguments(words)
    for needed in ("ray", "orjson", "uvicorn", "uvloop"):
        if importlib.util.find_spec(needed) is None:
            raise RefusedError(f"{needed} is not installed; run .venv/bin/pip install -e '.[serve]' -c constraints.txt")
    return _tell(what, asked) if what else _serve(asked)


def _tell(what: str, asked: dict[str, str]) -> int:
    from serving import start

    url = asked["url"].rstrip("/") or f"http://{asked['host']}:{asked['port']}"
    token = os.environ.get(_TOKEN, "")
    if what == "status":
        found = start.ask(url, "/status", token=token)
        for name, each in found["replicas"].items():
            print(f"{name}  version {each['version']}, {sum(each['requests'].values())} requests; {each['plan']}")
        for key, why in found.get("refused", {}).items():
            print(f"version {key.partition('-')[2]} was refused: {why}")
        return 0
    query = f"?version={asked['version']}" if asked["version"] else ""
    done = start.ask(url, f"/admin/{what}{query}", "POST", 330, token)
    print(f"all replicas serve version {done['version']}")
    return 0


def _settings(asked: dict[str, str], root: Path) -> Settings:
    """What the application is told; raises RefusedError where others could reach it without a token."""
    from serving.settings import Settings

    numbers: dict[str, Any] = {name: kind(asked[name]) for name, kind in _NUMBERS.items() if asked[name]}
    name = asked["study"] or _name_of(Path(asked["model"]))
    wanted = Settings(
        name=name,
        model=str(Path(asked["model"]).resolve()) if asked["model"] else "",
        tracking_uri="" if asked["model"] else store_uri(root),
        alias=asked["alias"],
        host=asked["host"],
        replicas=0 if asked["replicas"] == "auto" else int(asked["replicas"]),
        balance=asked["balance"],
        watch=asked["watch"] == "yes",
        log=str(root / "logs" / f"serve-{name}"),
        **numbers,
    )
    if wanted.open_to_others and not os.environ.get(_TOKEN):
        raise RefusedError(f"host: {wanted.host} is open to others; set {_TOKEN} to a secret that requests must carry")
    return wanted


def _tried(wanted: Settings, root: Path) -> str:
    """The version that will be served, read and cut: a mistake is told before Ray is started. Raises RefusedError."""
    from serving import pieces, source
    from serving.package import PackageError
    from serving.partition import PartitionError

    record = store_uri(root).removeprefix("sqlite:///")
    if not wanted.model and record.startswith("/") and not Path(record).exists():
        raise RefusedError(f"root: {root} holds no record; run and pick the study first, or name its root=...")
    try:
        found = source.of(wanted)
        package = found.read(found.newest())
        if (parts := pieces.count(wanted)) > 1:
            pieces.cut(package, wanted, parts)
    except (PackageError, PartitionError) as problem:
        raise RefusedError(str(problem)) from None
    return package.about.label


def _serve(asked: dict[str, str]) -> int:
    from serving import start

    root, token, where = Path(asked["root"]).absolute(), os.environ.get(_TOKEN, ""), asked["address"]
    wanted = _settings(asked, root)
    name, version = wanted.name, _tried(wanted, root)
    start.free(wanted.host, wanted.port)
    signal.signal(signal.SIGTERM, start.ended)
    print(f"starting {name}, version {version}, on Ray ({where}), about 15 seconds ...", flush=True)
    try:
        with start.started(wanted, where) as url:
            status = start.ask(url, "/status", token=token)
            plans = sorted({each["plan"] for each in status["replicas"].values() if each["plan"]})
            print(f"{name} answers on {url}  (POST {url}/v2/models/{name}/infer, or open the address)")
            for plan in plans:
                print(f"batches: {plan}")
            print("Ctrl-C ends it.", flush=True)
            start.follow(url, token)
    except KeyboardInterrupt:
        print("\nended", flush=True)
    return 0


def _name_of(folder: Path) -> str:
    from serving.package import Package, PackageError

    try:
        return Package.read(folder).about.name
    except PackageError as problem:
        raise RefusedError(f"model: {problem}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 after Ctrl-C or SIGTERM, 2 for a mistake in it, 1 when the service does not start."""
    return command("search.serve", HELP, argv, _carry_out)


if __name__ == "__main__":
    sys.exit(main())
