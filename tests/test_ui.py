"""The UI starts lean on a free port, its links open charts that hold every trial, and it leaves no process behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from search import ui
from search.command import UsageError
from search.front.places import files
from search.front.publish import write
from search.front.summary import summarize
from search.study.metrics import Metrics
from search.tracking import views
from search.tracking.tracking import Tracking
from tests import sweeps
from tests.sweeps import failed, record

RECORDS = [record(0, reference="dense"), *(record(n) for n in range(1, 15)), failed(15, "out of memory")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = sweeps.store(tmp_path_factory.mktemp("mlruns"))
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking = sweeps.sweep(root, "shown", RECORDS)
        write(root, summarize(tracking, "shown-001"))
        tracking.mark_front("shown-001", summarize(tracking, "shown-001").front["number"], len(RECORDS))
    return root


def test_the_view_names_what_was_recorded(root: Path) -> None:
    trials = Tracking(root, "shown").trials("shown-001")
    view = views.chart_view("shown-001", Metrics(), ["accuracy", "latency_ms"], trials)
    drawn = [
        (c["type"], c.get("xaxis", {}).get("key"), c.get("yaxis", {}).get("key")) for c in view["compareRunCharts"]
    ]
    assert drawn == [
        ("IMAGE", None, None),
        ("SCATTER", "latency_ms", "accuracy"),
        ("SCATTER", "size_bytes", "accuracy"),
        ("PARALLEL", None, None),
    ]
    parallel = view["compareRunCharts"][-1]
    assert parallel["selectedParams"] == ["pruning.granularity", "pruning.sparsity", "quantization.scheme"]
    assert set(parallel["selectedMetrics"]) <= set(trials)
    metrics = {c.split("`")[1] for c in view["selectedColumns"] if c.startswith("metrics.")} - {"on_front"}
    assert metrics <= set(trials)
    assert len(json.dumps(view)) < 5000  # what MLflow takes as an experiment's tag


def test_links_are_stored_with_each_study(root: Path) -> None:
    Tracking(root, "untouched")
    links = views.preset(root)
    tracking = Tracking(root, "shown")
    place = f"#/experiments/{tracking.experiment}/runs"
    machine_learning = "workflowType=machine_learning"
    assert links["shown"] == {
        "": f"{place}?viewStateShareKey=pare&compareRunsMode=CHART&{machine_learning}",
        "front": f"{place}?viewStateShareKey=pare-front&compareRunsMode=CHART&{machine_learning}",
        "infeasible": f"{place}?viewStateShareKey=pare-infeasible&compareRunsMode=TABLE&{machine_learning}",
        "failed": f"{place}?viewStateShareKey=pare-failed&compareRunsMode=TABLE&{machine_learning}",
        "sweep shown-001": f"{place}/{tracking.about('shown-001')['run_id']}?{machine_learning}",
    }
    assert list(links["untouched"]) == [""]
    tags = MlflowClient(tracking.uri).get_experiment(tracking.experiment).tags
    for key, filtered in (("pare-front", "pare.front` = 'true'"), ("pare-failed", "pare.state` = 'failed'")):
        assert filtered in json.loads(tags[f"mlflow.sharedViewState.{key}"])["searchFilter"]


def test_failed_and_infeasible_trials_say_so_in_their_names(root: Path) -> None:
    tracking = Tracking(root, "shown")
    trials = tracking.trials("shown-001")
    names = [MlflowClient(tracking.uri).get_run(run_id).info.run_name for run_id in trials["run_id"]]
    marks = [
        "failed" if s == "failed" else "" if f else "infeasible"
        for s, f in zip(trials["state"], trials["feasible"], strict=True)
    ]
    assert {"failed", "infeasible", ""} == set(marks)
    assert [n.endswith(f"[{m}]") if m else "[" not in n for n, m in zip(names, marks, strict=True)] == [True] * len(
        names
    )


def test_a_taken_port_is_passed_over_or_refused() -> None:
    with socket.socket() as listener:
        listener.bind((ui.HOST, 0))
        listener.listen()
        taken = listener.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port: {taken} is taken; name a free one"):
            ui.free_port(taken)
    assert ui.free_port(taken) == taken
    assert 5000 <= ui.free_port(None) < 5100


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("pport=1", r"pport=1: no such argument \(did you mean port=\?\); choose from port=, root="),
        ("port=http", "port: 'http' is not valid; write a number from 1 to 65535"),
        ("root", "root: needs a value"),
    ],
)
def test_a_wrong_command_line_ends_with_2(capsys: pytest.CaptureFixture[str], word: str, message: str) -> None:
    assert ui.main([word]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.fixture(scope="module")
def page(root: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The first link of a `python -m search.ui` that runs, and its process."""
    with socket.socket() as probe:
        probe.bind((ui.HOST, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "search.ui", f"root={root}", f"port={port}"]
    env = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as running:
        assert running.stdout is not None
        link = next((line.split()[-1] for line in running.stdout if line.startswith("  shown: ")), "")
        process = psutil.Process(running.pid)
        yield link, process
        children = process.children(recursive=True)
        assert children
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
        psutil.wait_procs(children, timeout=5)
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_the_server_is_lean_and_local_and_answers_when_it_says_so(page: tuple[str, psutil.Process]) -> None:
    link, process = page
    address = link.split("/#")[0]
    with urllib.request.urlopen(f"{address}/health", timeout=10) as answer:
        assert answer.status == 200
    servers = process.children(recursive=True)
    listening = {c.laddr.ip for s in servers for c in s.net_connections() if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    assert sum(s.memory_info().rss for s in servers) < 1.5e9


def test_the_start_page_leads_to_the_report_on_the_same_address(root: Path, page: tuple[str, psutil.Process]) -> None:
    """And MLflow's own page opens with its chat panel shut, whichever link is opened first."""
    address = page[0].split("/#")[0]

    def read(place: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"{address}{place}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""

    status, start = read("/pare")
    assert status == 200
    places = re.findall(r"href='(/[^']*)'", start)
    assert places[0] == "/pare/reports/shown-001/report.html"
    assert "src='/pare/reports/shown-001/front.png'" in start
    assert read(places[0]) == (200, files(root, "shown-001").page.read_text())
    for outside in ("/pare/reports/../mlflow.db", "/pare/reports/%2e%2e/mlflow.db", "/pare/reports/none"):
        assert read(outside)[0] == 404
    body = read("/")[1]
    assert body.index("autoOpenedOnFirstLoad_v1', 'true'") < body.index("main.")
    assert body.rstrip().endswith("</html>")


def test_trials_are_logged_through_a_server(
    page: tuple[str, psutil.Process],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", page[0].split("/#")[0])
    (tmp_path / "model.onnx").write_bytes(b"a model file")
    one = record(3, artifact=str(tmp_path / "model.onnx"))
    tracking = sweeps.sweep(tmp_path / "unused", "remote", [one, failed(4, "out of memory")])
    assert tracking.log_trial("remote-001", one) == tracking.trials("remote-001")["run_id"][0]
    assert tracking.trials("remote-001")["state"].tolist() == ["complete", "failed"]
    client = MlflowClient(tracking.uri)
    run_id = tracking.trials("remote-001")["run_id"][0]
    assert Path(client.download_artifacts(run_id, "model.onnx", str(tmp_path))).read_bytes() == b"a model file"
    assert not (tmp_path / "unused").exists()
    assert capsys.readouterr().out == ""
