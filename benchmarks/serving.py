"""search.serve beside MLflow's scoring server, a plain FastAPI script and Ray Serve's defaults, interleaved, JSON in.

    python -m benchmarks.serving [seconds=2] [rounds=3] [model=FILE.onnx] [p99_ms=50] [connections=1,8,32,96]

All four serve the same file with ONNX Runtime, one process and one thread each, and are up at the same time; a round
asks each in turn with each number of connections, from a process of its own (benchmarks/load.py). Ours without its
cache, so that every answer is computed, and once more with it. `best` is the highest median rate whose median p99
stayed within p99_ms; `CPU us`: microseconds of CPU a request, of all the server's processes. Without `model` an MLP of
784-300-100-10 that takes some 0.02 ms.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from benchmarks import load
from runtimes import onnxruntime
from runtimes.base import Artifact
from serving import package

PLAIN = """
import numpy as np, onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession({file!r}, options, providers=["CPUExecutionProvider"])
app = FastAPI()
class Request(BaseModel):
    inputs: list
@app.post("/predict")
def predict(request: Request):
    given = np.asarray(request.inputs, np.float32)
    return {{"outputs": session.run(None, {{{name!r}: given}})[0].tolist()}}
"""
RAY = """
import sys, time
import numpy as np, onnxruntime, ray
from ray import serve
@serve.deployment
class Model:
    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession({file!r}, options, providers=["CPUExecutionProvider"])
    async def __call__(self, request):
        given = np.asarray((await request.json())["inputs"], np.float32)
        return {{"outputs": self.session.run(None, {{{name!r}: given}})[0].tolist()}}
