"""ONNX Runtime's own ways: the option that int8 files need on CPUs without VNNI, and refuse."""

from __future__ import annotations

import logging
import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtimes import cpu, onnxruntime
from runtimes.base import Artifact, run_single

WIDTH = 16
INPUTS = np.random.default_rng(3).integers(0, 256, (5, WIDTH)).astype(np.float32) / 64


def int8(path: Path, zero_points: str) -> Artifact:
    """Two int8 layers of one width, each with a zero point of its own, a shared one, or none."""
    rng, last = np.random.default_rng(0), "x"
    stored: dict[str, np.ndarray] = {"scale": np.array(1 / 64, np.float32), "zero": np.array(0, np.uint8)}
    nodes = []
    for layer in range(2):
        weights, steps, zero = f"w{layer}", f"s{layer}", {"own": f"z{layer}", "shared": "z", "none": ""}[zero_points]
        stored[weights] = rng.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8)
        stored[steps] = np.full(WIDTH, 1 / 1024, np.float32)
        if zero:
            stored[zero] = np.zeros(WIDTH, np.int8)
        nodes += [
            helper.make_node("QuantizeLinear", [last, "scale", "zero"], [f"q{layer}"]),
            helper.make_node("DequantizeLinear", [f"q{layer}", "scale", "zero"], [f"d{layer}"]),
            helper.make_node("DequantizeLinear", [weights, steps, zero], [f"float{layer}"], axis=1),
            helper.make_node("MatMul", [f"d{layer}", f"float{layer}"], [f"m{layer}"]),
        ]
        last = f"m{layer}"
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch", WIDTH]) for end in ("x", last)]
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "int8", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return Artifact.of(path)


def reference(path: Path) -> np.ndarray:
    """The same in NumPy."""
    stored = {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    values = INPUTS
    for layer in range(2):
        rounded = np.clip(np.rint(values * 64), 0, 255) / 64
        values = rounded @ (stored[f"w{layer}"].astype(np.float64) / 1024)
    return np.asarray(values)


@pytest.mark.parametrize("zero_points", ["own", "shared", "none"])
@pytest.mark.parametrize("vnni", [True, False])
def test_int8_files_run_whatever_their_zero_points(
    zero_points: str, vnni: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu, "saturates_int8", lambda: not vnni)
    artifact = int8(tmp_path / "model.onnx", zero_points)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            session = onnxruntime.load(artifact, threads=1)
            session.bind({"x": INPUTS})()
            np.testing.assert_allclose(run_single(session, INPUTS), reference(artifact.path), rtol=1e-5, atol=1e-5)
    warned = [record.getMessage() for record in caplog.records]
    if vnni or zero_points == "own":
        assert not warned
    else:
        (said,) = warned
        assert said.startswith(f"{artifact.path}: ONNX Runtime refuses it with session.x64quantprecision")
        assert "give every DequantizeLinear a zero point of its own" in said


@pytest.mark.parametrize("zero_points", ["own", "shared", "none"])
def test_a_served_file_runs_on_a_cpu_without_vnni(
    zero_points: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from search.tracking.served import _onnx

    monkeypatch.setattr("search.tracking.served._saturates_int8", lambda: True)
    artifact = int8(tmp_path / "model.onnx", zero_points)
    np.testing.assert_allclose(_onnx(artifact.path, 1)([INPUTS])[0], reference(artifact.path), rtol=1e-5, atol=1e-5)


def test_a_file_that_is_broken_is_not_taken_for_one_that_the_option_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu, "saturates_int8", lambda: True)
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(Exception, match="cannot load it"):
        onnxruntime.load(Artifact.of(tmp_path / "broken.onnx"), threads=1)
    assert not caplog.records


@pytest.mark.parametrize(
    ("flags", "machine", "saturates"),
    [
        ("fpu avx2 avx512_vnni", "x86_64", False),
        ("fpu avx2 avx_vnni", "x86_64", False),
        ("fpu avx2 avx512f", "x86_64", True),
        ("", "x86_64", True),
        ("", "AMD64", True),
        ("", "aarch64", False),
    ],
)
def test_the_cpu_is_asked_whether_int8_sums_overflow(
    flags: str, machine: str, saturates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "cpuinfo"
    if flags:
        told.write_text(f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    monkeypatch.setattr(cpu, "CPUINFO", told)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    cpu._line.cache_clear()
    try:
        assert cpu.saturates_int8() is saturates
        assert cpu.flags() == set(flags.split())
        assert not flags or cpu.name() == "Some CPU"
    finally:
        cpu._line.cache_clear()
