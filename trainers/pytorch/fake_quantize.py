"""Rounding to integer grids as training sees it, and the grids: uint8 per tensor, int8 (or 4 bits) per channel."""

from __future__ import annotations

from typing import Any

import torch
from torchao.quantization.pt2e import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import QuantizationSpec

WEIGHT_LIMITS = {4: 7, 8: 127}  # symmetric: the lowest code is left out, so that -w is on the grid where w is
SMALLEST = 2.0**-12  # of a tensor's largest scale: what a channel's scale is at least


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
        shape = [1] * values.dim()
        if self.is_per_channel:
            shape[self.ch_axis] = -1
        scale, zero_point = (
            part.reshape(shape if self.is_per_channel else ()) for part in (self.scale, self.zero_point)
        )
        low, high = (self.quant_min - zero_point) * scale, (self.quant_max - zero_point) * scale
        rounded: torch.Tensor = _Rounded.apply(values, scale, low, high)
        return rounded


class ChannelRange(MovingAveragePerChannelMinMaxObserver):
    """The range of each output channel, with a floor for channels that are zero or nearly so.

    Integer kernels add biases as int32 in steps of activation scale * weight scale: with a scale near zero a bias does
    not fit, and the channel's output is wrong.
    """

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales and zero points, one per channel."""
        scale, zero_point = super().calculate_qparams()
        return scale.clamp(min=float(scale.max()) * SMALLEST), zero_point


def activation_grid() -> QuantizationSpec:
    """uint8, one scale and zero point per tensor; ranges follow a moving average."""
    limits = {"quant_min": 0, "quant_max": 255}
    made = FastFakeQuantize.with_args(observer=MovingAverageMinMaxObserver, averaging_constant=0.05, **limits)
    return QuantizationSpec(torch.uint8, made, qscheme=torch.per_tensor_affine, **limits)


def weight_grid(bits: int, axis: int = 0) -> QuantizationSpec:
    """int8 (of 4 bits: -7..7), symmetric, one scale per output channel, which lies along `axis`."""
    limits = {"quant_min": -WEIGHT_LIMITS[bits], "quant_max": WEIGHT_LIMITS[bits]}
    # averaging_constant=1: the range of the weights as they are now; fused observers lag behind at 4 bits.
    made = FastFakeQuantize.with_args(observer=ChannelRange, averaging_constant=1.0, **limits)
    return QuantizationSpec(torch.int8, made, qscheme=torch.per_channel_symmetric, ch_axis=axis, **limits)
