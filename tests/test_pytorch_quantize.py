"""Integer networks: fake quantization against torch's own, the exported file against ONNX Runtime's kernels."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torchao.quantization.pt2e.observer import MovingAverageMinMaxObserver

from benchmarks.zoo import NETWORKS
from runtimes import cpu
from tasks.base import Port
from tasks.mnist.pytorch import MODELS, Program
from trainers.base import TrainingError
from trainers.onnx.weights import dynamic_int8
from trainers.pytorch import exporter, models, quantize
from trainers.pytorch.capture import capture
from trainers.pytorch.export import export, relative_error
from trainers.pytorch.fake_quantize import ChannelRange, FastFakeQuantize
from trainers.pytorch.lowering import batch_norm, simplify
from trainers.pytorch.masks import MaskedPruning
from trainers.pytorch.recover import reestimate
from trainers.recipe import Pruning

torch.set_num_threads(1)
FLOAT = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
INTEGER = {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"}


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def network(name: str) -> nn.Module:
    """Random weights and biases, and for batch norm statistics that are not the start's."""
    torch.manual_seed(1)
    model = Program().build(name)
    reestimate(model, [(images(200),)])
    return biased(model)


def biased(model: nn.Module) -> nn.Module:
    """Without biases of zero, which an exporter leaves out."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def ran(content: bytes | Path, inputs: torch.Tensor, folder: Path) -> tuple[np.ndarray, Counter[str]]:
    """The file's first output under ONNX Runtime, and how often it ran each kernel, from its profile."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    if cpu.saturates_int8():
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(content, options)
    logits = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]
    events = json.loads(Path(session.end_profiling()).read_text())
    return logits, Counter(e["args"]["op_name"] for e in events if e["name"].endswith("kernel_time"))


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
def test_the_file_runs_in_integer_kernels_and_says_what_the_network_says(name: str, tmp_path: Path) -> None:
    inputs = images(400)
    model = network(name)
    prepared = quantize.prepare(model, [(inputs,)])
    with torch.no_grad():
        said, exact = prepared(inputs).numpy(), model(inputs).numpy()
    file = tmp_path / "model.onnx"
    export(quantize.convert(prepared), (inputs[:2],), file, {"recipe": "{}"})
    logits, kernels = ran(file, inputs, tmp_path)
    assert not FLOAT & set(kernels)
    assert sum(kernels[kernel] for kernel in INTEGER) == len(models.prunable(model))
    assert np.mean(logits.argmax(1) == said.argmax(1)) >= 0.99
    # 8 bits in every layer: the logits move by a small part of their spread.
    assert np.abs(logits - exact).max() <= 0.1 * exact.std() * 4
    assert np.abs(logits - said).max() <= 0.02 * exact.std() * 4


