"""What search.pick leaves for serving: the package, serve.yaml, and a folder that other servers read.

about.json, example.npz, files/   with the file itself what python -m search.serve model=FOLDER reads
infer.py                          runs the file with numpy and its runtime alone
request.json                      one request of the Open Inference Protocol, for curl
serve.yaml                        for `serve deploy`, and the serveConfigV2 of KubeRay's RayService
repository/NAME/1/model.onnx      the model repository of Triton and OpenVINO Model Server, with config.pbtxt
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import runtimes.base
from serving import model, package
from serving.package import About, Package
from serving.policy import Plan
from serving.protocol import NAMES
from serving.settings import Settings
from tasks.base import TaskInfo

SERVED = (".onnx", ".tflite")
PORT = 8100  # in serve.yaml: 8000 is Ray Serve's own proxy's
_TYPES = {"float16": "FP16", "float32": "FP32", "float64": "FP64", "bool": "BOOL"}
_QUEUE_US = 100  # that Triton lets a request wait for others at least


def make(
    file: Path,
    study: str,
    runtime: str,
    threads: int,
    task: TaskInfo | None,
    files: Mapping[str, bytes],
    latency_ms: Mapping[str, float],
) -> Package:
    """The package of a picked file. `task`: what the sweep recorded; `files`: what its serving reads, by name."""
    ports = (task.inputs, task.outputs) if task is not None else None
    serving = dict(task.serving) if task is not None and task.serving else None
    if serving is not None:
        serving["files"] = sorted(files)
    return package.make(file, study, runtime, threads, serving, files, ports, latency_ms)


def write(made: Package, out: Path, tracking_uri: str, alias: str) -> None:
    """All of it into the folder; what an earlier pick left of it goes."""
    for name in ("files", "repository"):
        shutil.rmtree(out / name, ignore_errors=True)
    made.write(out)
    shutil.copyfile(Path(__file__).with_name("infer.py"), out / "infer.py")
    (out / "request.json").write_text(json.dumps(request(made), separators=(",", ":")) + "\n")
    (out / "serve.yaml").write_text(manifest(made.about, out, tracking_uri, alias))
    if made.about.format == "onnx":
        repository(made, out / "repository")


def request(made: Package) -> dict[str, Any]:
    """The first sample of the package's example as a request of the Open Inference Protocol, version 2."""
    assert made.example is not None
    batched = made.about.batched()
    tensors = []
    for name, array in made.example[0].items():
        one = array[:1] if batched else array
        data = [round(float(each), 6) if one.dtype.kind == "f" else each.item() for each in one.ravel()]
        tensors.append({"name": name, "shape": list(one.shape), "datatype": NAMES[one.dtype.name], "data": data})
    return {"inputs": tensors}


def manifest(about: About, folder: Path, tracking_uri: str, alias: str) -> str:
    """serve.yaml: the application and its arguments; the folder where only this machine reaches the registry."""
    reached = tracking_uri.startswith("http")
    source = {"tracking_uri": tracking_uri, "alias": alias} if reached else {"model": str(folder.absolute())}
    args = Settings(name=about.name, watch=True, port=PORT, **source).to_dict()  # type: ignore[arg-type]
    said = {
        "applications": [
            {
                "name": f"pare-{about.name}",
                "route_prefix": f"/{about.name}",
                "import_path": "serving.deployment:app",
                "args": args,
            }
        ]
    }
    lines = [
        "# `serve deploy serve.yaml` on a Ray cluster that has Pare installed; or deploy/kubernetes/rayservice.yaml.",
        "# All arguments: python -m search.serve --help, and serving/settings.py.",
        *([] if reached else ["# `model` is where this folder was when it was written: change it after moving it."]),
    ]
    return "\n".join(lines) + "\n" + yaml.safe_dump(said, sort_keys=False)


def repository(made: Package, folder: Path) -> None:
    """NAME/1/model.onnx and NAME/config.pbtxt."""
    place = folder / made.about.name
    (place / "1").mkdir(parents=True, exist_ok=True)
    (place / "1" / "model.onnx").write_bytes(made.content)
    (place / "config.pbtxt").write_text(config(made.about, measured(made)))


def measured(made: Package) -> Plan:
    """Batches as this machine measures them: the server's own may differ."""
    with tempfile.TemporaryDirectory(prefix="pare-plan-") as folder:
        session = runtimes.base.load(made.about.runtime).load(made.write(Path(folder)), made.about.threads)
        return model.planned(made.about, session.run, None)


def config(about: About, plan: Plan) -> str:
    """config.pbtxt: ports, batching as measured, the response cache."""
    batched = about.batched()
    lines = [
        f'name: "{about.name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {plan.size if batched else 0}",
    ]
    for kind, ports in (("input", about.inputs), ("output", about.outputs)):
        entries = []
        for port in ports:
            shape = port.shape[1:] if batched else port.shape
            dims = ", ".join(str(size) if isinstance(size, int) else "-1" for size in shape) or "1"
            reshape = "" if shape else ", reshape: { shape: [ ] }"
            name = f'name: "{port.name}", data_type: TYPE_{_type(port.dtype)}, dims: [ {dims} ]{reshape}'
            entries.append(f"  {{ {name} }}")
        lines += [f"{kind} [", ",\n".join(entries), "]"]
    if batched and plan.size > 1:
        delay = max(_QUEUE_US, int(1000 * plan.wait_ms))
        lines += [f"# {plan.why}", f"dynamic_batching {{ max_queue_delay_microseconds: {delay} }}"]
    lines += [
        "response_cache { enable: true }  # with tritonserver --cache-config local,size=67108864",
        "instance_group [ { kind: KIND_CPU, count: 1 } ]",
        f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{about.threads}" }} }}',
        f'parameters {{ key: "sha256" value {{ string_value: "{about.sha256}" }} }}',
    ]
    return "\n".join(lines) + "\n"


def _type(dtype: str) -> str:
    return _TYPES.get(dtype, np.dtype(dtype).name.upper())
