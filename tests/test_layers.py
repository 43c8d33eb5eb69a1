"""Where accuracy, time and bytes go, layer by layer, of real ONNX files; and the report's bars of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.base import Artifact
from runtimes.onnx_layers import SAMPLES, difference, found_in, samples
from search.front import layers as bars
from search.study.config import Config
from search.sweep.layers import measure
from tests.linear import config, linear
from tests.test_profile import convolutions

pytestmark = pytest.mark.usefixtures("own_locks")


@given(st.integers(0, 2**31), st.integers(1, 40))
def test_a_rotated_and_scaled_layer_is_the_same_layer(seed: int, width: int) -> None:
    random = np.random.default_rng(seed)
    values = random.standard_normal((60, width))
    turn, _ = np.linalg.qr(random.standard_normal((width, width)))
    assert difference(values, 3.7 * values @ turn + 1.2) == pytest.approx(0, abs=1e-9)
    found = difference(values, random.standard_normal((60, 7)))
    assert found is not None
    assert 0.5 < found <= 1, "what has nothing to do with it is far from it, however few the samples are"


def test_what_cannot_be_compared_is_not_compared() -> None:
    assert difference(np.ones((8, 3)), np.ones((8, 3))) is None
    assert difference(np.ones((8, 3)), np.ones((9, 3))) is None
    assert samples(np.zeros((4, 3, 20, 20), np.float32)).shape == (SAMPLES, 3)
    assert samples(np.zeros((4, 7, 5), np.float32)).shape == (28, 5)


def test_layers_are_found_through_what_unpacks_their_weights(tmp_path: Path) -> None:
    found = found_in(onnx.load(convolutions(tmp_path / "int8.onnx").path))
    assert [(each.type, each.node) for each in found] == [("Conv", "conv0"), ("Conv", "conv1")]
    assert found[0].tensors == {"w0", "s0", "z0"}
    assert all(each.size_bytes > 1000 for each in found)


class _Dense:
    """What `measure` reads of a baseline."""

    name = "pytorch/lenet300"

    def __init__(self, artifact: Artifact, examples: Path) -> None:
        self.artifact, self.examples = artifact, examples
        self.spec = type("Spec", (), {"trainer": "pytorch"})


def test_a_front_s_files_are_measured_beside_the_dense_one_and_shown(root: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weights = random.standard_normal((784, 10)).astype(np.float32)
    noisy = weights + random.standard_normal(weights.shape).astype(np.float32)
    files = {}
    for number, each in enumerate((weights, weights, noisy)):
        files[number] = tmp_path / f"{number}.onnx"
        onnx.save(linear(each, detour=True), files[number])
    examples = tmp_path / "examples.npz"
    np.savez(examples, input=random.standard_normal((64, 1, 28, 28), dtype=np.float32))
    dense: Any = _Dense(Artifact.of(files.pop(0)), examples)
    study: Config = config(root)
    named = {number: (dense.name, path) for number, path in files.items()} | {9: ("other/model", files[1])}
    measure(study, [dense], named, tmp_path / "layers.json")
    found = json.loads((tmp_path / "layers.json").read_text())
    assert set(found["trials"]) == {"1", "2"}
    same, other = found["trials"]["1"]["layers"], found["trials"]["2"]["layers"]
    assert [layer["type"] for layer in same] == ["MatMul", "MatMul"]
    assert same[1]["difference"] == pytest.approx(0, abs=1e-6)
    assert other[0]["difference"] == pytest.approx(0, abs=1e-6), "the detour's first half is the same"
    assert 0.1 < other[1]["difference"] < 0.9
    assert all(layer["ms"] > 0 and layer["size_bytes"] > 1000 for layer in same)

    import pandas as pd

    rows = pd.DataFrame({"number": [1, 2], "words": ["same", "<noisy>"], "knee": [True, False], "on_front": True})
    summary: Any = type("Few", (), {"front": rows})
    page = "".join(bars.section(summary, found))
    assert page.count("<details") == 3
    assert "&lt;noisy&gt;" in page
    assert f"{100 * other[1]['difference']:.1f} %" in page


def test_a_runtime_without_a_profile_is_said_in_the_report(root: Path, tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"....TFL3")
    dense: Any = _Dense(Artifact.of(tmp_path / "model.tflite"), tmp_path / "none.npz")
    measure(config(root), [dense], {}, tmp_path / "layers.json")
    summary: Any = None
    page = "".join(bars.section(summary, json.loads((tmp_path / "layers.json").read_text())))
    assert "Not known of pytorch/lenet300: layers are told apart in .onnx files" in page
    assert "<details" not in page


def test_what_fails_is_said_and_fails_no_sweep(root: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    broken: Any = _Dense(Artifact.of(tmp_path / "broken.onnx"), tmp_path / "none.npz")
    measure(config(root), [broken], {}, tmp_path / "layers.json")
    found = json.loads((tmp_path / "layers.json").read_text())
    assert "none.npz" in found["problem"]
    summary: Any = None
    assert "none.npz" in "".join(bars.section(summary, found))
    assert not list(bars.section(summary, None))
