"""MLflow's own pages on the project's store: `python -m search.ui` serves them and prints a link per study.

The first link of a study opens its newest sweep at its charts, further ones its front, its infeasible and its failed
trials alone, and two sweeps side by side (`search/tracking/views.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from types import FrameType

from search.command import ROOT, Setting, Usage, UsageError, command
from search.front import html
from search.front.places import files
from search.tracking import site
from search.tracking.tracking import Tracking
from search.tracking.uri import TrackingError, store_uri
from search.tracking.views import preset

PORT = Setting("port", "if left out: the first free one from {} on", "", "NUMBER")
HELP = Usage(
    "search.ui",
    "The pages of the record, on this machine only: a start page with a link per study, the reports, and MLflow's UI.",
    "[SETTING=VALUE ...]",
    {
        "Settings": (
            replace(PORT, about=PORT.about.format(5000)),
            replace(ROOT, about=ROOT.about + "; MLFLOW_TRACKING_URI, if set, names another record or a running server"),
        )
    },
    (("", "serve it"), ("port=5001 root=FOLDER", "another port, another record")),
    ("Ends with Ctrl-C.",),
)
HOST, HOME = "127.0.0.1", Path(__file__).resolve().parent.parent
REPORT = "report"  # name of our own page among a study's links
_PATIENCE = 180  # seconds for the server to answer; it takes about 15 on an idle machine


def with_reports(root: Path, links: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The links with, of each study, its newest report and the overlay of its two newest sweeps, where written."""
    found = {}
    for study, views in links.items():
        sweeps = Tracking(root, study).sweeps()
        ours = {}
        if sweeps and (made := files(root, sweeps[-1])).page.exists():
            place = f"{site.REPORTS.strip('/')}/{sweeps[-1]}"
            ours[REPORT] = f"{place}/{made.page.name}"
            if len(sweeps) > 1 and made.page.with_name("compare.html").exists():
                ours[f"{sweeps[-1]} against {sweeps[-2]}"] = f"{place}/compare.html"
        found[study] = ours | views
    return found


def free_port(asked: int | None, first: int = 5000) -> int:
    """The asked port, or else `first` or the next one nobody listens on; raises UsageError when it is taken."""
    for port in [asked] if asked else range(first, first + 100):
        with socket.socket() as probe:
            # As the server does: the port of one that has just ended may be taken again at once.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return port
    raise UsageError(f"port: {asked or f'{first} to {first + 99}'} is taken; name a free one with port=...")


@contextlib.contextmanager
def serving(root: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A lean MLflow server (one worker, no job runner: 0.5 GB instead of 3.3) that answers; ended with the block."""
    command = [sys.executable, "-m", "uvicorn", "--factory", "search.tracking.site:made", "--host", HOST]
    command += ["--port", str(port), "--log-level", "warning"]
    env = {**os.environ, **site.environment(root, store_uri(root))}
    log = root / "ui.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, cwd=HOME
        )
    try:
        _wait(server, port, log)
        yield server
    finally:
        _end(server)


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5)
            return
        time.sleep(0.2)
    end = " ".join(log.read_text(errors="replace").split()[-40:])
    what = "ended" if server.poll() is not None else f"did not answer within {_PATIENCE} s"
    raise TrackingError(f"the MLflow server {what}; {log} ends with: {end}")


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and its worker, which share a process group of their own."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(10)
            return


def arguments(argv: Sequence[str], usage: Usage = HELP) -> tuple[Path, int | None]:
    """`key=value` words -> (root, port); raises UsageError."""
    asked = usage.read(argv)
    port = asked["port"]
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise UsageError(f"port: {port!r} is not valid; write a number from 1 to 65535")
    return Path(asked["root"]), int(port) if port else None


def start_page(root: Path, links: dict[str, dict[str, str]]) -> None:
    """Write the page at /pare: of each study its newest front as a picture, the report, and MLflow's pages."""
    body = ["<h1>Pare</h1>", "<p class=soft>What was searched, and MLflow's pages of it.</p>"]
    for study, views in links.items():
        body.append(f"<h2>{escape(study)}</h2>")
        if report := views.get(REPORT):
            picture = report.replace("report.html", "front.png")
            body.append(
                f"<p><a href='/{report}'><b>The report of the newest sweep</b><br><img class=front src='/{picture}' "
                f"alt='The front of {escape(study)}: quality against what the file costs'></a></p>"
            )
        rest = {name or "all trials": place for name, place in views.items() if name != REPORT}
        ours = {name: place for name, place in rest.items() if place.startswith(site.REPORTS.strip("/"))}
        for title, found in (("Compared", ours), ("In MLflow", {n: p for n, p in rest.items() if n not in ours})):
            shown = " · ".join(f"<a href='/{place}'>{escape(name)}</a>" for name, place in found.items())
            body.append(f"<p>{title}: {shown}</p>" if found else "")
    body += [] if links else ["<p>Nothing is recorded yet; run <code>python -m search.run study=mnist_prune</code></p>"]
    (root / site.PAGE).write_text(html.document("Pare", body, charts=False), encoding="utf-8")


def _show(address: str, links: dict[str, dict[str, str]]) -> None:
    for study, views in links.items():
        if REPORT in views:
            print(f"  {study} {REPORT}: {address}/{views[REPORT]}")
    print(f"Start page: {address}{site.START}\nMLflow answers on {address}")
    for study, views in links.items():
        for name, place in views.items():
            if name != REPORT:
                print(f"    {name}: {address}/{place}" if name else f"  {study}: {address}/{place}")
    if not links:
        print("  nothing is recorded yet; run `python -m search.run study=mnist_prune`")


def stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a server as Ctrl-C does."""
    raise KeyboardInterrupt


def _carry_out(words: list[str]) -> int:
    root, asked = arguments(words)
    signal.signal(signal.SIGTERM, stop)
    uri = store_uri(root)
    if uri.startswith("http"):
        _show(uri.rstrip("/"), preset(root))
        return 0
    try:
        port = free_port(asked)
        root.mkdir(parents=True, exist_ok=True)
        links = with_reports(root, preset(root))
        start_page(root, links)
        print("starting the MLflow server, about 15 seconds ...", flush=True)
        with serving(root, port) as server:
            _show(f"http://{HOST}:{port}", links)
            print("Ctrl-C ends it.", flush=True)
            server.wait()
        return 1
    except KeyboardInterrupt:
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 after Ctrl-C or SIGTERM, 2 for a mistake in it, 1 when the server does not start."""
    return command("search.ui", HELP, argv, _carry_out)


if __name__ == "__main__":
    sys.exit(main())
