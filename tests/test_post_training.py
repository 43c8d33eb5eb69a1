"""Smaller numbers for an fp32 ONNX file: what is stored, and how far the answers move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from benchmarks.zoo import NETWORKS
from trainers.onnx.weights import dynamic_int8, float16, prepared, weight_only_int4, weight_only_int8
from trainers.pytorch.export import export, relative_error

torch.set_num_threads(1)


class Small(nn.Module):
    """A convolution, a recurrent layer, matrices of two and three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.layers = nn.Conv1d(12, 32, 3, padding=1), nn.LSTM(32, 32, batch_first=True)
        self.wide, self.head = nn.Linear(32, 64), nn.Linear(64, 9)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        states, _ = self.layers(self.conv(steps.transpose(1, 2)).transpose(1, 2))
        return self.head(torch.relu(self.wide(states)).mean(1))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, np.ndarray, np.ndarray]:
    """The fp32 file, inputs, and what the network says to them."""
    torch.manual_seed(0)
    model, steps = Small().eval(), torch.randn(16, 20, 12)
    file = tmp_path_factory.mktemp("fp32") / "model.onnx"
    export(model, (steps[:2],), file, {"data": "abc"})
    with torch.no_grad():
        return file.read_bytes(), steps.numpy(), model(steps).numpy()


@pytest.mark.parametrize(
    ("change", "share", "error"),
    [(dynamic_int8, 0.7, 0.03), (weight_only_int8, 0.45, 0.03), (float16, 0.7, 0.002), (weight_only_int4, 1.0, 0.2)],
)
def test_a_file_becomes_smaller_and_says_nearly_the_same(
    change: Callable[[Path], None],
    share: float,
    error: float,
    written: tuple[bytes, np.ndarray, np.ndarray],
    tmp_path: Path,
) -> None:
    content, steps, exact = written
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    change(file)
    assert file.stat().st_size < share * len(content)
    assert {prop.key: prop.value for prop in onnx.load(file).metadata_props} == {"data": "abc"}
    for rows in (1, 16):
        said = onnxruntime.InferenceSession(file).run(["output"], {"input": steps[:rows]})[0]
        assert 0 < relative_error(said, exact[:rows]) < error


def test_weights_are_stored_once_as_integers_with_a_scale_per_output(
    written: tuple[bytes, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(written[0])
    before = {i.name: numpy_helper.to_array(i) for i in onnx.load(file).graph.initializer}
    weight_only_int8(file)
    graph = onnx.load(file).graph
    after = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    large = {
        name for name, array in before.items() if array.dtype == np.float32 and array.size >= 1024 and array.ndim > 1
    }
    assert large
    assert not large & set(after)
    for name in large:
        integers, scale = after[f"{name}/int8"].astype(np.float32), after[f"{name}/scale"]
        assert scale.size == max(integers.shape[each] for each in range(integers.ndim) if scale.shape[each] > 1)
        assert np.abs(integers * scale - before[name]).max() <= 0.5001 * scale.max()
        assert np.abs(integers).max() == 127


def test_attention_is_quantized_after_onnx_runtimes_own_preparation(tmp_path: Path) -> None:
    network, file = NETWORKS["encoder"], tmp_path / "model.onnx"
    torch.manual_seed(0)
    model, inputs = network.build().eval(), network.example(4)
    export(model, network.example(2), file, {})
    dynamic_int8(file)
    kinds = Counter(node.op_type for node in onnx.load(file).graph.node)
    assert kinds["MatMulInteger"] >= 8
    said = onnxruntime.InferenceSession(file).run(None, {"input": inputs[0].numpy()})[0]
    with torch.no_grad():
        assert relative_error(said, model(*inputs).numpy()) < 0.05


def test_a_graph_whose_shapes_are_not_found_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's symbolic shapes write what they could not finish into the current folder."""
    current = tmp_path / "current"
    current.mkdir()
    monkeypatch.chdir(current)
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    nodes = [onnx.helper.make_node("Unknown", ["x"], ["y"], domain="of.ones.own")]
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("of.ones.own", 1)]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), "m.onnx")
    assert prepared(Path("m.onnx"), tmp_path / "made.onnx").is_file()
    assert [path.name for path in current.iterdir()] == ["m.onnx"]
    assert Path.cwd() == current
