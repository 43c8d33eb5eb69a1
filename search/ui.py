"""MLflow's own pages on the project's store: `python -m search.ui` serves them and prints a link per study.

The first link of a study opens its newest sweep at its charts, further ones its front, its infeasible and its failed
trials alone, and two sweeps side by side. MLflow reads such a view from an experiment's tag
`mlflow.sharedViewState.KEY`; its JSON is the state of MLflow 3.17's page, undocumented, so the version is pinned and
a browser test holds it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd

from search.command import ROOT, Setting, Usage, UsageError, command
from search.front import html
from search.front.places import files
from search.study.metrics import Metrics
from search.tracking import site
from search.tracking.tracking import Tracking, studies
from search.tracking.uri import TrackingError, store_uri

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
KEY, _RECIPES = "pare", "pare-recipes"
_PATIENCE = 180  # seconds for the server to answer; it takes about 15 on an idle machine
_COLUMNS = ("pruning.granularity", "pruning.sparsity", "quantization.scheme", "distillation.temperature")
_PAGES = "workflowType=machine_learning"  # else MLflow shows a menu for chat models
_PARAMS = ("pruning.", "quantization.", "distillation.", "finetuning.")
_FIGURES = ("latency_ms", "latency_ratio", "size_bytes", "size_ratio", "on_front")
_TAGS = ("pare.reference", "pare.state", "pare.feasible", "pare.reason")
# Name of a further view -> its key, what of the trials it shows, and the page's mode.
_PARTS = {
    "front": (f"{KEY}-front", "tags.`pare.front` = 'true'", "CHART"),
    "infeasible": (f"{KEY}-infeasible", "tags.`pare.feasible` = 'false' AND tags.`pare.state` = 'complete'", "TABLE"),
    "stopped": (f"{KEY}-stopped", "tags.`pare.state` = 'stopped'", "TABLE"),
    "failed": (f"{KEY}-failed", "tags.`pare.state` = 'failed'", "TABLE"),
}


def chart_view(
    sweep: str, metrics: Metrics, objectives: Sequence[str], trials: pd.DataFrame, part: str = ""
) -> dict[str, Any]:
    """The state of the runs page: the sweep's trials, or the `part` of them, the front on top, all of them drawn.

    Charts: each further objective, and latency and size in any case, against the first; hypervolume needs no chart
    here, the sweep's own run has it; parallel coordinates over what was varied. `part`: a filter in MLflow's words.
    """
    first = objectives[0] if objectives else metrics.first
    others = [name for name in dict.fromkeys([*objectives[1:], "latency_ms", "size_bytes"]) if name in trials]
    charts = [_scatter(metrics, name, first) for name in others if name != first]
    axes = {"selectedParams": _varied(trials), "selectedMetrics": [*others[::-1], first]}
    charts.append(_card("PARALLEL", "Recipes", _RECIPES, **axes))
    sections = [_section(KEY, "The front", len(charts) - 1), _section(_RECIPES, "Recipes", 1)]
    columns = [f"metrics.`{name}`" for name in (*metrics.quality, *_FIGURES) if name in trials or name == "on_front"]
    columns += [f"params.`{name}`" for name in _COLUMNS if name in trials] + [f"tags.`{name}`" for name in _TAGS]
    return {
        "searchFilter": " AND ".join(filter(None, [_of_sweep("trial", sweep), part])),
        "orderByKey": "metrics.`on_front`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "chartsSearchFilter": "",
        "groupBy": None,
    }


def _of_sweep(kind: str, sweep: str) -> str:
    return f"tags.`pare.kind` = '{kind}' AND tags.`pare.sweep` = '{sweep}'"


def _varied(trials: pd.DataFrame) -> list[str]:
    """The params that differ between the trials the sampler proposed, or else between all; those that matter first."""
    proposed = trials[trials["reference"] == ""] if "reference" in trials else trials
    rows = proposed if len(proposed) > 1 else trials
    params = [name for name in map(str, rows) if name.startswith(_PARAMS) and rows[name].nunique() > 1]
    return sorted(params, key=lambda name: _COLUMNS.index(name) if name in _COLUMNS else len(_COLUMNS))


def _section(uuid: str, name: str, columns: int) -> dict[str, Any]:
    section = {"uuid": uuid, "name": name, "display": True, "columns": max(1, columns), "cardHeight": 480}
    return section | {"isReordered": False, "deleted": False, "isGenerated": False}


def _scatter(metrics: Metrics, x: str, y: str) -> dict[str, Any]:
    title = f"{metrics[y].title} against {metrics[x].phrase}"
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return _card("SCATTER", title, KEY, **axes)


def _card(kind: str, title: str, section: str, **rest: Any) -> dict[str, Any]:
    card = {"type": kind, "uuid": f"{KEY}-{title}", "metricSectionId": section, "displayName": title}
    return {**card, "runsCountToCompare": 1000, "deleted": False, "isGenerated": False, "showAllRuns": True, **rest}


def preset(root: Path) -> dict[str, dict[str, str]]:
    """Store the views with every recorded study; study -> name of a view -> the link's part after the address.

    The view without a name is the study's own: all trials of its newest sweep, in charts.
    """
    links = {}
    for study, experiment in studies(root).items():
        tracking = Tracking(root, study)
        sweeps = tracking.sweeps()
        place = f"#/experiments/{experiment}/runs"
        links[study] = {"": f"{place}?{_PAGES}"} if not sweeps else _views(tracking, sweeps, place)
    return links


def _views(tracking: Tracking, sweeps: Sequence[str], place: str) -> dict[str, str]:
    newest = sweeps[-1]
    about, trials = tracking.about(newest), tracking.trials(newest)
    found = {}
    for name, (key, part, mode) in {"": (KEY, "", "CHART"), **_PARTS}.items():
        view = chart_view(newest, about["metrics"], about["objectives"] or [], trials, part)
        tracking.tag_study(f"mlflow.sharedViewState.{key}", json.dumps(view, separators=(",", ":")))
        if not name or _counted(trials, name):
            found[name] = f"{place}?viewStateShareKey={key}&compareRunsMode={mode}&{_PAGES}"
    found[f"sweep {newest}"] = f"{place}/{about['run_id']}?{_PAGES}"
    if len(sweeps) > 1:
        # MLflow's page compares settings; what differs of the fronts is in our overlay.
        pair = json.dumps([tracking.about(sweep)["run_id"] for sweep in sweeps[-2:]], separators=(",", ":"))
        query = urllib.parse.urlencode({"runs": pair, "experiments": json.dumps([tracking.experiment])})
        found[f"settings of {newest} against {sweeps[-2]}"] = f"#/compare-runs?{query}&{_PAGES}"
    return found


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


def _counted(trials: pd.DataFrame, part: str) -> int:
    """How many trials the part holds."""
    if trials.empty:
        return 0
    complete = trials["state"] == "complete"
    kinds = {"front": trials["on_front"], "infeasible": complete & ~trials["feasible"]}
    return int(kinds.get(part, trials["state"] == part).sum())


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
        rest = [(name or "all trials", place) for name, place in views.items() if name != REPORT]
        body.append("<p>In MLflow: " + " · ".join(f"<a href='/{p}'>{escape(n)}</a>" for n, p in rest) + "</p>")
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
