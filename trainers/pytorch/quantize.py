"""Integer networks by torchao's pt2e flow: capture, prepare, calibrate or train, convert.

Activations are uint8 with one scale per tensor, weights int8 (or 4-bit values in int8) with a symmetric scale
per output channel, so a pruned weight stays exactly zero. Biases stay float: runtimes make them int32 with the
product of the two scales, which is exact enough by construction.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torchao.quantization.pt2e import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    disable_fake_quant,
    enable_fake_quant,
)
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    DerivedQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
)

ATEN = torch.ops.aten
WEIGHTED = (ATEN.conv2d.default, ATEN.linear.default)
AVERAGING = (ATEN.avg_pool2d.default, ATEN.adaptive_avg_pool2d.default)
# These only select or move values, so quantizing after them (fewer values) is the same as before and after.
SELECTING = (ATEN.max_pool2d.default, ATEN.flatten.using_ints, ATEN.view.default, ATEN.reshape.default)
QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
WEIGHT_LIMITS = {4: 7, 8: 127}  # symmetric: the lowest code is left out, so that -w is on the grid where w is


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy of `model`, in eval mode, whose batch norms are folded into the layers before them.

    Folded before capture: converting a graph with batch norm inside takes torchao seconds, folded milliseconds.
    """
    model = copy.deepcopy(model).eval()
    graph = fx.symbolic_trace(model)
    layers = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        norm = layers.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm1d)):
            continue
        before = layers.get(str(node.args[0].target))
        if isinstance(before, nn.Conv2d) and len(node.args[0].users) == 1:
            fused: nn.Module = fuse_conv_bn_eval(before, norm)
        elif isinstance(before, nn.Linear) and len(node.args[0].users) == 1:
            fused = fuse_linear_bn_eval(before, norm)
        else:
            continue
        model.set_submodule(str(node.args[0].target), fused)
        model.set_submodule(str(node.target), nn.Identity())
    return model