class Wide(nn.Module):
    """Residual sums, a concatenation, one- and two-dimensional, depthwise and shared convolutions, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.relu = nn.Conv2d(1, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        self.left = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.right = nn.Conv2d(16, 16, 3, padding="same")
        self.join, self.pool = nn.Conv2d(32, 24, 1), nn.MaxPool2d(2)
        self.sequence, self.query, self.head = nn.Conv1d(24, 32, 3, padding=1), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        maps = self.relu(self.norm(self.stem(pixels)))
        maps = self.relu(maps + self.left(maps))
        maps = torch.cat([self.right(maps), nn.functional.relu6(self.right(maps * 0.5))], 1)
        steps = self.sequence(self.pool(self.relu(self.join(maps))).flatten(2)).transpose(1, 2)
        scores = torch.softmax(self.query(steps) @ steps.transpose(1, 2), -1)
        return self.head(nn.functional.gelu(scores @ steps).mean(1))


def test_every_operator_with_an_integer_kernel_runs_in_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = biased(Wide())
    prepared = quantize.prepare(model, [(images(100),), (images(100) * 0.9,)])
    with torch.no_grad():
        said, exact = prepared(images(100)).numpy(), model(images(100)).numpy()
    export(quantize.convert(prepared), (images(2),), tmp_path / "model.onnx", {})
    logits, kernels = ran(tmp_path / "model.onnx", images(100), tmp_path)
    assert not FLOAT & set(kernels)
    assert kernels["QLinearConv"] == 6  # the shared one runs twice
    assert (kernels["QLinearAdd"], kernels["QLinearConcat"]) == (1, 1)
    assert kernels["MatMulIntegerToFloat"] + kernels["QLinearMatMul"] == 3
    assert relative_error(logits, said) < 0.02
    assert relative_error(said, exact) < 0.1


@pytest.mark.parametrize(
    ("name", "integer", "sums"), [("resnet18", 21, 8), ("mobilenet_v2", 53, 10), ("squeezenet", 26, 0)]
)
def test_foreign_networks_run_in_integers(name: str, integer: int, sums: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    zoo = NETWORKS[name]
    model, inputs = biased(zoo.build()), zoo.example(8)
    export(quantize.convert(quantize.prepare(model, [inputs])), zoo.example(2), tmp_path / "model.onnx", {})
    _, kernels = ran(tmp_path / "model.onnx", inputs[0], tmp_path)
    assert not FLOAT & set(kernels)
    assert (sum(kernels[kernel] for kernel in INTEGER), kernels["QLinearAdd"]) == (integer, sums)


@pytest.mark.parametrize("name", ["unet", "autoencoder"])
def test_a_layer_without_an_integer_kernel_keeps_its_float_weights(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = biased(NETWORKS[name].build()), NETWORKS[name].example(4)
    export(quantize.convert(quantize.prepare(model, [inputs])), inputs, tmp_path / "model.onnx", {})
    _, kernels = ran(tmp_path / "model.onnx", inputs[0], tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(tmp_path / "model.onnx", options)
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    floats = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    up = [node.input[1] for node in graph.node if node.op_type == "ConvTranspose"]
    assert len(up) == kernels["ConvTranspose"] == 2
    assert set(up) <= floats


def test_named_layers_stay_float(tmp_path: Path) -> None:
    model = network("lenet5")
    prepared = quantize.prepare(model, [(images(50),)], keep_float=("conv2",))
    export(quantize.convert(prepared), (images(2),), tmp_path / "model.onnx", {})
    _, kernels = ran(tmp_path / "model.onnx", images(5), tmp_path)
    assert sum(kernels[kernel] for kernel in FLOAT) == 1
    assert sum(kernels[kernel] for kernel in INTEGER) == 3


def test_a_layer_shared_by_two_norms_keeps_both(tmp_path: Path) -> None:
    """torchao folds the first norm into the layer and drops the second."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.one, self.other = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return (self.one(self.layer(pixels)) + self.other(self.layer(pixels * 2.0))).mean((2, 3))

    model = biased(Shared().train())
    with torch.no_grad():
        model.train()(images(50))
        model.eval()
        prepared = quantize.prepare(model, [(images(50),)])
        assert relative_error(prepared(images(50)).numpy(), model(images(50)).numpy()) < 0.05
    assert sum(node.target is batch_norm for node in prepared.graph.nodes) == 2


def test_a_captured_network_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def altered(captured: torch.fx.GraphModule) -> torch.fx.GraphModule:
        captured.get_parameter("fc2.weight").data.mul_(1.5)
        return simplify(captured)

    monkeypatch.setattr(quantize, "simplify", altered)
    with pytest.raises(TrainingError, match="the captured network differs from the model"):
        quantize.prepare(network("lenet5"), [(images(8),)])


def test_quantizing_leaves_the_model_as_it_is() -> None:
    model = network("convnet")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prepared = quantize.prepare(model, [(images(8),)])
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {f"{name}.weight" for name in models.prunable(model)} <= {name for name, _ in prepared.named_parameters()}


def test_ranges_are_averages_over_the_batches() -> None:
    batches = [(images(50),), (images(50) * 3,), (images(50) * 2,)]
    prepared = quantize.prepare(network("lenet300"), batches)
    grids = [module for module in prepared.modules() if isinstance(module, FastFakeQuantize)]
    grid = next(grid for grid in grids if not grid.is_per_channel and float(grid.activation_post_process.min_val) < 0)
    lowest = np.mean([float(batch.min()) for (batch,) in batches])
    assert float(grid.activation_post_process.min_val) == pytest.approx(lowest)


def test_a_channel_of_zeros_keeps_its_bias(tmp_path: Path) -> None:
    """With the scale that its own range gives, a bias of 9 would be more than an int32 of steps."""
    model = network("lenet300")
    first, last = models.prunable(model)["fc1"], models.prunable(model)["fc3"]
    with torch.no_grad():
        for layer in (first, last):
            layer.weight[:4], layer.bias[:4] = 0.0, 9.0
            layer.weight[4] *= 1e-9
        exact = model(images(50)).numpy()
    export(quantize.convert(quantize.prepare(model, [(images(50),)])), (images(2),), tmp_path / "model.onnx", {})
    logits, _ = ran(tmp_path / "model.onnx", images(50), tmp_path)
    assert relative_error(logits, exact) < 0.03


