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
HEADER = 32  # bytes, about
RANGE_UP_TO = 1 << 16  # bytes of a file: the range coder takes microseconds a weight
LARGE = "PARE_LONGEST" in os.environ  # networks of up to 20 MB too: half an hour and more


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of tests/real_models.py."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("large" if LARGE else "onnx", "tflite"):
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
@pytest.mark.timeout(7200)
def test_fifty_real_networks_come_back_and_answer_the_same(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not LARGE:
        # Brotli's slowest setting is kept for what it takes no seconds for: it changes no way of the packer.
        monkeypatch.setattr("packing.pack.THOROUGH", 1 << 16)
    assert len(models) >= 50, [path.name for path in models]
    gained = 0
    for path in models:
        file = path.read_bytes()
        for coder in CODERS if len(file) <= RANGE_UP_TO else CODERS[:1]:
            packed = pack(file, coder)
            again = tmp_path / f"again{path.suffix}"
            again.write_bytes(unpack(packed))
            assert again.read_bytes() == file, path.name
            plain = len(brotli.compress(file, quality=9))
            assert coder == "range" or len(packed) <= plain + HEADER, path.name
            gained += coder == "brotli" and len(packed) < 0.99 * plain
        for one, other in zip(answers(again), answers(path), strict=True):
            np.testing.assert_array_equal(one.argmax(-1), other.argmax(-1))
    # Of int8 weights that were drawn at random nobody gains anything.
    assert gained > 0.8 * len(models)
