"""OpenVINO with models in its own format, for benchmarks: what NNCF makes of them is no ONNX file.

A file is a zip of `model.xml` and `model.bin`, so that it is measured as any artifact is (runtimes/foreign.py).
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from runtimes import openvino as product
from runtimes.base import Artifact
from runtimes.signal_stack import signal_stack_kept

FORMAT = "ov"
PARTS = ("model.xml", "model.bin")


def write(model: Any, file: Path) -> Path:
    """`model`, an openvino.Model, as one file; its floats stay float32."""
    import openvino

    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(file, "w") as packed:
        openvino.save_model(model, str(Path(folder, PARTS[0])), compress_to_fp16=False)
        for name in PARTS:
            packed.write(Path(folder, name), name)
    return file


def load(artifact: Artifact, threads: int, batch: int | None = None) -> product.Session:
    """The file on `threads` CPU threads, its floats computed in float32; `batch` is left free."""
    import openvino

    with zipfile.ZipFile(artifact.path) as packed:
        xml, weights = (packed.read(name) for name in PARTS)
    model = openvino.Core().read_model(xml, openvino.Tensor(np.frombuffer(weights, np.uint8)))
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
    with signal_stack_kept():
        return product.Session(openvino.Core().compile_model(model, "CPU", options), artifact)


def version() -> str:
    """The library's version."""
    return product.version()
