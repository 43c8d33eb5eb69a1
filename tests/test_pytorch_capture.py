"""Capture and export of any network: free axes, several inputs and outputs, and errors that name the user's line."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from tasks.base import Port
from trainers.pytorch import export as exporting
from trainers.pytorch import exporter
from trainers.pytorch.capture import CaptureError, Example, capture, ports_of
from trainers.pytorch.export import ExportError, export, relative_error

torch.set_num_threads(1)
TEXT = (Port("ids", ("batch", "length"), "int64"), Port("mask", ("batch", "length"), "int64"))


class Text(nn.Module):
    """Ids and a mask in, class logits and states out; the last layer's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True, dropout=0.0)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = inputs
        states = self.layer(self.embedding(ids)) * mask.unsqueeze(-1).to(torch.float32)
        return self.head(states), states.mean(1)


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.layer(rows[i]) for i in range(rows.shape[0])])


class Branch(Loop):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        made = self.layer(rows)
        if made.sum() > 0:
            return made
        return -made


class InPlace(nn.Module):
    """Reused and in-place activations, an in-place change that a view sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.relu(self.norm(self.conv(images)))
        maps += 1.0
        maps = self.relu(self.last(maps))
        rows = maps.flatten(1)
        maps.mul_(2.0)
        return rows + 1.0


def text() -> Example:
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    return torch.randint(0, 50, (2, 7)), mask


def test_free_axes_stay_free_in_every_input() -> None:
    program = capture(Text().eval(), text(), TEXT)
    for name in program.graph_signature.user_inputs:
        value = next(node for node in program.graph.nodes if node.name == name).meta["val"]
        assert all(not isinstance(size, int) for size in value.shape)


def test_a_file_has_names_several_outputs_and_free_axes(tmp_path: Path) -> None:
    model = Text().eval()
    outputs = (Port("tokens", ("batch", "length", 50), kind="logits"), Port("pooled", ("batch", 16)))
    export(model, text(), tmp_path / "model.onnx", {"data": "abc"}, TEXT, outputs)
    made = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(made, full_check=True)
    axes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in made.graph.input}
    axes |= {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in made.graph.output}
    assert axes == {port.name: list(port.shape) for port in (*TEXT, *outputs)}
    assert {v.type.tensor_type.elem_type for v in made.graph.input} == {onnx.TensorProto.INT64}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    ids, mask = torch.randint(0, 50, (5, 11)), torch.ones(5, 11, dtype=torch.int64)
    found = session.run(["pooled", "tokens"], {"ids": ids.numpy(), "mask": mask.numpy()})
    with torch.no_grad():
        for said, exact in zip(found, reversed(model(ids, mask)), strict=True):
            assert relative_error(said, exact.numpy()) < 1e-4


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    export(Text().eval(), text(), tmp_path / "model.onnx", {}, TEXT)
    made = onnx.load(tmp_path / "model.onnx")
    assert sum(sorted(i.dims) == [16, 50] for i in made.graph.initializer) == 1


def test_a_loop_over_the_batch_is_told_apart_from_a_free_batch() -> None:
    with pytest.raises(CaptureError, match=r"'batch' of input input is fixed at 2.*a Python loop over it"):
        capture(Loop().eval(), (torch.randn(2, 4),))


def test_a_decision_by_the_data_names_the_users_line() -> None:
    with pytest.raises(CaptureError) as raised:
        capture(Branch().eval(), (torch.randn(2, 4),))
    place, line = raised.value.place.rsplit(":", 1)
    assert Path(place) == Path(__file__)
    assert Path(__file__).read_text().splitlines()[int(line) - 1].strip() == "if made.sum() > 0:"
    assert "torch.where or torch.cond" in raised.value.message
    assert pickle.loads(pickle.dumps(raised.value)).place == raised.value.place


def test_what_torchscript_can_compile_becomes_a_file_that_decides_by_its_data(tmp_path: Path) -> None:
    for model, kind in ((Loop(), "Loop"), (Branch(), "If")):
        file = tmp_path / f"{kind}.onnx"
        assert export(model.eval(), (torch.randn(2, 4),), file, {}) == "torchscript-compiled"
        assert kind in [node.op_type for node in onnx.load(file).graph.node]
        session, decisions = onnxruntime.InferenceSession(file), set[bool]()
        for shift in (-3.0, 3.0):
            rows = shift * model.layer.weight.detach().sum(0).sign() + 0.1 * torch.randn(5, 4)
            with torch.no_grad():
                wanted = model(rows).numpy()
            assert relative_error(session.run(None, {"input": rows.numpy()})[0], wanted) < 1e-5
            decisions.add(bool(model.layer(rows).sum() > 0))
        assert decisions == {True, False}


class ByNumpy(Branch):
    """As a person writes it who thinks in NumPy: no exporter reads this."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        made = self.layer(rows)
        large = float(np.abs(made.detach().numpy()).max())
        return made / large if large > 1.0 else made


