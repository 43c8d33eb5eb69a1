"""Fifty real networks come back bit by bit, and say the same on ONNX Runtime and LiteRT. The slow suite."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import brotli
import numpy as np
import pytest

from packing.decode import unpack
from packing.pack import CODERS, pack
from runtimes import litert, onnxruntime
from runtimes.base import Artifact
from tasks.base import Arrays

ROOT = Path(__file__).parent.parent
RANGE_UP_TO = 1 << 20  # bytes of a file: the range coder takes microseconds a weight


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of tests/real_models.py."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("onnx", "tflite"):
        subprocess.run([sys.executable, "-m", "tests.real_models", kind, str(folder)], cwd=ROOT, check=True)
    return sorted(folder.iterdir())


def answers(file: Path) -> list[np.ndarray]:
    """What the model says to inputs drawn at random, the same every time."""
    runtime = onnxruntime if file.suffix == ".onnx" else litert
    session = runtime.load(Artifact.of(file), threads=1)
    rng = np.random.default_rng(0)
    inputs: dict[str, np.ndarray] = {}
    for port in session.inputs:
        shape = [size if isinstance(size, int) else 1 for size in port.shape]
        drawn = rng.integers(0, 100, shape) if port.dtype.startswith("int") else rng.normal(size=shape)
        inputs[port.name] = drawn.astype(port.dtype)
    found: Arrays = session.run(inputs)
    return list(found.values())


@pytest.mark.cluster
@pytest.mark.skipif("PARE_LONGEST" not in os.environ, reason="takes half an hour and more; PARE_LONGEST=1 runs it")
@pytest.mark.timeout(7200)
def test_fifty_real_networks_come_back_and_answer_the_same(models: list[Path], tmp_path: Path) -> None:
    assert len(models) >= 50, [path.name for path in models]
    longer = []
    for path in models:
        file = path.read_bytes()
        for coder in CODERS if len(file) <= RANGE_UP_TO else CODERS[:1]:
            packed = pack(file, coder)
            again = tmp_path / f"again{path.suffix}"
            again.write_bytes(unpack(packed))
            assert again.read_bytes() == file, path.name
            if len(packed) > 0.99 * len(brotli.compress(file, quality=9)):
                longer.append((path.name, coder, len(packed)))
        for one, other in zip(answers(again), answers(path), strict=True):
            np.testing.assert_array_equal(one.argmax(-1), other.argmax(-1))
    assert len(longer) < 5, f"packing gained nothing: {longer}"
