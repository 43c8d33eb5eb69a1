"""A network as ONNX: torch's dynamo exporter by its inner steps, by its public door, TorchScript traced or compiled.

The only file that uses torch.onnx._internal, whose version is pinned exactly; without it `exported` does the same,
some five to ten times slower.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import onnx_ir
import torch
from onnxscript import opset20 as op
from onnxscript import optimizer, version_converter
from torch import nn
from torch.onnx._internal.exporter import _core, _ir_passes, _registration

from tasks.base import Port
from trainers.pytorch.capture import Example

OPSET = 20
ATEN = torch.ops.aten


def _global_average(maps: Any, size: Any) -> Any:
    """As one operator, which integer kernels know; the exporter's own translation is a mean over two axes."""
    if set(size) != {1}:
        raise NotImplementedError(f"adaptive_avg_pool: only the output size 1 is exported, not {size}")
    return op.GlobalAveragePool(maps)


def _batch_norm(
    maps: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float, _: bool
) -> Any:
    """As one operator, which the optimizer folds into the convolution before it."""
    if training or weight is None or bias is None:
        raise NotImplementedError("batch_norm: only that of evaluation, with weight and bias, is exported")
    return op.BatchNormalization(maps, weight, bias, mean, variance, epsilon=eps, momentum=1.0 - momentum)


def _conv_transpose(
    maps: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Any:
    axes = len(weight.shape) - 2
    given = (stride, padding, output_padding, dilation)
    strides, pads, extra, dilations = (list(each) if len(each) == axes else list(each) * axes for each in given)
    return op.ConvTranspose(
        maps,
        weight,
        bias,
        strides=strides,
        pads=[*pads, *pads],
        output_padding=extra,
        group=groups,
        dilations=dilations,
    )


GLOBAL_AVERAGES = {
    ATEN.adaptive_avg_pool1d.default: _global_average,
    ATEN.adaptive_avg_pool2d.default: _global_average,
    ATEN.adaptive_avg_pool3d.default: _global_average,
}
# Operators that the public exporter decomposes before it translates them.
UNDECOMPOSED = {
    ATEN.batch_norm.default: _batch_norm,
    ATEN.conv_transpose1d.default: _conv_transpose,
    ATEN.conv_transpose2d.input: _conv_transpose,
    ATEN.conv_transpose3d.input: _conv_transpose,
}


def to_onnx(
    program: torch.export.ExportedProgram, inputs: Sequence[Port], outputs: Sequence[Port]
) -> tuple[onnx.ModelProto, str]:
    """The program as an optimized ONNX model, and the way it was made: `dynamo-inner` or `dynamo`.

    Raises what the public exporter raises where that fails too.
    """
    with _quietly():
        try:
            return translated(program, inputs, outputs), "dynamo-inner"
        except Exception:  # an operator that must be decomposed first, or torch's inner steps are no longer these
            return exported(program, inputs, outputs), "dynamo"


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without deprecations inside the exporter and notes of its optimizer, which come with every export."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def exported(program: torch.export.ExportedProgram, inputs: Sequence[Port], outputs: Sequence[Port]) -> onnx.ModelProto:
    """By torch's public exporter: any program; 1.2 CPU-seconds for a LeNet."""
    made = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=[port.name for port in inputs],
        output_names=[port.name for port in outputs],
        custom_translation_table=GLOBAL_AVERAGES,
    )
    assert made is not None
    return made.model_proto


def translated(
    program: torch.export.ExportedProgram, inputs: Sequence[Port], outputs: Sequence[Port]
) -> onnx.ModelProto:
    """By the inner steps of the same exporter: 0.1 CPU-seconds for a LeNet, and the same graph.

    The public function reads its table of translations anew for every model and decomposes every operator first. Raises
    for a program with an operator that has no translation undecomposed.
    """
    made = _core._exported_program_to_onnx_program(program, registry=_registry())
    version_converter.convert_version(made.model, OPSET, fallback=False)
    made.optimize()
    _ir_passes.rename_inputs(made.model, [port.name for port in inputs])
    _ir_passes.rename_outputs(made.model, [port.name for port in outputs])
    return made.model_proto


@functools.cache
def _registry() -> _registration.ONNXRegistry:
    registry = _registration.ONNXRegistry().from_torchlib(opset_version=OPSET)
    for target, translation in (GLOBAL_AVERAGES | UNDECOMPOSED).items():
        registry.register_op(target, translation, is_complex=False)
    return registry


def traced(model: nn.Module, example: Example, inputs: Sequence[Port], outputs: Sequence[Port]) -> onnx.ModelProto:
    """By the TorchScript exporter, which records the operators of one run: for what torch.export does not know."""
    return _by_torchscript(model, example, inputs, outputs)


def scripted(model: nn.Module, example: Example, inputs: Sequence[Port], outputs: Sequence[Port]) -> onnx.ModelProto:
    """By TorchScript's compiler, which reads the network's code: decisions by the data become If, loops become Loop."""
    with _quietly():
        compiled = torch.jit.script(model)
    return _by_torchscript(compiled, example, inputs, outputs)


def _by_torchscript(model: Any, example: Example, inputs: Sequence[Port], outputs: Sequence[Port]) -> onnx.ModelProto:
    buffer = io.BytesIO()
    named = [*inputs, *outputs]
    with _quietly():
        torch.onnx.export(
            model,
            example,
            buffer,
            dynamo=False,
            opset_version=OPSET,
            input_names=[port.name for port in inputs],
            output_names=[port.name for port in outputs],
            dynamic_axes={
                port.name: {axis: size for axis, size in enumerate(port.shape) if isinstance(size, str)}
                for port in named
            },
        )
    made = onnx_ir.serde.deserialize_model(onnx.load_from_string(buffer.getvalue()))
    optimizer.optimize_ir(made)
    return onnx_ir.serde.serialize_model(made)
