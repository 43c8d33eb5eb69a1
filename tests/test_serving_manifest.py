"""serve.yaml as it stands, by Ray Serve's own command, and search.serve on a cluster that it finds by itself."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from serving import picked
from serving.package import Package
from tests import loopback
from tests.test_serving_http import expected, inputs, request, version

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture  # of its own for each test: Ray Serve may take a minute to give up what it served
def cluster() -> Iterator[loopback.Cluster]:
    with loopback.cluster() as made:
        made.add(cpus=2)
        yield made


@contextlib.contextmanager
def running(words: list[str], cluster: loopback.Cluster, said: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    with said.open("wb") as log:
        process = subprocess.Popen(
            words, stdout=log, stderr=log, env=cluster.env | env, cwd=said.parent, start_new_session=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def answer(url: str, body: bytes, process: subprocess.Popen[bytes], said: Path) -> Any:
    deadline = time.monotonic() + 150
    while True:
        with contextlib.suppress(OSError):
            return json.loads(urllib.request.urlopen(urllib.request.Request(url, body), timeout=10).read())
        assert process.poll() is None, said.read_text()[-3000:]
        assert time.monotonic() < deadline, said.read_text()[-3000:]
        time.sleep(0.5)


def same(found: Any, made: Package, x: np.ndarray, folder: Path) -> None:
    data = np.array(found["outputs"][0]["data"]).reshape(found["outputs"][0]["shape"])
    np.testing.assert_allclose(data, expected(made, x, folder), rtol=1e-4, atol=1e-4)


def closed(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_serve_run_with_the_manifest_answers_itself_and_through_the_proxy(
    cluster: loopback.Cluster, tmp_path: Path
) -> None:
    made = version(tmp_path, 0, "")
    out = tmp_path / "out"
    made.write(out)
    picked.write(made, out, "sqlite:///mlruns/mlflow.db", "picked")
    said, port, proxy = yaml.safe_load((out / "serve.yaml").read_text()), loopback.free_port(), loopback.free_port()
    said["applications"][0]["args"]["port"] = port  # ports of this test; the rest as it is written
    said["http_options"] = {"port": proxy}
    (out / "serve.yaml").write_text(yaml.safe_dump(said))
    x, log = inputs(3), tmp_path / "serve.log"
    words = [str(Path(sys.executable).parent / "serve"), "run", f"--address={cluster.address}", str(out / "serve.yaml")]
    with running(words, cluster, log) as process:
        same(answer(f"http://127.0.0.1:{port}/v2/models/m/infer", request(x), process, log), made, x, tmp_path)
        through = f"http://127.0.0.2:{proxy}/m"
        same(answer(f"{through}/v2/models/m/infer", request(x), process, log), made, x, tmp_path)
        assert json.loads(urllib.request.urlopen(f"{through}/healthz", timeout=30).read())["status"] == "ok"


def test_search_serve_finds_the_cluster_and_ends_with_ctrl_c(cluster: loopback.Cluster, tmp_path: Path) -> None:
    made = version(tmp_path, 1, "")
    made.write(tmp_path / "out")
    port, x, log = loopback.free_port(), inputs(2), tmp_path / "serve.log"
    words = [sys.executable, "-m", "search.serve", f"model={tmp_path / 'out'}", f"root={tmp_path}", f"port={port}"]
    with running([*words, "address=auto"], cluster, log, RAY_ADDRESS=cluster.address) as process:
        same(answer(f"http://127.0.0.1:{port}/v2/models/m/infer", request(x), process, log), made, x, tmp_path)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130)
    text = log.read_text()
    assert "Traceback" not in text
    assert closed(port)
