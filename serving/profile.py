"""What each node of an ONNX graph takes, and how large each of its tensors is: one profiled session of ONNX Runtime."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from serving.partition import Graph

RUNS = 10


def node_ms(graph: Graph, inputs: Mapping[str, np.ndarray], runs: int = RUNS) -> np.ndarray:
    """Milliseconds of each node of `graph.nodes`, float64: medians, not fused with others."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    place = {id(node): i for i, node in enumerate(graph.model.graph.node)}
    for i, node in enumerate(model.graph.node):
        node.name = f"node{i}"
    with tempfile.TemporaryDirectory(prefix="pare-profile-") as folder:
        options = _options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "run")
        session = _session(model, options)
        for _ in range(runs):
            session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_text())
    spent = defaultdict[str, list[float]](list)
    for event in events:
        name, _, what = str(event.get("name", "")).rpartition("_kernel_")
        if event.get("cat") == "Node" and what == "time":
            spent[name].append(event["dur"] / 1e3)
    return np.array([np.median(spent.get(f"node{place[id(node)]}") or [0.0]) for node in graph.nodes])


def tensor_bytes(graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Bytes of every tensor that a node of `graph.nodes` makes, and of the inputs, for these inputs."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    given = {each.name for each in model.graph.output}
    names = [name for node in graph.nodes for name in node.output if name]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    session = _session(model, _options())
    order = [each.name for each in session.get_outputs()]
    found = dict(zip(order, session.run(None, dict(inputs)), strict=True))
    sizes = {name: int(getattr(value, "nbytes", 0)) for name, value in found.items()}
    return sizes | {name: value.nbytes for name, value in inputs.items()}


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return options


def _session(model: onnx.ModelProto, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