def test_what_neither_exporter_can_read_gives_no_file_and_names_the_line(tmp_path: Path) -> None:
    with pytest.raises((CaptureError, ExportError)) as raised:
        export(ByNumpy().eval(), (torch.randn(2, 4),), tmp_path / "model.onnx", {})
    assert not list(tmp_path.iterdir())
    place, line = raised.value.place.rsplit(":", 1)
    assert Path(place) == Path(__file__)
    assert Path(__file__).read_text().splitlines()[int(line) - 1].strip().startswith("large = float(np.abs(")
    assert "relative error" in raised.value.message  # what one run recorded is not taken for the network


def test_in_place_operators_are_exported_as_they_compute(tmp_path: Path) -> None:
    model = InPlace().eval()
    # The file is checked against the network, which runs eagerly and sees the change through the view.
    assert export(model, (torch.randn(2, 3, 8, 8),), tmp_path / "model.onnx", {}).startswith("dynamo")


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_file_that_says_something_else_is_no_artifact(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, model = nn.Linear(4, 3).eval(), nn.Linear(4, 3).eval()
    monkeypatch.setattr(exporting, "capture", lambda _, example, inputs: capture(wrong, example, inputs))
    with pytest.raises(ExportError, match=r"output output is not the model's at input \(2, 4\): relative error"):
        export(model, (torch.randn(2, 4),), tmp_path / f"model.{suffix}", {})
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_right_at_one_length_alone_is_no_artifact(tmp_path: Path) -> None:
    class Lengths(nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows.mean(1) if rows.shape[1] > 4 else rows.sum(1)

    port = Port("rows", ("batch", "length", 3))
    with pytest.raises(ExportError, match=r"at rows \(2, 3, 3\)"):
        export(Lengths().eval(), (torch.randn(2, 6, 3),), tmp_path / "model.onnx", {}, (port,))


@pytest.mark.parametrize("way", ["dynamo", "torchscript"])
def test_where_one_exporter_fails_the_next_one_gives_the_file(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> onnx.ModelProto:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(exporter, "translated", fails)
    if way == "torchscript":
        monkeypatch.setattr(exporter, "exported", fails)
    model, example = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Hardswish()), torch.randn(2, 3, 8, 8)
    assert export(model.eval(), (example,), tmp_path / "model.onnx", {}) == way
    assert [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node] == ["Conv", "HardSwish"]


def test_ports_are_made_for_tensors_without_names() -> None:
    assert ports_of(text(), "input") == (
        Port("input_0", ("batch", 7), "int64"),
        Port("input_1", ("batch", 7), "int64"),
    )


def test_the_relative_error_is_by_hand() -> None:
    exact = np.array([3.0, 4.0, np.inf])
    assert relative_error(np.array([3.0, 5.0, np.inf]), exact) == pytest.approx(1 / 5)
    assert relative_error(np.array([3.0, 4.0, 5.0]), exact) == np.inf
    assert relative_error(np.zeros((2, 3)), exact) == np.inf
    assert relative_error(np.zeros(2), np.zeros(2)) == 0.0