def capture(model: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """The program of `model`, which is in eval mode, for any batch size; `example`: float32 [2, ...]."""
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(model, (example,), dynamic_shapes=({0: batch},))


class _Rounded(torch.autograd.Function):
    """Values on the grid `scale * integer`; gradients pass where the value lies inside the range, else are zero.

    torch.fake_quantize_per_tensor_affine computes the same 15 times slower on a CPU (33 ms against 2 ms for the
    first feature map of LeNet-5 at batch 256).
    """

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, scale: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> Any:
        ctx.save_for_backward(values, low, high)
        scale = scale.to(values.dtype)
        return values.clamp(low.to(values.dtype), high.to(values.dtype)).div_(scale).round_().mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        values, low, high = ctx.saved_tensors
        return gradient * ((values >= low) & (values <= high)), None, None, None


class FastFakeQuantize(FakeQuantize):
    """torchao's FakeQuantize, whose observer and conversion it keeps, with faster arithmetic."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """float [...] -> the same shape on the integer grid."""
        if self.observer_enabled[0] == 1:
            self.activation_post_process(values.detach())
            scale, zero_point = self.calculate_qparams()
            self.scale.resize_(scale.shape).copy_(scale)
            self.zero_point.resize_(zero_point.shape).copy_(zero_point)
        if self.fake_quant_enabled[0] == 0:
            return values
        shape = (-1,) + (1,) * (values.dim() - 1) if self.is_per_channel else ()
        scale, zero_point = self.scale.reshape(shape), self.zero_point.reshape(shape)
        low, high = (self.quant_min - zero_point) * scale, (self.quant_max - zero_point) * scale
        rounded: torch.Tensor = _Rounded.apply(values, scale, low, high)
        return rounded


class IntegerQuantizer(Quantizer):
    """Annotates what integer kernels read: inputs, weights and biases of convolutions and fully connected layers.

    The logits stay float: on a grid of 256 values two classes would tie too often.
    """

    def __init__(self, bits: int) -> None:
        limits = {"quant_min": 0, "quant_max": 255}
        made = FastFakeQuantize.with_args(observer=MovingAverageMinMaxObserver, averaging_constant=0.05, **limits)
        self.activation = QuantizationSpec(torch.uint8, made, qscheme=torch.per_tensor_affine, **limits)
        limits = {"quant_min": -WEIGHT_LIMITS[bits], "quant_max": WEIGHT_LIMITS[bits]}
        # averaging_constant=1: the range of the weights as they are now; fused observers lag behind at 4 bits.
        made = FastFakeQuantize.with_args(
            observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0, **limits
        )
        self.weight = QuantizationSpec(torch.int8, made, qscheme=torch.per_channel_symmetric, ch_axis=0, **limits)

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Mark the inputs of every layer with weights and of every averaging one."""
        for node in model.graph.nodes:
            inputs: dict[Any, Any] = {}
            if node.target in WEIGHTED:
                inputs = {node.args[0]: self.activation, node.args[1]: self.weight}
                if len(node.args) > 2 and node.args[2] is not None:
                    inputs[node.args[2]] = _bias_spec(node)
            elif node.target in AVERAGING:
                inputs = {node.args[0]: self.activation}
            if inputs:
                node.meta["quantization_annotation"] = QuantizationAnnotation(inputs, _annotated=True)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to check: an operator without annotation stays float."""


def _bias_spec(node: fx.Node) -> DerivedQuantizationSpec:
    """int32 with the product of the input's and the weight's scales: what integer kernels add to their sums."""

    def derive(observed: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        activation, weight = (one.calculate_qparams()[0] for one in observed)
        return activation * weight, torch.zeros_like(weight, dtype=torch.int32)

    return DerivedQuantizationSpec(
        derived_from=[(node.args[0], node), (node.args[1], node)],
        derive_qparams_fn=derive,
        dtype=torch.int32,
        quant_min=-(2**31),
        quant_max=2**31 - 1,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )


def prepare(model: nn.Module, calibration: torch.Tensor, bits: int = 8) -> fx.GraphModule:
    """`model` with fake quantization in it, its ranges taken from `calibration`, float32 [N, 1, 28, 28].

    The result is the static post-training network as it is; trained further it is the QAT network.
    """
    folded = fold_batch_norm(model)
    prepared = prepare_pt2e(capture(folded, calibration[:2]).module(), IntegerQuantizer(bits))
    prepared.apply(disable_fake_quant)
    with torch.no_grad():
        prepared(calibration)
    prepared.apply(enable_fake_quant)
    freeze(prepared, calibration)
    return prepared


def freeze(prepared: fx.GraphModule, example: torch.Tensor) -> None:
    """Take the weights' ranges as they are now, keep the activations' ranges, and observe no more."""
    _observe(prepared, weights=True, activations=False)
    with torch.no_grad():
        prepared(example[:1])
    _observe(prepared, weights=False, activations=False)


def unfreeze(prepared: fx.GraphModule) -> None:
    """Observe again: weights and activations may move, as in QAT."""
    _observe(prepared, weights=True, activations=True)


def _observe(prepared: fx.GraphModule, *, weights: bool, activations: bool) -> None:
    for module in prepared.modules():
        if isinstance(module, FakeQuantize):
            module.enable_observer(weights if module.is_per_channel else activations)


def convert(prepared: fx.GraphModule) -> fx.GraphModule:
    """The same network with integer weights and explicit quantize and dequantize operators; uses `prepared` up."""
    converted = convert_pt2e(prepared)
    _spread(converted.graph)
    converted.recompile()
    return converted


def _spread(graph: fx.Graph) -> None:
    """Repeat each activation's quantize and dequantize in front of the selecting operators that feed it.

    Runtimes fuse an operator into an integer kernel only between a dequantize and a quantize of its own.
    """
    for node in reversed(list(graph.nodes)):
        source = node.args[0] if node.target is QUANTIZE else None
        if isinstance(source, fx.Node) and source.target in SELECTING and source.args[0].target is not DEQUANTIZE:
            _requantize(graph, source, node.args[1:])


def _requantize(graph: fx.Graph, operator: fx.Node, grid: tuple[Any, ...]) -> None:
    before = operator.args[0]
    with graph.inserting_before(operator):
        integer = graph.call_function(QUANTIZE, (before, *grid))
        value = graph.call_function(DEQUANTIZE, (integer, *grid))
    operator.replace_input_with(before, value)
    if before.target in SELECTING:
        _requantize(graph, before, grid)


def integer_weights(converted: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Name -> int8 weight of every layer of a converted network."""
    tensors = dict(converted.named_buffers()) | dict(converted.named_parameters())
    return {name: tensor for name, tensor in tensors.items() if tensor.dtype is torch.int8 and tensor.dim() > 1}
