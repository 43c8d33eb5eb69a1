"""Bytes to download, nonzeros and denominators: of files, and as figures of a study that asks for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from packing import measure
from packing.decode import unpack
from packing.pack import pack
from runtimes.base import Artifact
from search.study.config import check
from search.trial.measure import counted
from serving.package import Package, PackageError, make
from tests.onnx_graphs import random_model
from tests.test_packing import lenet


def test_nonzeros_are_those_of_weights() -> None:
    file = lenet(0.06)
    tensors = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(file).graph.initializer]
    assert measure.nonzeros(file) == sum(np.count_nonzero(t) for t in tensors if t.ndim > 1)
    assert measure.float32_bytes(file) == sum(4 * t.size for t in tensors)
    assert measure.nonzeros(b"something else") is None
    assert measure.float32_bytes(b"something else") == 0


def test_integers_and_nibbles_count_too() -> None:
    model = random_model(0)
    del model.graph.initializer[:]
    stored = [
        onnx.numpy_helper.from_array(np.array([[0, 3], [-1, 0]], np.int8), "a"),
        onnx.helper.make_tensor("b", onnx.TensorProto.INT4, (2, 3), b"\x01\x20\x33", raw=True),
        onnx.numpy_helper.from_array(np.array([[7, 7]], np.int64), "shapes"),
        onnx.numpy_helper.from_array(np.array([1, 2], np.int32), "bias"),
        onnx.numpy_helper.from_array(np.array([[0.0, 2.0]], np.float16), "c"),
    ]
    model.graph.initializer.extend(stored)
    assert measure.nonzeros(model.SerializeToString()) == 2 + 4 + 1


@pytest.mark.parametrize(
    ("objectives", "constraints", "packed"),
    [
        (["accuracy", "download_bytes"], [], True),
        (["accuracy", "float32_ratio"], [], True),
        (["accuracy", "size_bytes"], ["download_bytes <= 2000"], True),
        (["accuracy", "size_bytes"], ["nonzeros <= 4000"], False),
    ],
)
def test_files_are_packed_only_where_the_study_asks(
    objectives: list[str], constraints: list[str], packed: bool, tmp_path: Path
) -> None:
    values = {
        "name": "x",
        "task": "mnist",
        "objectives": objectives,
        "constraints": constraints,
        "recipe": {"trainer": "pytorch", "model": "lenet300"},
        "runtime": "onnxruntime",
        "budget": {"trials": 1},
        "coder": "range",
    }
    study = check({"study": values}).study
    file = tmp_path / "model.onnx"
    file.write_bytes(lenet(0.02))
    found = counted(Artifact.of(file), study)
    assert found["unpacked_bytes"] == file.stat().st_size
    assert found["nonzeros"] > 0
    assert ("download_bytes" in found) == packed
    if packed:
        assert found["download_bytes"] == len(pack(file.read_bytes(), "range"))


def test_a_folder_with_the_packed_model_alone_is_served(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(random_model(2).SerializeToString())
    make(file, "net", "onnxruntime").write(tmp_path)
    whole = Package.read(tmp_path)
    (tmp_path / "model.pare").write_bytes(pack(file.read_bytes()))
    file.unlink()
    assert Package.read(tmp_path).content == whole.content == unpack((tmp_path / "model.pare").read_bytes())
    (tmp_path / "model.pare").write_bytes(b"damaged")
    with pytest.raises(PackageError, match="not a packed model"):
        Package.read(tmp_path)
