"""Integer networks by torchao's pt2e flow: capture, prepare, calibrate or train, convert.

Activations are uint8 with one scale per tensor, weights int8 (or 4-bit values in int8) with a symmetric scale per
output channel, so a pruned weight stays exactly zero. Batch norm is folded in the captured graph.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

import torch
from torch import fx, nn
from torchao.quantization.pt2e import FakeQuantize, disable_fake_quant, enable_fake_quant
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from tasks.base import Port
from trainers.base import TrainingError
from trainers.pytorch.capture import Example, capture, outputs_of
from trainers.pytorch.export import FLOAT_ERROR, relative_error
from trainers.pytorch.lowering import simplify, spread
from trainers.pytorch.quantizer import IntegerQuantizer

MOVING = 0.05  # of each new batch, once training goes on


def prepare(
    model: nn.Module,
    calibration: Sequence[Example],
    bits: int = 8,
    inputs: Sequence[Port] = (),
    keep_float: Collection[str] = (),
) -> fx.GraphModule:
    """`model` with fake quantization in it, its ranges the averages over the batches of `calibration`.

    The result is the static post-training network as it is; trained further it is the QAT network. Its parameters have
    the names that they have in `model`, which is left as it is. `keep_float`: names of modules that stay float. Raises
    CaptureError for a network that cannot be captured, TrainingError when the captured one computes something else.
    """
    example = tuple(each[:2] for each in calibration[0])
    captured = simplify(capture(copy.deepcopy(model).eval(), example, inputs).module(check_guards=False))
    prepared = prepare_pt2e(captured, IntegerQuantizer(bits, keep_float))
    prepared.apply(disable_fake_quant)
    with torch.no_grad():
        for count, batch in enumerate(calibration, start=1):
            for grid in _activations(prepared):
                grid.activation_post_process.averaging_constant = 1.0 / count
            answers = prepared(*batch)
        _check_equal(model, batch, answers)
    for grid in _activations(prepared):
        grid.activation_post_process.averaging_constant = MOVING
    prepared.apply(enable_fake_quant)
    freeze(prepared, example)
    return prepared


def _check_equal(model: nn.Module, batch: Example, answers: object) -> None:
    """Raise TrainingError when the captured network, still float, does not say what `model` says."""
    was_training = model.training
    wanted = outputs_of(model.eval()(*batch))
    model.train(was_training)
    for one, other in zip(outputs_of(answers), wanted, strict=True):
        error = relative_error(one.cpu().numpy(), other.cpu().numpy())
        if error > FLOAT_ERROR:
            raise TrainingError(
                f"quantization: the captured network differs from the model (relative error {error:.2g})"
            )


def freeze(prepared: fx.GraphModule, example: Example) -> None:
    """Take the weights' ranges as they are now, keep the activations' ranges, and observe no more."""
    _observe(prepared, weights=True, activations=False)
    with torch.no_grad():
        prepared(*(each[:1] for each in example))
    _observe(prepared, weights=False, activations=False)


def unfreeze(prepared: fx.GraphModule) -> None:
    """Observe again: weights and activations may move, as in QAT."""
    _observe(prepared, weights=True, activations=True)


def _activations(prepared: fx.GraphModule) -> list[FakeQuantize]:
    return [each for each in prepared.modules() if isinstance(each, FakeQuantize) and not each.is_per_channel]


def _observe(prepared: fx.GraphModule, *, weights: bool, activations: bool) -> None:
    for module in prepared.modules():
        if isinstance(module, FakeQuantize):
            module.enable_observer(weights if module.is_per_channel else activations)


def convert(prepared: fx.GraphModule) -> fx.GraphModule:
    """The same network with integer weights and explicit quantize and dequantize operators; uses `prepared` up."""
    converted = convert_pt2e(prepared)
    spread(converted)
    return converted


def stored_weights(converted: fx.GraphModule, names: Collection[str]) -> dict[str, torch.Tensor]:
    """The weights in a converted network: the integer ones, and of those named the ones that stayed float."""
    used = {str(node.target) for node in converted.graph.nodes if node.op == "get_attr"}
    floats = {name: value for name, value in converted.named_parameters() if name in used and name in names}
    return integer_weights(converted) | floats


def integer_weights(converted: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Name -> int8 weight of every layer of a converted network."""
    tensors = dict(converted.named_buffers()) | dict(converted.named_parameters())
    return {name: tensor for name, tensor in tensors.items() if tensor.dtype is torch.int8 and tensor.dim() > 1}
