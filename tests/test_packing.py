"""A packed file unpacks to the very file, whatever it is; what is known of weights makes it small."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import brotli
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing import decode
from packing.decode import BROTLI, RANGE, SKELETON, PackError, read_header, unpack
from packing.graph.smaller import smaller
from packing.pack import CODERS, _packed, _readings, pack
from tests.onnx_graphs import outputs, random_model

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("seed", range(6))
def test_random_networks_come_back_bit_by_bit(seed: int, coder: str) -> None:
    """Every candidate that the packer chooses from, so that none is wrong and passed over."""
    file = random_model(seed).SerializeToString()
    ((flags, pieces),) = _readings(file, coder)
    candidates = list(_packed(file, flags, pieces, coder))
    assert candidates
    assert all(unpack(candidate) == file for candidate in candidates)


@pytest.mark.cluster
@pytest.mark.parametrize("coder", CODERS)
def test_two_hundred_random_networks_come_back_with_equal_labels(coder: str) -> None:
    for seed in range(200):
        file = random_model(seed).SerializeToString()
        again = unpack(pack(file, coder))
        assert again == file
        np.testing.assert_array_equal(outputs(again).argmax(1), outputs(file).argmax(1))


@given(st.binary(max_size=200), st.sampled_from(CODERS))
@settings(max_examples=60)
def test_any_bytes_come_back(file: bytes, coder: str) -> None:
    packed = pack(file, coder)
    assert unpack(packed) == file
    assert len(packed) <= len(file) + 40


@given(st.integers(0, 30), st.data())
@settings(max_examples=40)
def test_a_model_with_some_bytes_changed_comes_back(seed: int, data: st.DataObject) -> None:
    """Not canonical, not valid, or another model: whatever it is now."""
    file = bytearray(random_model(seed).SerializeToString()[:4000])
    for _ in range(data.draw(st.integers(1, 3))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    assert unpack(pack(bytes(file))) == bytes(file)


def test_numbers_that_are_longer_than_needed_come_back() -> None:
    model = random_model(1)
    model.ClearField("ir_version")
    file = b"\x08\x8a\x00" + model.SerializeToString()  # ir_version 10, in three bytes
    assert unpack(pack(file)) == file
    assert onnx.load_from_string(file).ir_version == 10


def test_special_floats_come_back() -> None:
    model = random_model(3)
    values = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 65504, 2.0**-24], np.float32)
    values = np.append(np.tile(values, 8), np.frombuffer(b"\x01\x00\x80\x7f\xff\xff\xff\xff", np.float32))
    for dtype in (np.float32, np.float64, np.float16):
        with np.errstate(all="ignore"):
            stored = values.astype(dtype)
        model.graph.initializer.append(onnx.numpy_helper.from_array(stored, f"special_{stored.dtype}"))
    file = model.SerializeToString()
    for coder in CODERS:
        assert unpack(pack(file, coder)) == file


def lenet(density: float, seed: int = 0, steps: bool = True) -> bytes:
    """A small LeNet-300-100 whose weights are -3 to 3 times a step, or any floats, few of them not zero."""
    rng = np.random.default_rng(seed)
    made = []
    for width, inputs in ((120, 196), (60, 120), (10, 60)):
        kept = rng.random((width, inputs)) < density * np.outer(rng.random(width), rng.random(inputs)) * 4
        values = rng.integers(1, 4, (width, inputs)) * rng.choice([-1, 1], (width, inputs)) * np.float32(0.125)
        values = values if steps else rng.normal(size=(width, inputs))
        made.append((np.where(kept, values, 0).astype(np.float32), (rng.integers(-15, 16, width) * np.float32(0.0625))))
    nodes, stored, now = [onnx.helper.make_node("Flatten", ["input"], ["x"])], [], "x"
    for place, (weight, bias) in enumerate(made):
        stored += [onnx.numpy_helper.from_array(weight, f"w{place}")]
        stored += [onnx.numpy_helper.from_array(bias.astype(np.float32), f"b{place}")]
        out = "logits" if place == 2 else f"y{place}"
        nodes.append(onnx.helper.make_node("Gemm", [now, f"w{place}", f"b{place}"], [out], transB=1))
        now = out
        if place < 2:
            nodes.append(onnx.helper.make_node("Relu", [out], [f"z{place}"]))
            now = f"z{place}"
    image = onnx.helper.make_tensor_value_info("input", 1, ["batch", 1, 14, 14])
    logits = onnx.helper.make_tensor_value_info("logits", 1, ["batch", 10])
    graph = onnx.helper.make_graph(nodes, "lenet", [image], [logits], stored)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    data: bytes = smaller(model)[0].SerializeToString()
    return data


def entropy(file: bytes) -> float:
    """Bytes that the weights of `file` take at the entropy of their values, without regard to their places."""
    total = 0.0
    for tensor in onnx.load_from_string(file).graph.initializer:
        counts = np.unique(onnx.numpy_helper.to_array(tensor), return_counts=True)[1]
        total -= float((counts * np.log2(counts / counts.sum())).sum()) / 8
    return total


def test_a_sparse_network_on_a_grid_takes_little_more_than_its_entropy() -> None:
    file = lenet(0.06)
    plain = len(brotli.compress(file, quality=11))
    by_brotli, by_range = len(pack(file)), len(pack(file, "range"))
    assert by_range < by_brotli < 0.7 * plain
    assert by_range < entropy(file) + 150  # rows and columns of different density save what the graph takes
    assert by_brotli < 1.2 * entropy(file) + 250


def test_a_small_network_takes_few_bytes_besides_its_weights() -> None:
    """The graph, steps and shapes of a LeNet: what every other byte of a small model is, unless it is known already."""
    file = lenet(0.0)
    assert len(pack(file, "range")) < 120
    assert len(pack(file)) < 260


def test_ordinary_floats_take_less_than_in_plain_brotli() -> None:
    """All of them, and a tenth of them among zeros."""
    rng = np.random.default_rng(0)
    for density in (1.0, 0.1):
        model = random_model(1)
        weight = np.where(rng.random((100, 300)) < density, rng.normal(size=(100, 300)), 0).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
        file = model.SerializeToString()
        assert len(pack(file)) < 0.94 * len(brotli.compress(file, quality=11))


def test_the_header_says_what_is_inside() -> None:
    file = lenet(0.06)
    for coder, flags in (("brotli", BROTLI), ("range", RANGE | SKELETON)):
        header = read_header(pack(file, coder))
        assert header.size == len(file)
        assert header.flags & (BROTLI | RANGE | SKELETON) == flags


def test_an_unknown_coder_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(PackError, match="coder: 'zip' is not valid; choose from brotli, range"):
        pack(b"", "zip")


def test_the_decoder_runs_alone_in_another_project(tmp_path: Path) -> None:
    """One file, NumPy and brotli: nothing of ours is imported."""
    (tmp_path / "decode.py").write_text((ROOT / "packing" / "decode.py").read_text())
    file = lenet(0.06)
    for coder in CODERS:
        (tmp_path / "model.pare").write_bytes(pack(file, coder))
        command = [sys.executable, "-I", str(tmp_path / "decode.py"), "model.pare", f"{coder}.onnx"]
        subprocess.run(command, cwd=tmp_path, check=True)
        assert (tmp_path / f"{coder}.onnx").read_bytes() == file
    (tmp_path / "model.pare").write_bytes(b"nothing")
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 1
    assert said.stderr == "decode.py: not a packed model: its first bytes are not 97 50 52\n"


def test_the_reference_is_a_skeleton_of_the_format() -> None:
    """What primes the models is part of the format: it may never change within a version."""
    source = decode.Source(b"", decode._Given(decode.REFERENCE), SKELETON, decode.TextModel())
    parser = decode.Parser(source, 1 << 20)
    parser.message(decode.MODEL, 0)
    model = onnx.load_from_string(b"".join(parser.chunks))
    assert {"Conv", "Gemm", "Relu", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    digest = hashlib.sha256(decode.REFERENCE).hexdigest()
    assert f"SHA-256: `{digest}`" in (ROOT / "docs" / "format.md").read_text()
