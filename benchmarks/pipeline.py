"""A model whole and in parts on two Ray nodes of this machine: equal answers, and how many a second.

    python -m benchmarks.pipeline model=FILE.onnx [parts=1,2,3] [connections=8] [seconds=5] [rounds=2]

Each in turn by search.serve, with binary tensors and without the cache. Two nodes share this machine's cores with each
other and with the load, so that a pipeline has less of them than on two machines.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tritonclient.http as triton

from benchmarks import load
from runtimes import onnxruntime
from runtimes.base import Artifact
from serving import package
from serving.protocol import NAMES
from tests import loopback


def serve(cluster: loopback.Cluster, folder: Path, parts: int, port: int) -> subprocess.Popen[bytes]:
    """search.serve with so many parts, answering."""
    log = folder / f"parts{parts}.log"
    words = [f"model={folder / 'picked'}", f"root={folder}", f"port={port}", f"parts={parts}", "cache_mb=0"]
    command = [sys.executable, "-m", "search.serve", f"address={cluster.address}", "num_cpus=0.45", *words]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=cluster.env, stdout=output, stderr=output)
    while "Ctrl-C ends it." not in log.read_text():
        if process.poll() is not None:
            raise RuntimeError(log.read_text()[-1000:])
        time.sleep(0.2)
    return process


def difference(port: int, name: str, inputs: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    """The largest difference of an answer from the file's own."""
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    given = []
    for key, value in inputs.items():
        given.append(triton.InferInput(key, list(value.shape), NAMES[value.dtype.name]))
        given[-1].set_data_from_numpy(value)
    found = client.infer(name, given)
    return max(float(np.abs(found.as_numpy(key) - value).max()) for key, value in wanted.items())


def main() -> None:
    said = dict(word.partition("=")[::2] for word in sys.argv[1:])
    file, seconds = Path(said["model"]), float(said.get("seconds", 5))
    count, rounds = int(said.get("connections", 8)), int(said.get("rounds", 2))
    with tempfile.TemporaryDirectory(prefix="pare-pipe-") as scratch, loopback.cluster() as cluster:
        folder = Path(scratch)
        made = package.make(file, "net", "onnxruntime")
        made.write(folder / "picked")
        session = onnxruntime.load(Artifact.of(folder / "picked" / "model.onnx"), 1)
        one, several = (package.example_of(made.about.inputs, rows) for rows in (1, 5))
        tensors = [
            {
                "name": name,
                "shape": list(v.shape),
                "datatype": NAMES[v.dtype.name],
                "parameters": {"binary_data_size": v.nbytes},
            }
            for name, v in one.items()
        ]
        header = json.dumps({"inputs": tensors}).encode()
        (folder / "body").write_bytes(header + b"".join(v.tobytes() for v in one.values()))
        fields = ["Content-Type: application/octet-stream", f"Inference-Header-Content-Length: {len(header)}"]
        for _ in range(2):
            cluster.add(cpus=1)
        rates: dict[int, list[float]] = {}
        worst: dict[int, float] = {}
        for _ in range(rounds):
            for parts in map(int, said.get("parts", "1,2,3").split(",")):
                port = loopback.free_port()
                process = serve(cluster, folder, parts, port)
                worst[parts] = difference(port, "net", several, session.run(several))
                got = load.run("127.0.0.1", port, "/v2/models/net/infer", count, seconds, folder / "body", fields)
                rates.setdefault(parts, []).append(got["rate"])
                print(
                    f"parts={parts}: {got['rate']:.0f}/s, p50 {got['p50']:.1f} ms, p99 {got['p99']:.1f} ms", flush=True
                )
                process.send_signal(signal.SIGTERM)
                process.wait(60)
        whole = statistics.median(rates.get(1, [float("nan")]))
        for parts, each in rates.items():
            rate = statistics.median(each)
            print(f"{file.stem} in {parts}: {rate:.0f}/s, {rate / whole:.2f} of the whole; off by {worst[parts]:.1g}")


if __name__ == "__main__":
    main()
