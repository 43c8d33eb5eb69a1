"""The picked model at work: served over HTTP, loaded by MLflow, in its own environment; bad requests get a 4xx."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import mlflow
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from mlflow.tracking import MlflowClient

from runtimes import litert, onnxruntime
from runtimes.base import Artifact, run_single
from search import pick
from search.tracking import registry
from search.tracking.uri import store_uri
from tasks.mnist import data
from tasks.mnist.data import MEAN, STD
from tests.linear import LinearTrainer, config, fitted, searched

PAGE = (Path(__file__).parent.parent / "docs" / "production.md").read_text()
IMAGE = [[0] * 28] * 28
pytestmark = [pytest.mark.timeout(900), pytest.mark.cluster]  # the first test waits for two sweeps
ABOUT = {"mean": MEAN, "std": STD, "shape": [28, 28]}


@pytest.fixture(scope="module")
def served(studied: Path) -> Iterator[int]:
    """Port of `mlflow models serve` on the model picked from a real sweep."""
    assert pick.main(["study=smoke", f"root={studied}"]) == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MLFLOW_TRACKING_URI": store_uri(studied)}
    command = ["mlflow", "models", "serve", "-m", "models:/smoke@picked", "--env-manager", "local"]
    with (studied / "served.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **place},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        for _ in range(900):
            assert server.poll() is None, (studied / "served.log").read_text()
            with contextlib.suppress(OSError):
                if ask(port, b"", path="/ping", method="GET")[0] == 200:
                    break
            time.sleep(0.2)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def ask(
    port: int, body: bytes, kind: str | None = "application/json", path: str = "/invocations", method: str = "POST"
) -> tuple[int, bytes]:
    """(status, answer)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
        connection.putrequest(method, path)
        connection.putheader("Content-Length", str(len(body)))
        if kind is not None:
            connection.putheader("Content-Type", kind)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read()


def labels_of(file: Path, images: np.ndarray) -> np.ndarray:
    """What the file's own runtime says of uint8 images [N, 28, 28]."""
    runtime: Any = onnxruntime if file.suffix == ".onnx" else litert
    artifact = Artifact.of(file)
    labels: np.ndarray = run_single(runtime.load(artifact, 1), data.normalized(images, artifact.layout)).argmax(1)
    return labels


def test_the_server_gives_the_same_500_labels_as_the_file(served: int, studied: Path) -> None:
    images = data.open_test("mnist", studied / "cache").images[:500]
    status, body = ask(served, json.dumps({"inputs": images.tolist()}).encode())
    assert status == 200
    given = np.array([row["label"] for row in json.loads(body)["predictions"]])
    (file,) = (path for path in (studied / "picked" / "smoke").glob("model.*") if path.suffix != ".pare")
    assert np.array_equal(given, labels_of(file, images))
    assert len(set(given)) == 10


