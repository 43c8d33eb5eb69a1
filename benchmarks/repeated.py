"""Inputs that come again: how many answers the cache gives, how fast, and none of them an earlier version's.

    python -m benchmarks.repeated [net=resnet18] [inputs=200] [requests=2000] [cache_mb=64]

One client of search.serve, without pause; inputs are asked for as often as words of a language are used (Zipf). Halfway
the served folder gets other weights and `search.serve update` is called while the client continues. Every answer is
compared with what the version that it names must say.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.pipeline import exported
from runtimes import onnxruntime
from runtimes.base import Artifact
from serving import package
from serving.package import Package
from serving.protocol import HEADER
from tests.loopback import free_port

SERVE = [sys.executable, "-m", "search.serve"]


def versions(net: str, folder: Path) -> list[Package]:
    """The network, and the same with the matrices of its linear layers turned round."""
    first = exported(net, "fp32", folder / "first.onnx")
    model = onnx.load(first)
    for weight in (weight for weight in model.graph.initializer if len(weight.dims) == 2):
        weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    onnx.save(model, folder / "second.onnx")
    return [package.make(folder / f"{name}.onnx", "net", "onnxruntime") for name in ("first", "second")]


class Client:
    """One connection; what it was answered, and how long that took."""

    def __init__(self, port: int, inputs: np.ndarray, wanted: dict[str, np.ndarray], name: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.wanted, self.seen = wanted, set[tuple[str, int]]()
        self.spent: dict[str, list[float]] = {"first time": [], "again": []}
        self.answers, self.wrong = Counter[str](), 0
        about = {"shape": [1, *inputs.shape[1:]], "datatype": "FP32"}
        tensor = {"name": name, **about, "parameters": {"binary_data_size": inputs[0].nbytes}}
        self.header = json.dumps({"inputs": [tensor]}).encode()
        self.bodies = [self.header + each.tobytes() for each in inputs]

    def ask(self, index: int) -> None:
        """Ask for one input."""
        began = time.perf_counter()
        self.connection.request("POST", "/v2/models/net/infer", self.bodies[index], {HEADER: str(len(self.header))})
        answer = self.connection.getresponse()
        body = answer.read()
        spent = 1e3 * (time.perf_counter() - began)
        said = json.loads(body)
        label = said["model_version"]
        self.spent["again" if (label, index) in self.seen else "first time"].append(spent)
        self.seen.add((label, index))
        self.answers[label] += 1
        wanted = self.wanted[label][index]
        self.wrong += not np.allclose(said["outputs"][0]["data"], wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


def counted(port: int) -> tuple[int, int]:
    """(hits, misses) as the server has them."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/status")
    replicas = json.loads(connection.getresponse().read())["replicas"].values()
    return sum(each["cache"]["hits"] for each in replicas), sum(each["cache"]["misses"] for each in replicas)


@contextlib.contextmanager
def served(folder: Path, port: int, *words: str) -> Iterator[None]:
    """search.serve of the picked folder, answering."""
    command = [*SERVE, f"model={folder / 'picked'}", f"root={folder}", f"port={port}", *words]
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        while "Ctrl-C ends it." not in log.read_text():
            if process.poll() is not None:
                raise RuntimeError(log.read_text()[-1000:])
            time.sleep(0.2)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def replaced(folder: Path, made: Package, port: int) -> threading.Thread:
    """Other weights in the picked folder, and the server is being told of them."""
    shutil.rmtree(folder / "picked")
    made.write(folder / "picked")
    words = [*SERVE, "update", f"port={port}", f"model={folder / 'picked'}"]
    thread = threading.Thread(target=subprocess.run, args=(words,))
    thread.start()
    return thread


def report(client: Client, hits: int, misses: int) -> None:
    again = len(client.spent["again"])
    print(f"{sum(client.answers.values())} answers by version {dict(client.answers)}, {client.wrong} wrong or stale")
    print(f"hits {hits}, misses {misses}: {100 * hits / (hits + misses):.1f} %; asked before of that version: {again}")
    for what, spent in client.spent.items():
        p50, p99 = np.percentile(spent, (50, 99))
        print(f"{what}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")


def main() -> None:
    said = dict(word.partition("=")[::2] for word in sys.argv[1:])
    count, requests = int(said.get("inputs", 200)), int(said.get("requests", 2000))
    random = np.random.default_rng(0)
    shares = 1 / np.arange(1, count + 1)
    order = random.choice(count, requests, p=shares / shares.sum())
    with tempfile.TemporaryDirectory(prefix="pare-again-") as scratch:
        folder, port = Path(scratch), free_port()
        first, second = versions(said.get("net", "resnet18"), folder)
        (port_in,), (port_out, *_) = first.about.inputs, first.about.outputs
        inputs = random.standard_normal((count, *port_in.shape[1:])).astype(np.float32)  # type: ignore[arg-type]
        wanted = {}
        for made, name in ((first, "first"), (second, "second")):
            run = onnxruntime.load(Artifact.of(folder / f"{name}.onnx"), 1).run
            wanted[made.about.label] = np.concatenate([run({port_in.name: x[None]})[port_out.name] for x in inputs])
        first.write(folder / "picked")
        with served(folder, port, f"cache_mb={said.get('cache_mb', 64)}"):
            client = Client(port, inputs, wanted, port_in.name)
            for index in order[: requests // 2]:
                client.ask(index)
            update = replaced(folder, second, port)
            while update.is_alive():  # under the same load
                client.ask(random.choice(order))
            for index in order[requests // 2 :]:
                client.ask(index)
            report(client, *counted(port))


if __name__ == "__main__":
    main()
