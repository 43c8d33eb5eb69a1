"""What files are timed on: examples of every kind of input, fitted to files of every kind of port."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from runtimes import examples
from runtimes.base import Artifact, ArtifactError
from runtimes.latency import LatencyError, LatencySpec, measure
from runtimes.ports import batch_axis, check, fitted
from tasks.base import Port
from tests.test_litert import write

pytestmark = pytest.mark.usefixtures("own_locks")

QUICK = LatencySpec(max_seconds=0.3, min_blocks=5, target_rel_ci=0.5)
IDS, MASK = Port("ids", ("batch", "length"), "int64"), Port("mask", ("batch", "length"), "float32")
IMAGES = Port("images", ("batch", 3, 8, 6), "float32", "NCHW")
CHANNELS_LAST = Port("images", ("batch", 8, 6, 3), "float32", "NHWC")


def text(rows: int, length: int) -> dict[str, np.ndarray]:
    ids = np.arange(rows * length).reshape(rows, length) % 20
    return {"ids": ids, "mask": np.ones((rows, length), np.float32)}


@given(rows=st.integers(1, 9), batch=st.integers(1, 20), length=st.integers(1, 5))
def test_rows_are_repeated_to_the_batch_and_free_axes_are_the_examples(rows: int, batch: int, length: int) -> None:
    made = examples.inputs((IDS, MASK), text(rows, length), batch)
    assert made["ids"].shape == made["mask"].shape == (batch, length)
    assert np.array_equal(made["ids"], text(rows, length)["ids"][np.arange(batch) % rows])


def test_a_batch_axis_is_known_by_its_name_wherever_it_stands() -> None:
    ports = (Port("sound", ("batch", 4)), Port("state", (2, "batch", 3)), Port("rate", (), "int64"))
    assert batch_axis(ports) == "batch"
    state = np.arange(18, dtype=np.float32).reshape(2, 3, 3)
    made = examples.inputs(
        ports, {"sound": np.zeros((3, 4), np.float32), "state": state, "rate": np.array(16000)}, batch=2
    )
    assert np.array_equal(made["state"], state[:, :2])
    assert made["rate"] == 16000


def test_a_file_with_a_fixed_batch_is_given_its_rows_and_refuses_another() -> None:
    fixed = (Port("images", (2, 3)),)
    assert examples.inputs(fixed, {"images": np.zeros((5, 3), np.float32)}, 1)["images"].shape == (2, 3)
    with pytest.raises(
        LatencyError, match=r"latency\.batch: 8 cannot be measured: the file takes images float32 \[2, 3"
    ):
        examples.inputs(fixed, None, 8)


def test_images_are_transposed_for_files_with_channels_last() -> None:
    images = np.random.default_rng(0).random((2, 3, 8, 6), dtype=np.float32)
    turned = np.moveaxis(images, 1, -1)
    assert np.array_equal(fitted([CHANNELS_LAST], {"images": images})["images"], turned)
    assert np.array_equal(fitted([CHANNELS_LAST], {"images": turned})["images"], turned)
    assert np.array_equal(fitted([IMAGES], {"images": images})["images"], images)
    # Of equal sides only the task's own layout tells which is which.
    cube, last = np.random.default_rng(0).random((1, 3, 3, 3)), Port("images", ("batch", 3, 3, 3), "float64", "NHWC")
    task = [Port("pixels", ("batch", 3, 3, 3), "float64", "NCHW")]
    assert np.array_equal(fitted([last], {"pixels": cube}, task)["images"], np.moveaxis(cube, 1, -1))
    assert np.array_equal(fitted([last], {"images": cube})["images"], cube)


def test_other_names_are_taken_in_order_and_inputs_that_the_file_lost_are_left_out() -> None:
    arrays = {"a": np.zeros((1, 2), np.float32), "b": np.ones((1, 2), np.float32)}
    ports = (Port("first", ("batch", 2)), Port("second", ("batch", 2)))
    assert fitted(ports, arrays)["second"].all()
    assert list(fitted([Port("b", ("batch", 2))], arrays)) == ["b"]
    with pytest.raises(ValueError, match=r"the task gives a, b; the file takes first float32 \[batch, 2\]"):
        fitted(ports[:1], arrays)


def test_numbers_are_cast_within_their_kind_alone() -> None:
    ids = {"ids": np.array([[1, 70000]])}
    assert fitted([Port("ids", ("batch", 2), "int32")], ids)["ids"].dtype == np.int32
    narrow = Port("ids", ("batch", 2), "int8")  # 70000 is no int8
    for port in (narrow, Port("ids", ("batch", 2), "float32")):
        with pytest.raises(ValueError, match="'ids' is int64"):
            check([port], fitted([port], ids))
    half = fitted([Port("x", ("batch",), "float16")], {"x": np.ones(3, np.float32)})["x"]
    assert half.dtype == np.float16


@pytest.mark.parametrize(
    ("ports", "said"),
    [
        ((IDS,), r"input ids int64 \[batch, length\]: nothing says how long length is; give examples"),
        ((Port("ids", ("batch", 4), "int64"),), "random values may be none it can take; give examples"),
        ((Port("flag", ("batch",), "bool"),), "random values may be none it can take"),
        ((Port("sound", ("batch", "samples")),), "nothing says how long samples is"),
    ],
)
def test_without_examples_only_floats_are_drawn(ports: tuple[Port, ...], said: str) -> None:
    with pytest.raises(LatencyError, match=said):
        examples.inputs(ports, None, 1)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"ids": np.zeros((2, 3))}, "the examples do not fit: inputs: the task gives ids; the file takes ids int64"),
        ({"ids": np.zeros((2, 3)), "mask": np.zeros((2, 3), np.float32)}, r"'ids' is float64 \[1, 3\]"),
        ({"ids": np.zeros((2, 3), int), "mask": np.zeros((2, 4), np.float32)}, "'mask' is float32 .* along length"),
        ({"ids": np.zeros(3, int), "mask": np.zeros((2, 4), np.float32)}, r"'ids' is int64 \[3\]"),
    ],
)
def test_examples_that_do_not_fit_are_refused(arrays: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(LatencyError, match=said):
        examples.inputs((IDS, MASK), arrays, 1)


def test_a_file_of_examples_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.npz").write_bytes(b"noise")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    np.savez(tmp_path / "empty.npz", x=np.zeros((0, 3)))
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name, said in (
        ("noise.npz", "cannot be read"),
        ("objects.npz", "cannot be read"),
        ("empty.npz", "x holds no values"),
        ("one.npy", "cannot be read"),
        ("gone.npz", "No such file"),
    ):
        with pytest.raises(LatencyError, match=said):
            examples.read(tmp_path / name)


def words(path: Path) -> Artifact:
    """scores[batch, 3] of int64 ids [batch, length], looked up in a table of 20, weighted by a float mask."""
    rng = np.random.default_rng(0)
    ends = {"ids": TensorProto.INT64, "mask": TensorProto.FLOAT}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["found"]),
        helper.make_node("Unsqueeze", ["mask", "two"], ["weights"]),
        helper.make_node("Mul", ["found", "weights"], ["product"]),
        helper.make_node("ReduceMean", ["product"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["scores"]),
    ]
    stored = {"table": rng.random((20, 8), dtype=np.float32), "w": rng.random((8, 3), dtype=np.float32)}
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info(name, kind, ["batch", "length"]) for name, kind in ends.items()],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()]
        + [numpy_helper.from_array(np.array([2]), "two")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return Artifact.of(path)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_file_of_ids_and_floats_is_measured_on_examples(runtime: str, tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    artifact = words(tmp_path / "words.onnx")
    given = text(3, 7)
    np.savez(tmp_path / "examples.npz", ids=given["ids"], mask=given["mask"])
    spec = LatencySpec(batch=(1, 8), max_seconds=0.3, min_blocks=5)
    result = measure(runtime, artifact, artifact, spec, tmp_path / "examples.npz")
    assert [each.batch for each in result.comparisons] == [1, 8]
    assert result.latency_ms > 0
    assert result.environment["gpu"] == ""


def test_a_file_of_ids_is_not_measured_on_random_numbers(tmp_path: Path) -> None:
    artifact = words(tmp_path / "words.onnx")
    with pytest.raises(LatencyError, match=r"input ids int64 .*; give examples"):
        measure("onnxruntime", artifact, artifact, QUICK)
    np.savez(tmp_path / "wrong.npz", ids=np.full((2, 3), 20), mask=np.ones((2, 3), np.float32))
    with pytest.raises(ArtifactError, match=r"words\.onnx: ONNX Runtime .* cannot run it: .*out of"):
        measure("onnxruntime", artifact, artifact, QUICK, tmp_path / "wrong.npz")


def test_a_tflite_file_is_measured_on_examples(tmp_path: Path) -> None:
    artifact = write(tmp_path / "model.tflite")
    np.savez(tmp_path / "examples.npz", pixels=np.zeros((2, 8), np.float32))
    assert measure("litert", artifact, artifact, QUICK, tmp_path / "examples.npz").latency_ms > 0