ray.init(num_cpus=2, include_dashboard=False, _temp_dir={scratch!r})
serve.start(http_options={{"host": "127.0.0.1", "port": int(sys.argv[1])}})
serve.run(Model.bind(), route_prefix="/predict")
time.sleep(100000)
"""


@dataclass(frozen=True)
class Server:
    """One of those compared."""

    name: str
    command: list[str]
    port: int
    path: str
    body: Path


@contextlib.contextmanager
def up(server: Server, scratch: Path) -> Iterator[psutil.Process]:
    """Started and answering; ended with the block, whatever it started besides."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
    env |= {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": str(Path(__file__).parent.parent)}
    with (scratch / f"{server.port}.log").open("wb") as log:
        process = subprocess.Popen(server.command, stdout=log, stderr=log, env=env, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((scratch / f"{server.port}.log").read_text()[-2000:])
            request = urllib.request.Request(f"http://127.0.0.1:{server.port}{server.path}", server.body.read_bytes())
            request.add_header("Content-Type", "application/json")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(request, timeout=5)
                break
            time.sleep(0.3)
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(45)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def cpu_s(root: psutil.Process) -> float:
    """CPU-seconds so far of the process and all below it: what a busy machine does not change much."""
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            spent = process.cpu_times()
            total += spent.user + spent.system
    return total


def mlp(file: Path) -> Path:
    """784-300-100-10 with seeded weights."""
    random, sizes = np.random.default_rng(0), (784, 300, 100, 10)
    nodes, weights, at = [], [], "input"
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        weights.append(numpy_helper.from_array((random.standard_normal((a, b)) / a**0.5).astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("MatMul", [at, f"w{i}"], [f"m{i}" if i < 2 else "logits"]))
        if i < 2:
            nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"]))
            at = f"r{i}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("input", 784), ("logits", 10))
    ]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


def servers(file: Path, scratch: Path) -> list[Server]:
    """The five."""
    made = package.make(file, "bench", "onnxruntime")
    made.write(scratch / "picked")
    (port,) = made.about.inputs
    x = next(iter(package.example_of([port], rows=1).values())).round(4)
    (scratch / "rows.json").write_text(json.dumps({"inputs": x.tolist()}))
    tensor = {"name": port.name, "shape": list(x.shape), "datatype": "FP32", "data": x.reshape(-1).tolist()}
    (scratch / "v2.json").write_text(json.dumps({"inputs": [tensor]}))
    names = {"file": str(file), "name": port.name, "scratch": tempfile.mkdtemp(prefix="pb", dir="/tmp")}
    (scratch / "plain.py").write_text(PLAIN.format(**names))
    (scratch / "serve.py").write_text(RAY.format(**names))
    import mlflow

    mlflow.onnx.save_model(onnx.load(file), str(scratch / "mlflow"), input_example=x)
    rows, v2, python = scratch / "rows.json", scratch / "v2.json", sys.executable
    ports = [_free() for _ in range(5)]
    ours = [python, "-m", "search.serve", f"model={scratch / 'picked'}", f"root={scratch}"]
    mlflow_words = ["models", "serve", "-m", str(scratch / "mlflow"), "--env-manager", "local"]
    plain = ["uvicorn", "plain:app", "--app-dir", str(scratch), "--log-level", "error"]
    infer = "/v2/models/bench/infer"
    return [
        Server("ours", [*ours, f"port={ports[0]}", "cache_mb=0"], ports[0], infer, v2),
        Server("ours, cached", [*ours, f"port={ports[1]}"], ports[1], infer, v2),
        Server("plain FastAPI", [python, "-m", *plain, "--port", str(ports[2])], ports[2], "/predict", rows),
        Server("Ray Serve, defaults", [python, str(scratch / "serve.py"), str(ports[3])], ports[3], "/predict", rows),
        Server(
            "mlflow", [python, "-m", "mlflow", *mlflow_words, "--port", str(ports[4])], ports[4], "/invocations", rows
        ),
    ]


def _free() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    said = dict(word.partition("=")[::2] for word in sys.argv[1:])
    seconds, rounds, goal = float(said.get("seconds", 2)), int(said.get("rounds", 3)), float(said.get("p99_ms", 50))
    connections = [int(n) for n in said.get("connections", "1,8,32,96").split(",")]
    with tempfile.TemporaryDirectory(prefix="pare-bench-") as folder, contextlib.ExitStack() as running:
        scratch = Path(folder)
        file = Path(said["model"]).resolve() if "model" in said else mlp(scratch / "mlp.onnx")
        compared = servers(file, scratch)
        if only := said.get("only"):
            compared = [each for each in compared if only in each.name]
        processes = {}
        for server in compared:
            processes[server.name] = running.enter_context(up(server, scratch))
            print(f"{server.name} answers", flush=True)
        found: dict[tuple[str, int], list[dict[str, float]]] = {}
        for _ in range(rounds):
            for count in connections:
                for server in compared:
                    before = cpu_s(processes[server.name])
                    got = load.run("127.0.0.1", server.port, server.path, count, seconds, server.body)
                    spent_s = cpu_s(processes[server.name]) - before
                    got["cpu_us"] = 1e6 * spent_s / max(1.0, got["rate"] * seconds)
                    found.setdefault((server.name, count), []).append(got)
        report(compared, connections, found, goal)
        session = onnxruntime.load(Artifact.of(file), 1)
        call = session.bind(package.example_of(session.inputs, rows=1))
        call()
        spent = [_timed(call) for _ in range(500)]
        print(f"the model alone: {1e3 * statistics.median(spent):.3f} ms; load average {os.getloadavg()[0]:.1f}")


def _timed(call: object) -> float:
    began = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - began


def report(
    compared: list[Server], connections: list[int], found: dict[tuple[str, int], list[dict[str, float]]], goal: float
) -> None:
    """A line per server and number of connections, medians over the rounds; then the best rates within the goal."""
    middle = {
        key: {k: statistics.median(each[k] for each in all_of) for k in all_of[0]} for key, all_of in found.items()
    }
    print(f"{'':22}{'connections':>12}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'bad':>5}{'CPU us':>9}")
    for server in compared:
        for count in connections:
            got = middle[server.name, count]
            print(
                f"{server.name:22}{count:>12}{got['rate']:>12,.0f}{got['p50']:>9.2f}{got['p99']:>9.2f}{got['bad']:>5.0f}"
                f"{got['cpu_us']:>9.0f}"
            )
    best = {
        server.name: max(
            (middle[server.name, n]["rate"] for n in connections if middle[server.name, n]["p99"] <= goal), default=0.0
        )
        for server in compared
    }
    ours = best.get("ours", 0.0)
    for name, rate in best.items():
        ratio = f"{ours / rate:.1f} times as many by ours" if rate else "never within it"
        print(f"best within p99 {goal:g} ms: {name}: {rate:,.0f}/s ({ratio})")


if __name__ == "__main__":
    main()
