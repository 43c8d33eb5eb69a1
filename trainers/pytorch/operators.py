"""ATen operators by what integer kernels make of them."""

from __future__ import annotations

import operator

import torch
import torchao.quantization.pt2e  # noqa: F401  registers the operators of quantized_decomposed
from torch import fx

ATEN = torch.ops.aten
CONVOLUTIONS = {
    ATEN.conv1d.default,
    ATEN.conv1d.padding,
    ATEN.conv2d.default,
    ATEN.conv2d.padding,
    ATEN.conv3d.default,
    ATEN.conv3d.padding,
}
TRANSPOSED = {ATEN.conv_transpose1d.default, ATEN.conv_transpose2d.input, ATEN.conv_transpose3d.input}
LINEAR = {ATEN.linear.default}
PRODUCTS = {ATEN.matmul.default, ATEN.bmm.default, ATEN.mm.default}
ELEMENTWISE = {ATEN.add.Tensor, ATEN.mul.Tensor}
JOINS = {ATEN.cat.default}
AVERAGING = {
    ATEN.avg_pool1d.default,
    ATEN.avg_pool2d.default,
    ATEN.adaptive_avg_pool1d.default,
    ATEN.adaptive_avg_pool2d.default,
}
# These only select or move values: what goes in on a grid comes out on it.
PASSING = {
    ATEN.max_pool1d.default,
    ATEN.max_pool2d.default,
    ATEN.flatten.using_ints,
    ATEN.view.default,
    ATEN.reshape.default,
    ATEN.permute.default,
    ATEN.transpose.int,
    ATEN.squeeze.default,
    ATEN.squeeze.dim,
    ATEN.squeeze.dims,
    ATEN.unsqueeze.default,
    ATEN.unflatten.int,
    ATEN.contiguous.default,
    ATEN.clone.default,
    ATEN.slice.Tensor,
    ATEN.select.int,
    ATEN.upsample_nearest2d.vec,
    ATEN.upsample_nearest2d.default,
    ATEN.pixel_shuffle.default,
}
# The same with several results, taken by getitem.
DIVIDING = {ATEN.chunk.default, ATEN.split.Tensor, ATEN.split_with_sizes.default, ATEN.unbind.int}
# The kernel before them does these on the way out.
CLIPPING = {ATEN.relu.default, ATEN.hardtanh.default, ATEN.relu6.default}
QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
DEQUANTIZE_CHANNELS = torch.ops.quantized_decomposed.dequantize_per_channel.default
CONVERSIONS = {ATEN.to.dtype, ATEN.to.device, ATEN.to.dtype_layout, ATEN.to.other}
SPELLINGS = {
    ATEN.__and__.Tensor: ATEN.bitwise_and.Tensor,
    ATEN.__or__.Tensor: ATEN.bitwise_or.Tensor,
    ATEN.min.other: ATEN.minimum.default,
    ATEN.max.other: ATEN.maximum.default,
    ATEN.view.default: ATEN.reshape.default,  # of what torch may lay out otherwise once it is decomposed
}
IDENTITIES = {ATEN.dropout.default, ATEN.feature_dropout.default, ATEN.alpha_dropout.default}


def is_float(value: object) -> bool:
    """Whether a node stands for a floating-point tensor."""
    made = value.meta.get("val") if isinstance(value, fx.Node) else None
    return isinstance(made, torch.Tensor) and made.is_floating_point()


def is_constant(value: object) -> bool:
    """Whether a node stands for a parameter or a buffer, or what is computed from them alone."""
    if not isinstance(value, fx.Node) or value.op == "placeholder":
        return False
    return value.op == "get_attr" or (bool(value.all_input_nodes) and all(map(is_constant, value.all_input_nodes)))


def moved_from(node: fx.Node) -> fx.Node | None:
    """The value of which `node` is a moved or selected part; None when it is computed anew."""
    if node.target in PASSING:
        return node.args[0]
    if node.target is operator.getitem and node.args[0].target in DIVIDING:
        return node.args[0].args[0]
    return None
