"""A model whole and in parts on two Ray nodes of this machine: equal answers, and how many a second.

    python -m benchmarks.pipeline net=resnet18|vit_tiny [scheme=int8] [parts=1,2,3] [connections=8] [seconds=5]
    python -m benchmarks.pipeline model=FILE.onnx [rounds=2] ...

Each in turn by search.serve, one thread a part, with binary tensors and without the cache. Two nodes share this
machine's cores with each other and with the load, so that a pipeline has less of them than on two machines.
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
from serving.package import Package
from serving.protocol import HEADER, NAMES
from tests import loopback


def exported(net: str, scheme: str, file: Path) -> Path:
    """torchvision's ResNet-18 at 128 pixels or timm's ViT-tiny at 224, weights at random, as our exporter writes it."""
    import torch

    from benchmarks import zoo
    from trainers.pytorch import quantize
    from trainers.pytorch.export import export

    build, pixels = {
        "resnet18": (zoo.torchvision("resnet18", num_classes=10), zoo.images(128)),
        "vit_tiny": (zoo.timm("vit_tiny_patch16_224", num_classes=10), zoo.images(224)),
    }[net]
    torch.manual_seed(0)
    model = build().eval()
    if scheme == "int8":
        model = quantize.convert(quantize.prepare(model, [pixels(8)]))
    export(model, pixels(2), file, {})
    return file


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


def request(made: Package, folder: Path) -> tuple[Path, list[str]]:
    """(file with the body of a request of one input, its header fields), binary tensors."""
    tensors, content = [], b""
    for name, value in package.example_of(made.about.inputs, rows=1).items():
        about = {"name": name, "shape": list(value.shape), "datatype": NAMES[value.dtype.name]}
        tensors.append({**about, "parameters": {"binary_data_size": value.nbytes}})
        content += value.tobytes()
    header = json.dumps({"inputs": tensors}).encode()
    (folder / "body").write_bytes(header + content)
    return folder / "body", ["Content-Type: application/octet-stream", f"{HEADER}: {len(header)}"]


def main() -> None:
    said = dict(word.partition("=")[::2] for word in sys.argv[1:])
    seconds, net, scheme = float(said.get("seconds", 5)), said.get("net", "resnet18"), said.get("scheme", "fp32")
    count, rounds = int(said.get("connections", 8)), int(said.get("rounds", 2))
    rates: dict[int, list[float]] = {}
    worst: dict[int, float] = {}
    with tempfile.TemporaryDirectory(prefix="pare-pipe-") as scratch, loopback.cluster() as cluster:
        folder = Path(scratch)
        file = Path(said["model"]) if "model" in said else exported(net, scheme, folder / f"{net}_{scheme}.onnx")
        made = package.make(file, "net", "onnxruntime")
        made.write(folder / "picked")
        several = package.example_of(made.about.inputs, rows=5)
        wanted = onnxruntime.load(Artifact.of(folder / "picked" / "model.onnx"), 1).run(several)
        body, fields = request(made, folder)
        for _ in range(2):
            cluster.add(cpus=1)
        for _ in range(rounds):
            for parts in map(int, said.get("parts", "1,2,3").split(",")):
                port = loopback.free_port()
                process = serve(cluster, folder, parts, port)
                worst[parts] = difference(port, "net", several, wanted)
                got = load.run("127.0.0.1", port, "/v2/models/net/infer", count, seconds, body, fields)
                rates.setdefault(parts, []).append(got["rate"])
                print(f"{parts}: {got['rate']:.0f}/s, p50 {got['p50']:.1f} ms, p99 {got['p99']:.1f} ms", flush=True)
                process.send_signal(signal.SIGTERM)
                process.wait(60)
    whole = statistics.median(rates.get(1, [float("nan")]))
    for parts, each in rates.items():
        rate = statistics.median(each)
        print(f"{file.stem} in {parts}: {rate:.0f}/s, {rate / whole:.2f} of the whole; off by {worst[parts]:.1g}")


if __name__ == "__main__":
    main()