def test_the_curl_command_of_the_page_is_answered(served: int, studied: Path, tmp_path: Path) -> None:
    """As it stands in docs/production.md, but for the study's name and the port, beside the folder mlruns."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (line,) = [line for line in PAGE.splitlines() if line.startswith("curl ") and "/invocations" in line]
    (tmp_path / "mlruns").symlink_to(studied)
    command = shlex.split(line.replace(":5001/", f":{served}/").replace("mnist_prune", "smoke"))
    said = subprocess.run([*command, "--silent", "--fail"], cwd=tmp_path, capture_output=True, text=True, check=True)
    (row,) = json.loads(said.stdout)["predictions"]
    assert set(row) == {"label", "probability"}
    assert row["label"] in range(10)


def body(inputs: object) -> bytes:
    return json.dumps({"inputs": inputs}).encode()


@pytest.mark.parametrize(
    ("request_body", "kind", "status", "says"),
    [
        (body([[[0] * 27] * 28]), "application/json", 400, "does not match expected shape (-1, 28, 28)"),
        (body(IMAGE), "application/json", 400, "does not match expected shape (-1, 28, 28)"),
        (body([]), "application/json", 400, "suggests a numpy array input"),
        (body([[[0.5] * 28] * 28]), "application/json", 400, "pixels from 0.5 to 0.5 are not valid; send whole grey"),
        (body([[[256] * 28] * 28]), "application/json", 400, "pixels from 256 to 256 are not valid"),
        (body([[["a"] * 28] * 28]), "application/json", 400, "could not convert string to float: 'a'"),
        (body([IMAGE, [[1]]]), "application/json", 400, "inhomogeneous shape"),
        (body({"a": 1}), "application/json", 400, "expects a single n-dimensional array"),
        (b"", "application/json", 400, "Ensure that input is a valid JSON"),
        (b"", None, 400, "Ensure that input is a valid JSON"),
        (b"{}", "application/json", 400, "exactly one of the input fields"),
        (b"[" * 100_000, "application/json", 400, "The request cannot be read: RecursionError"),
        (b"0,1,2\n", "text/csv", 400, "Failed to parse input"),
        (b"\x89PNG", "image/png", 415, "only supports the following content types"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_malformed_request_gets_a_clear_4xx(
    served: int, request_body: bytes, kind: str | None, status: int, says: str
) -> None:
    found, answer = ask(served, request_body, kind)
    assert (found, says in answer.decode()) == (status, True), answer[:2000]
    assert len(answer) < 2500
    assert ask(served, body([IMAGE]))[0] == 200


@pytest.mark.parametrize("kind", ["application/json", "text/csv", "application/octet-stream"])
def test_50_mb_of_noise_get_a_short_4xx_and_the_server_stays_up(served: int, kind: str) -> None:
    status, answer = ask(served, np.random.default_rng(0).bytes(50_000_000), kind)
    assert status in (400, 415)
    assert len(answer) < 2500
    assert ask(served, body([IMAGE]))[0] == 200


def test_the_picked_model_says_what_it_takes_and_needs(served: int, studied: Path) -> None:
    mlflow.set_tracking_uri(store_uri(studied))
    info = mlflow.models.get_model_info("models:/smoke@picked")
    assert str(info.signature.inputs) == "[Tensor('float32', (-1, 28, 28))]"
    assert [column.name for column in info.signature.outputs] == ["label", "probability"]
    folder = Path(mlflow.artifacts.download_artifacts("models:/smoke@picked", dst_path=str(studied / "taken")))
    needs = [line.partition("==")[0] for line in (folder / "requirements.txt").read_text().split()]
    assert sorted(needs) == ["mlflow-skinny", "numpy", "onnxruntime", "pandas"]
    status, _ = ask(served, (folder / "serving_input_example.json").read_bytes())
    assert status == 200


def test_a_tflite_file_predicts_the_same_through_mlflow(planted: LinearTrainer, root: Path) -> None:
    sweep = searched(config(root))
    images = data.open_test("mnist", root / "cache").images[:500]
    weights = fitted(data.load("mnist", root / "cache", train_size=3000).train)
    file = write_tflite(weights, root / "model.tflite")
    client = MlflowClient(store_uri(root))
    experiment = client.get_experiment_by_name("lucky")
    (run, *_) = client.search_runs([experiment.experiment_id], f"tags.`pare.sweep` = '{sweep.name}'")
    registry.register(store_uri(root), "lucky", run.info.run_id, file, ABOUT | {"layout": "NHWC"}, "", "picked")
    mlflow.set_tracking_uri(store_uri(root))
    given = mlflow.pyfunc.load_model("models:/lucky@picked").predict(images.astype(np.float32))
    assert np.array_equal(given["label"], labels_of(file, images))
    assert len(set(given["label"])) == 10


def write_tflite(weights: np.ndarray, path: Path) -> Path:
    """One fully connected layer on NHWC images: float32 weights [784, 10]."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(weights.T, np.float32).tobytes(), np.uint8)
    graph = schema.SubGraphT()
    graph.tensors = []
    for name, shape in (("images", (1, 28, 28, 1)), ("kernel", (10, 784)), ("logits", (1, 10))):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, list(shape), schema.TensorType.FLOAT32
        tensor.buffer = int(name == "kernel")
        graph.tensors.append(tensor)
    layer = schema.OperatorT()
    layer.opcodeIndex, layer.inputs, layer.outputs = 0, [0, 1, -1], [2]
    layer.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    layer.builtinOptions = schema.FullyConnectedOptionsT()
    graph.inputs, graph.outputs, graph.operators = [0], [2], [layer]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    model = schema.ModelT()
    model.version, model.buffers = 3, [schema.BufferT(), buffer]
    model.subgraphs, model.operatorCodes = [graph], [code]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    return path


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_fresh_environment_with_only_its_requirements_loads_and_runs_it(
    served: int, studied: Path, tmp_path: Path
) -> None:
    mlflow.set_tracking_uri(store_uri(studied))
    folder = mlflow.artifacts.download_artifacts("models:/smoke@picked", dst_path=str(tmp_path / "taken"))
    images = data.open_test("mnist", studied / "cache").images[:100]
    np.save(tmp_path / "images.npy", images.astype(np.float32))
    (base,) = {getattr(sys, "_base_executable", sys.executable)}
    subprocess.run([base, "-m", "venv", str(tmp_path / "own")], check=True)
    python = str(tmp_path / "own" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", f"{folder}/requirements.txt"]
    subprocess.run(pip, check=True, timeout=600)
    code = (
        "import mlflow, numpy, sys; "
        f"model = mlflow.pyfunc.load_model({str(folder)!r}); "
        "print(*model.predict(numpy.load('images.npy'))['label'])"
    )
    bare = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    said = subprocess.run([python, "-c", code], cwd=tmp_path, env=bare, capture_output=True, text=True, check=True)
    (file,) = (path for path in (studied / "picked" / "smoke").glob("model.*") if path.suffix != ".pare")
    assert said.stdout.split() == [str(label) for label in labels_of(file, images)]
    size = sum(path.stat().st_size for path in (tmp_path / "own").rglob("*") if path.is_file())
    print(f"the environment takes {size / 1e6:.0f} MB")
