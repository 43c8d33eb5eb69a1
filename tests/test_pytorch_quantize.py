"""Integer networks: fake quantization against torch's own, the exported file against ONNX Runtime's kernels."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torchao.quantization.pt2e.observer import MovingAverageMinMaxObserver

from tasks.mnist.pytorch import MODELS, Program
from trainers.pytorch import export as exporting
from trainers.pytorch import models, prune, quantize
from trainers.pytorch.quantize import FastFakeQuantize
from trainers.recipe import Pruning

torch.set_num_threads(1)
FLOAT = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
INTEGER = {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"}


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def network(name: str) -> nn.Module:
    """Random weights, and for batch norm statistics that are not the start's."""
    torch.manual_seed(1)
    model = Program().build(name)
    prune.reestimate(model, [(images(200),)])
    return model.eval()


def ran(file: Path, inputs: torch.Tensor, folder: Path) -> tuple[np.ndarray, list[str]]:
    """The file's logits under ONNX Runtime, and the kernels that it ran, from its profile."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(file, options)
    logits = session.run(["logits"], {"input": inputs.numpy()})[0]
    events = json.loads(Path(session.end_profiling()).read_text())
    return logits, [e["args"]["op_name"] for e in events if e["name"].endswith("kernel_time")]


def test_rounding_is_torchs_fake_quantization_forwards_and_backwards() -> None:
    values = (torch.randn(1000) * 2).requires_grad_()
    ours = FastFakeQuantize(MovingAverageMinMaxObserver, 0, 255, dtype=torch.uint8, qscheme=torch.per_tensor_affine)
    ours(torch.tensor([-1.0, 2.0]))
    ours.disable_observer()
    weights = torch.randn(1000)
    found = []
    for rounded in (
        ours(values),
        torch.fake_quantize_per_tensor_affine(values, ours.scale, ours.zero_point, 0, 255),
    ):
        (gradient,) = torch.autograd.grad((rounded * weights).sum(), values)
        found.append((rounded.detach(), gradient))
    (our_values, our_gradient), (torchs_values, torchs_gradient) = found
    # A value half way between two integers may go to either; anywhere else they are the same.
    assert ((our_values - torchs_values).abs() > 1e-6).float().mean() < 0.01
    assert (our_values - torchs_values).abs().max() <= ours.scale.item() * 1.001
    assert ((our_gradient - torchs_gradient).abs() > 1e-6).float().mean() < 0.01


@pytest.mark.parametrize("name", list(MODELS))
def test_folded_batch_norm_says_the_same(name: str) -> None:
    model = network(name)
    folded = quantize.fold_batch_norm(model)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(images(8)), model(images(8)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", list(MODELS))
def test_the_file_runs_in_integer_kernels_and_says_what_the_network_says(name: str, tmp_path: Path) -> None:
    inputs = images(400)
    model = network(name)
    prepared = quantize.prepare(model, inputs)
    with torch.no_grad():
        said, exact = prepared(inputs).numpy(), model(inputs).numpy()
    file = tmp_path / "model.onnx"
    converted = quantize.convert(prepared)
    exporting.export(converted, inputs[:2], file, {"recipe": "{}"})
    logits, kernels = ran(file, inputs, tmp_path)
    assert not FLOAT & set(kernels)
    assert sum(kernel in INTEGER for kernel in kernels) == len(models.prunable(model))
    assert np.mean(logits.argmax(1) == said.argmax(1)) >= 0.99
    # 8 bits in every layer: the logits move by a small part of their spread.
    assert np.abs(logits - exact).max() <= 0.1 * exact.std() * 4
    assert np.abs(logits - said).max() <= 0.02 * exact.std() * 4


@pytest.mark.parametrize(("bits", "levels"), [(8, 255), (4, 15)])
def test_weights_are_symmetric_integers_and_zeros_stay_zeros(bits: int, levels: int) -> None:
    model = network("lenet300")
    masked = prune.MaskedPruning(model, Pruning("unstructured", 0.8))
    masks = masked.finish()
    dense = {name: layer.weight.detach().clone() for name, layer in models.prunable(model).items()}
    stored = quantize.integer_weights(quantize.convert(quantize.prepare(model, images(50), bits)))
    assert len(stored) == 3
    for integers, (name, weight) in zip(stored.values(), dense.items(), strict=True):
        assert int(integers.abs().max()) == (levels - 1) // 2
        assert torch.all(integers[masks[f"{name}.weight"] == 0] == 0)
        scale = weight.abs().amax(dim=1, keepdim=True) / ((levels - 1) // 2)
        assert torch.all((integers * scale - weight).abs() <= 0.5001 * scale + 1e-7)


def test_ranges_move_only_while_they_are_observed() -> None:
    prepared = quantize.prepare(network("lenet300"), images(50))
    grids = [m for m in prepared.modules() if isinstance(m, FastFakeQuantize)]
    before = [grid.scale.clone() for grid in grids]
    with torch.no_grad():
        prepared(images(50) * 5)
        assert all(torch.equal(grid.scale, scale) for grid, scale in zip(grids, before, strict=True))
        quantize.unfreeze(prepared)
        prepared(images(50) * 5)
    assert any(not torch.equal(grid.scale, scale) for grid, scale in zip(grids, before, strict=True))


@pytest.mark.parametrize(("name", "integer"), [("convnet", True), ("lenet5", False)])
def test_the_fast_export_is_the_public_exporters_graph(name: str, integer: bool) -> None:
    model = quantize.fold_batch_norm(network(name))
    if integer:
        model = quantize.convert(quantize.prepare(model, images(9)))
    program = quantize.capture(model, images(2))
    assert {node.target for node in program.graph.nodes if node.op == "call_function"} <= exporting.TRANSLATED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast, public = exporting.translated(program), exporting.exported(program)
    assert [node.op_type for node in fast.graph.node] == [node.op_type for node in public.graph.node]
    answers = []
    for made in (fast, public):
        session = onnxruntime.InferenceSession(made.SerializeToString())
        answers.append(session.run(None, {"input": images(5).numpy()})[0])
    assert np.array_equal(*answers)


def test_a_file_describes_itself_and_takes_any_batch(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    model = network("convnet")
    exporting.export(quantize.fold_batch_norm(model), images(2), file, {"recipe": "{}", "data": "abc"})
    made = onnx.load(file)
    onnx.checker.check_model(made, full_check=True)
    assert {prop.key: prop.value for prop in made.metadata_props} == {"recipe": "{}", "data": "abc"}
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert b".py" not in made.SerializeToString()  # no traces of the machine that made it
    for batch in (1, 3):
        logits, _ = ran(file, images(batch), tmp_path)
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(images(batch)).numpy(), atol=1e-4)


def test_an_operator_without_a_fast_translation_takes_the_public_exporter(tmp_path: Path) -> None:
    class Squashed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(28, 10)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.layer(inputs)).mean(dim=(1, 2))

    model = Squashed().eval()
    exporting.export(model, images(2), tmp_path / "model.onnx", {})
    logits, _ = ran(tmp_path / "model.onnx", images(3), tmp_path)
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(images(3)).numpy(), atol=1e-5)


def test_dynamic_int8_makes_matrices_int8_and_keeps_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    model = network("lenet5")
    exporting.export(model, images(2), file, {"data": "abc"})
    exporting.dynamic_int8(file)
    made = onnx.load(file)
    assert {prop.key: prop.value for prop in made.metadata_props} == {"data": "abc"}
    matrices = [i for i in made.graph.initializer if sorted(i.dims) in ([500, 800], [10, 500])]
    assert {i.data_type for i in matrices} == {onnx.TensorProto.INT8}
    logits, _ = ran(file, images(300), tmp_path)
    with torch.no_grad():
        exact = model(images(300)).numpy()
    assert np.abs(logits - exact).max() <= 0.05 * exact.std() * 4