def test_scales_have_a_floor_relative_to_the_tensors_largest() -> None:
    ranged = ChannelRange(averaging_constant=1.0, quant_min=-127, quant_max=127, dtype=torch.int8,
                          qscheme=torch.per_channel_symmetric)  # fmt: skip
    ranged(torch.tensor([[127.0, 0.0], [0.0, 0.0], [1e-6, 0.0], [63.5, -1.0]]))
    scale, _ = ranged.calculate_qparams()
    assert scale.tolist() == pytest.approx([1.0, 2.0**-12, 2.0**-12, 0.5])


@pytest.mark.parametrize(("bits", "levels"), [(8, 255), (4, 15)])
def test_weights_are_symmetric_integers_and_zeros_stay_zeros(bits: int, levels: int) -> None:
    model = network("lenet300")
    masked = MaskedPruning(model, Pruning("unstructured", 0.8))
    masks = masked.finish()
    dense = {name: layer.weight.detach().clone() for name, layer in models.prunable(model).items()}
    stored = quantize.integer_weights(quantize.convert(quantize.prepare(model, [(images(50),)], bits)))
    assert len(stored) == 3
    for integers, (name, weight) in zip(stored.values(), dense.items(), strict=True):
        assert int(integers.abs().max()) == (levels - 1) // 2
        assert torch.all(integers[masks[f"{name}.weight"] == 0] == 0)
        scale = weight.abs().amax(dim=1, keepdim=True) / ((levels - 1) // 2)
        assert torch.all((integers * scale - weight).abs() <= 0.5001 * scale + 1e-7)


def test_ranges_move_only_while_they_are_observed() -> None:
    prepared = quantize.prepare(network("lenet300"), [(images(50),)])
    grids = [m for m in prepared.modules() if isinstance(m, FastFakeQuantize)]
    before = [grid.scale.clone() for grid in grids]
    with torch.no_grad():
        prepared(images(50) * 5)
        assert all(torch.equal(grid.scale, scale) for grid, scale in zip(grids, before, strict=True))
        quantize.unfreeze(prepared)
        prepared(images(50) * 5)
    assert any(not torch.equal(grid.scale, scale) for grid, scale in zip(grids, before, strict=True))


@pytest.mark.parametrize(("name", "integer"), [("convnet", True), ("convnet", False), ("lenet5", False)])
def test_the_fast_export_is_the_public_exporters_graph(name: str, integer: bool) -> None:
    model = network(name)
    if integer:
        model = quantize.convert(quantize.prepare(model, [(images(9),)]))
    program, ports = capture(model, (images(2),)), ((Port("input", ("batch", 1, 28, 28)),), (Port("logits", ()),))
    with exporter._quietly():
        fast, public = exporter.translated(program, *ports), exporter.exported(program, *ports)
    assert [node.op_type for node in fast.graph.node] == [node.op_type for node in public.graph.node]
    assert [each.version for each in fast.opset_import] == [exporter.OPSET]
    answers = []
    for made in (fast, public):
        session = onnxruntime.InferenceSession(made.SerializeToString())
        answers.append(session.run(["logits"], {"input": images(5).numpy()})[0])
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)


def test_a_file_describes_itself_and_takes_any_batch(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    model = network("convnet")
    export(model, (images(2),), file, {"recipe": "{}", "data": "abc"})
    made = onnx.load(file)
    onnx.checker.check_model(made, full_check=True)
    assert {prop.key: prop.value for prop in made.metadata_props} == {"recipe": "{}", "data": "abc"}
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert b".py" not in made.SerializeToString()  # no traces of the machine that made it
    assert "BatchNormalization" not in {node.op_type for node in made.graph.node}
    for batch in (1, 3):
        logits, _ = ran(file, images(batch), tmp_path)
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(images(batch)).numpy(), atol=1e-4)


def test_dynamic_int8_makes_matrices_int8_and_keeps_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    model = network("lenet5")
    export(model, (images(2),), file, {"data": "abc"})
    dynamic_int8(file)
    made = onnx.load(file)
    assert {prop.key: prop.value for prop in made.metadata_props} == {"data": "abc"}
    matrices = [i for i in made.graph.initializer if sorted(i.dims) in ([500, 800], [10, 500])]
    assert {i.data_type for i in matrices} == {onnx.TensorProto.INT8}
    logits, _ = ran(file, images(300), tmp_path)
    with torch.no_grad():
        exact = model(images(300)).numpy()
    assert np.abs(logits - exact).max() <= 0.05 * exact.std() * 4
