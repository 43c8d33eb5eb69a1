"""Where a front's files lost accuracy and spend time and bytes, layer by layer: kept beside the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtimes import onnx_layers
from runtimes.base import Artifact
from search.study.config import Config
from search.trial.results import Baseline

RUNTIME = "onnxruntime"  # whose profiler names the operators


def measure(config: Config, baselines: Sequence[Baseline], files: Mapping[int, tuple[str, Path]], into: Path) -> None:
    """Write to `into` the layers of each trial's file beside its dense model's, as JSON.

    `files`: trial -> (TRAINER/MODEL, its file).

    `{"trials": {NUMBER: {"layers": [...], "rest": {TYPE: ms}}}, "dense": {TRAINER/MODEL: ...},
    "without": {TRAINER/MODEL: why}}`, or `{"problem": why}`. This is for looking only: whatever fails is said there,
    and fails no sweep.
    """
    found: dict[str, Any] = {"trials": {}, "dense": {}, "without": {}}
    try:
        for baseline in baselines:
            own = {n: path for n, (of, path) in files.items() if of == baseline.name and path.is_file()}
            if why := _unknown(baseline.artifact, config.study.runtime_of(baseline.spec.trainer)):
                found["without"][baseline.name] = why
                continue
            artifacts = [baseline.artifact, *(Artifact.of(path) for path in own.values())]
            with np.load(baseline.examples, allow_pickle=False) as stored:
                inputs = {name: stored[name] for name in stored.files}
            spec = config.study.latency
            dense, *rest = onnx_layers.layers(RUNTIME, artifacts, inputs, spec.threads[0], spec.batch[0])
            found["dense"][baseline.name] = dense.to_dict()
            found["trials"] |= {str(number): each.to_dict() for number, each in zip(own, rest, strict=True)}
    except Exception as problem:
        found = {"problem": f"{type(problem).__name__}: {problem}"[:300]}
    into.parent.mkdir(parents=True, exist_ok=True)
    into.write_text(json.dumps(found, indent=1) + "\n")


def _unknown(dense: Artifact, runtime: str) -> str:
    """Why a file's layers are not told apart; empty where they are."""
    if dense.format != "onnx":
        return (
            f"layers are told apart in .onnx files; the Python library of {runtime} has no profiler for .{dense.format}"
        )
    return "" if runtime == RUNTIME else f"{runtime} fuses layers and names none of them in its profile"
