"""search.serve on two Ray nodes under load: versions change, replicas and a node die, no answer is lost or wrong."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.http as triton
from mlflow.tracking import MlflowClient

from runtimes import onnxruntime
from runtimes.base import Artifact
from serving import package
from serving.package import Package
from tests import loopback
from tests.test_partition import residual
from tests.test_serving_http import inputs, request, version

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
ROOT = Path(__file__).parent.parent
STUDY = "served"
TOKEN = "a secret of this test"


class Registry:
    """A registry with versions of the model, made without a sweep."""

    def __init__(self, root: Path) -> None:
        self.root, self.uri = root, f"sqlite:///{root}/mlflow.db"
        self.client = MlflowClient(self.uri)
        place = (root / "artifacts").as_uri()
        self.experiment = self.client.create_experiment("made", artifact_location=place)
        self.client.create_registered_model(STUDY)
        self.wanted: dict[str, np.ndarray] = {}

    def add(self, made: Package, x: np.ndarray | None = None) -> str:
        """Register it; the alias moves to it. `x`: what it answers to that is remembered."""
        folder = self.root / f"version{len(self.wanted)}"
        made.write(folder)
        run = self.client.create_run(self.experiment)
        self.client.log_artifacts(run.info.run_id, str(folder), "model/artifacts")
        source = f"{run.info.artifact_uri}/model"
        number = str(self.client.create_model_version(STUDY, source, run.info.run_id).version)
        if x is not None:
            session = onnxruntime.load(Artifact.of(folder / "model.onnx"), 1)
            self.wanted[number] = session.run({"input": x})["logits"]
        self.client.set_registered_model_alias(STUDY, "picked", number)
        return number


class Load:
    """Clients that never stop: every answer is compared with what the version it names must answer."""

    def __init__(self, addresses: list[str], port: int, x: np.ndarray, wanted: dict[str, np.ndarray]) -> None:
        self.addresses, self.port, self.wanted = addresses, port, wanted
        self.body = request(x)
        self.answers: Counter[str] = Counter()
        self.retries = 0
        self.wrong: list[str] = []
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._client, args=(i,), daemon=True) for i in range(4)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(60)

    def _client(self, index: int) -> None:
        at, connection = index, None
        while not self.stop.is_set():
            connection = connection or http.client.HTTPConnection(
                self.addresses[at % len(self.addresses)], self.port, 10
            )
            try:
                connection.request("POST", f"/v2/models/{STUDY}/infer", self.body, {"Authorization": f"Bearer {TOKEN}"})
                answer = connection.getresponse()
                status, body = answer.status, answer.read()
            except (OSError, http.client.HTTPException):
                self.retries += 1  # the other replica is asked instead
                with contextlib.suppress(OSError):
                    connection.close()
                at, connection = at + 1, None
                time.sleep(0.05)
                continue
            self._check(status, body)

    def _check(self, status: int, body: bytes) -> None:
        if status != 200:
            self.wrong.append(f"{status} {body[:200]!r}")
            return
        said = json.loads(body)
        found = np.array(said["outputs"][0]["data"]).reshape(said["outputs"][0]["shape"])
        if not np.allclose(found, self.wanted[said["model_version"]], rtol=1e-3, atol=1e-4):
            self.wrong.append(f"not what version {said['model_version']} answers")
        self.answers[said["model_version"]] += 1

    def wait(self, label: str, more: int = 200, patience: float = 60) -> None:
        """Until so many further answers came from that version."""
        goal, deadline = self.answers[label] + more, time.monotonic() + patience
        while self.answers[label] < goal:
            assert not self.wrong, self.wrong[:3]
            assert time.monotonic() < deadline, (label, self.answers)
            time.sleep(0.05)


def serve(cluster: loopback.Cluster, log: Path, *words: str) -> subprocess.Popen[bytes]:
    """search.serve on the cluster, answering."""
    command = [sys.executable, "-m", "search.serve", f"address={cluster.address}", *words]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=cluster.env, stdout=output, stderr=output)
    deadline = time.monotonic() + 180
    while "Ctrl-C ends it." not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    return process


def end(process: subprocess.Popen[bytes], log: Path) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, log.read_text()
    assert log.read_text().rstrip().endswith("ended")


def tell(cluster: loopback.Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "search.serve", *words]
    return subprocess.run(command, cwd=ROOT, env=cluster.env, capture_output=True, text=True, timeout=120)


def replica(node: loopback.Node) -> psutil.Process:
    """The process that answers HTTP on the node."""
    for process in node.processes():
        title = loopback._title(process)
        if title.startswith("ray::ServeReplica") and title.split()[0].endswith(":Replica"):
            return process
    raise AssertionError(f"no replica on {node.ip}")


def healthy(address: str, port: int) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection(address, port, timeout=5)
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    return False


def until(true: Callable[[], bool], patience: float = 90) -> None:
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def nodes() -> Iterator[loopback.Cluster]:
    with loopback.cluster() as made:
        made.env["PARE_SERVE_TOKEN"] = TOKEN  # as host=node needs
        made.add(cpus=1)
        made.add(cpus=1)
        yield made


@pytest.mark.parametrize("parts", [2])
def test_a_pipeline_over_two_nodes_answers_as_the_whole(nodes: loopback.Cluster, parts: int, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(residual())
    made = package.make(tmp_path / "net.onnx", "net", "onnxruntime")
    made.write(tmp_path / "picked")
    port, log = loopback.free_port(), tmp_path / "serve.log"
    words = [f"model={tmp_path / 'picked'}", f"root={tmp_path}", f"parts={parts}", "num_cpus=0.8", f"port={port}"]
    process = serve(nodes, log, *words)
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    session = onnxruntime.load(Artifact.of(tmp_path / "picked" / "model.onnx"), 1)
    for rows in (1, 7):
        x = np.random.default_rng(rows).standard_normal((rows, 3, 12, 12)).astype(np.float32)
        given = triton.InferInput("x", list(x.shape), "FP32")
        given.set_data_from_numpy(x)
        found = client.infer("net", [given], headers=headers)
        for name, wanted in session.run({"x": x}).items():
            np.testing.assert_allclose(found.as_numpy(name), wanted, atol=1e-5, rtol=1e-5)
    where = {node.ip: [c for p in node.processes() for c in p.cmdline()[:1] if ":Part" in c] for node in nodes.nodes}
    assert all(len(each) == 1 for each in where.values()), where  # 0.8 of one CPU: a part on each node
    end(process, log)


def test_versions_change_and_replicas_and_a_node_die_without_one_wrong_answer(
    nodes: loopback.Cluster, blank_store: Path, tmp_path: Path
) -> None:
    root = tmp_path / "mlruns"
    root.mkdir()
    shutil.copyfile(blank_store, root / "mlflow.db")
    record = Registry(root)
    x = inputs(2)
    first = record.add(version(tmp_path, 1, ""), x)
    port, log = loopback.free_port(), tmp_path / "serve.log"
    where = [f"root={root}", f"study={STUDY}", f"port={port}"]
    process = serve(nodes, log, *where, "replicas=2", "host=node", "num_cpus=0.8", "watch=yes", "cache_mb=1")
    with Load(["127.0.0.2", "127.0.0.3"], port, x, record.wanted) as load:
        load.wait(first)
        second = record.add(version(tmp_path, 2, ""), x)  # the alias moves, and is followed
        load.wait(second)
        told = tell(nodes, "update", *where, "url=http://127.0.0.2:" + str(port))
        assert f"serve version {second}" in told.stdout, told.stderr
        before = load.answers[first]
        load.wait(second)
        assert load.answers[first] == before  # all had switched

        replica(nodes.nodes[1]).kill()
        until(lambda: not healthy("127.0.0.3", port), 30)
        until(lambda: healthy("127.0.0.3", port))
        load.wait(second)

        bad = version(tmp_path, 3, "")
        other = version(tmp_path, 4, "")
        record.add(Package(bad.about, bad.content, bad.files, other.example))  # it fails its own example
        told = tell(nodes, "update", *where, "url=http://127.0.0.3:" + str(port))
        assert told.returncode == 1
        assert "off by" in told.stderr
        assert f"version {second} stays in service" in told.stderr
        load.wait(second)

        told = tell(nodes, "rollback", *where, "url=http://127.0.0.3:" + str(port))
        assert f"serve version {first}" in told.stdout, told.stderr
        assert str(record.client.get_model_version_by_alias(STUDY, "picked").version) == first
        before = load.answers[second]
        load.wait(first)
        assert load.answers[second] == before

        nodes.nodes[1].kill()
        load.wait(first, 1000)
    assert load.wrong == []
    assert load.retries > 0  # two deaths were noticed
    for _ in range(10_000):
        assert healthy("127.0.0.2", port)
    assert psutil.pid_exists(process.pid)
    end(process, log)
    print(f"{sum(load.answers.values())} answers, {load.retries} retries")
