"""ONNX Runtime's profile, read: which operators took how long, and which of them compute on integers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from runtimes.profile import OperatorTime, typical_ms

# Kernels that multiply integers whatever their first input is; those named QLinear… do as well.
INTEGER = {"QGemm", "QAttention", "QEmbedLayerNormalization", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"}
INTEGER |= {"DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
CONVERTING = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast"}
# What the optimizer appends to a node's name.
_APPENDED = re.compile(r"(_token_\d+|_nchwc|_kernel_time)$")


def times(profile: Path, optimized: Path) -> list[OperatorTime]:
    """One OperatorTime per operator, shares not known yet, in the order in which they run.

    `profile`: what `end_profiling` wrote, at least one run; the first of several is left out. `optimized`: the graph
    that was run, as ONNX Runtime saved it: nodes in the order of execution, which tells their weights.
    """
    runs = _runs(json.loads(profile.read_text()))
    runs = runs[1:] or runs
    taken: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        once: dict[tuple[str, str], float] = {}
        for event in run:  # those of a loop's body come several times
            once[_key(event)] = once.get(_key(event), 0.0) + event["dur"] / 1000
        for key, ms in once.items():
            taken.setdefault(key, []).append(ms)
    first = {_key(event): event for run in reversed(runs) for event in run}
    weights = _weights(runs[0], optimized)
    return [
        OperatorTime(
            name=_name(first[key]["name"]),
            type=first[key]["args"]["op_name"],
            kernel=first[key]["args"]["provider"],
            ms=typical_ms(ms) * len(ms) / len(runs),
            share=float("nan"),
            integer=is_integer(first[key]["args"]),
            weights=weights.get(key, ""),
        )
        for key, ms in taken.items()
    ]


def is_integer(about: dict[str, Any]) -> bool:
    """Whether an operator computes on integers. `about`: the `args` of its event in the profile."""
    kind = about["op_name"]
    if kind in CONVERTING:
        return False
    ends = [next(iter(each), "") for key in ("input_type_shape", "output_type_shape") for each in about[key][:1]]
    return kind in INTEGER or kind.startswith("QLinear") or (bool(ends) and set(ends) <= {"int8", "uint8"})


def _runs(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The kernels' events of each run."""
    runs: list[list[dict[str, Any]]] = [[]]
    for event in events:
        if event["name"] == "model_run":
            runs.append([])
        elif event["name"].endswith("_kernel_time"):
            runs[-1].append(event)
    return runs[:-1]


def _key(event: dict[str, Any]) -> tuple[str, str]:
    return event["name"], event["args"]["node_index"]


def _name(event: str) -> str:
    while (shorter := _APPENDED.sub("", event)) != event:
        event = shorter
    return event.strip()


def _weights(run: list[dict[str, Any]], optimized: Path) -> dict[tuple[str, str], str]:
    """The name of the stored tensor of two or more axes that each operator takes; nothing where the orders differ."""
    import onnx  # takes 0.2 s

    graph = onnx.load(optimized, load_external_data=False).graph
    if [event["args"]["op_name"] for event in run] != [node.op_type for node in graph.node]:
        return {}
    stored = {each.name for each in graph.initializer if len(each.dims) > 1}
    found = {}
    for event, node in zip(run, graph.node, strict=True):
        named = [name for name in node.input if name in stored and not name.startswith("reorder")]
        if named:
            found[_key(event)] = named[0]
    return found
