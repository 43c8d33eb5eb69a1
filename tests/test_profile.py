"""Where the time goes, operator by operator, of real files on the runtimes that have a profiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtimes import onnx_operators
from runtimes.base import Artifact, ArtifactError, LatencyError
from runtimes.profile import OperatorTime, by_type, integer_share, profile, repeat, typical_ms
from tests.test_examples import text, words
from tests.test_litert import write

pytestmark = pytest.mark.usefixtures("own_locks")

IMAGES = {"x": np.random.default_rng(0).random((1, 16, 20, 20), dtype=np.float32)}


def convolutions(path: Path) -> Artifact:
    """Two int8 convolutions on float32 [batch, 16, 20, 20]."""
    rng, nodes, last = np.random.default_rng(0), [], "x"
    stored = {"scale": np.array(1 / 64, np.float32), "zero": np.array(0, np.uint8)}

    def through_integers(end: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [end, "scale", "zero"], [f"{end}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{end}_q", "scale", "zero"], [f"{end}_d"]))
        return f"{end}_d"

    for layer in range(2):
        stored[f"w{layer}"] = rng.integers(-127, 128, (16, 16, 3, 3)).astype(np.int8)
        stored[f"s{layer}"], stored[f"z{layer}"] = np.full(16, 1 / 1024, np.float32), np.zeros(16, np.int8)
        given = through_integers(last)
        weights = [f"w{layer}", f"s{layer}", f"z{layer}"]
        nodes.append(helper.make_node("DequantizeLinear", weights, [f"float{layer}"], axis=0))
        nodes.append(helper.make_node("Conv", [given, f"float{layer}"], [f"y{layer}"], name=f"conv{layer}"))
        last = f"y{layer}"
    last = through_integers(last)
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16, 20, 20])]
    ends += [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", 16, 16, 16])]
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "convolutions", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return Artifact.of(path)


RUNTIMES = ["onnxruntime", "openvino"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_integer_kernels_are_told_from_the_rest(runtime: str, tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    found = profile(runtime, convolutions(tmp_path / "int8.onnx"), IMAGES, runs=5)
    assert sum(each.share for each in found) == pytest.approx(1)
    assert all(each.ms >= 0 and each.kernel for each in found)
    assert 0 < integer_share(found) < 1  # quantizing the input is none of it
    assert integer_share(found) == pytest.approx(sum(each.share for each in found if each.integer))
    total = by_type(found)
    assert list(total.values()) == sorted(total.values(), reverse=True)
    assert sum(total.values()) == pytest.approx(sum(each.ms for each in found))


def test_onnx_runtime_tells_the_weights_of_each_layer(tmp_path: Path) -> None:
    found = profile("onnxruntime", convolutions(tmp_path / "int8.onnx"), IMAGES, runs=3)
    assert [(each.name, each.weights) for each in found if each.weights] == [("conv0", "w0"), ("conv1", "w1")]
    assert {each.kernel for each in found} == {"CPUExecutionProvider"}
    assert not [each.name for each in found if "_token_" in each.name or each.name.endswith("_time")]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_float_file_of_several_inputs_has_no_integer_share(runtime: str, tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    found = profile(runtime, words(tmp_path / "words.onnx"), text(3, 7), runs=3)
    assert integer_share(found) == 0
    assert {"MatMul", "FullyConnected"} & set(by_type(found))


def test_what_cannot_be_profiled_is_refused(tmp_path: Path) -> None:
    artifact = words(tmp_path / "words.onnx")
    with pytest.raises(ValueError, match="'litert' has no profiler; choose one that has"):
        profile("litert", write(tmp_path / "model.tflite"), {"images": np.zeros((1, 8), np.float32)})
    with pytest.raises(ArtifactError, match=r"litert loads \.tflite files, not \.onnx"):
        profile("litert", artifact, text(1, 2))
    with pytest.raises(ValueError, match="runs 0 and threads 1 must be at least 1"):
        profile("onnxruntime", artifact, text(1, 2), runs=0)
    with pytest.raises(LatencyError, match="the examples do not fit"):
        profile("onnxruntime", artifact, {"ids": np.zeros((1, 2), np.int64)})
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match="cannot load it"):
        profile("onnxruntime", Artifact.of(tmp_path / "broken.onnx"), text(1, 2))


@pytest.mark.parametrize(
    ("kind", "given", "made", "integer"),
    [
        ("QLinearConv", "uint8", "uint8", True),
        ("MaxPool", "uint8", "uint8", True),
        ("MaxPool", "float", "float", False),
        ("MatMulIntegerToFloat", "uint8", "float", True),
        ("DynamicQuantizeMatMul", "float", "float", True),
        ("QuantizeLinear", "float", "uint8", False),
        ("DequantizeLinear", "uint8", "float", False),
        ("Cast", "int8", "uint8", False),
        ("Gather", "float", "float", False),
        ("Add", "int64", "int64", False),
    ],
)
def test_which_operators_compute_on_integers(kind: str, given: str, made: str, integer: bool) -> None:
    about: dict[str, Any] = {
        "op_name": kind,
        "input_type_shape": [{given: [1]}, {"float": []}],
        "output_type_shape": [{made: [1]}],
    }
    assert onnx_operators.is_integer(about) is integer


def test_no_time_has_no_share_and_disturbed_runs_do_not_count() -> None:
    assert np.isnan(integer_share([]))
    assert integer_share(
        [OperatorTime("a", "Conv", "", 3, 0.75, True), OperatorTime("b", "Cast", "", 1, 0.25, False)]
    ) == (0.75)
    assert typical_ms([1.0, 1.2, 1.1, 500.0]) == pytest.approx(1.1)
    assert typical_ms([2.0]) == 2


def test_a_slow_file_is_run_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    repeat(lambda: called.append(1), 10)
    assert len(called) == 10
    monkeypatch.setattr("runtimes.profile.MAX_SECONDS", 0)
    repeat(lambda: called.append(1), 10)
    assert len(called) == 13
