"""One file per model: ONNX with quantize/dequantize pairs and a free batch size, or torch's own pt2."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime.quantization as ort_quantization
import torch
from onnxscript import opset20 as op
from torch import nn
from torch.onnx._internal.exporter import _core, _ir_passes, _registration

from trainers.pytorch import quantize

OPSET = 20
GLOBAL_AVERAGE = torch.ops.aten.adaptive_avg_pool2d.default
TRANSLATED = {
    *quantize.WEIGHTED,
    *quantize.SELECTING,
    *quantize.AVERAGING,
    quantize.QUANTIZE,
    quantize.DEQUANTIZE,
    torch.ops.quantized_decomposed.dequantize_per_channel.default,
    torch.ops.aten.relu.default,
}
INPUT, OUTPUT, BATCH = "input", "logits", "batch"


def export(model: nn.Module, example: torch.Tensor, path: Path, about: Mapping[str, str]) -> None:
    """Write `model`, in eval mode, to `path`, whose suffix (.onnx or .pt2) is the format; the bytes are reproducible.

    `example`: float32 [2, ...], one input per row. `about`: what the file says of itself (metadata_props).
    """
    program = quantize.capture(model, example.cpu().contiguous())
    if path.suffix == ".pt2":
        torch.export.save(program, path, extra_files=dict(about))
    else:
        onnx.save(_described(_to_onnx(program), about), path)


def dynamic_int8(path: Path) -> None:
    """Make the weights of the fp32 ONNX file at `path` int8, its activations quantized as they come.

    Fully connected layers only: ONNX Runtime's dynamic convolution is slower than its float one.
    """
    about = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a preprocessing step that this graph has had, on the root logger
    try:
        ort_quantization.quantize_dynamic(
            path,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=ort_quantization.QuantType.QInt8,
            per_channel=True,
        )
    finally:
        root.setLevel(level)
    onnx.save(_described(onnx.load(path), about), path)


def _global_average(maps: Any, size: Any) -> Any:
    """As one operator, which integer kernels know; the exporter's own translation is a mean over two axes."""
    if tuple(size) != (1, 1):
        raise NotImplementedError(f"adaptive_avg_pool2d: only the output size (1, 1) is exported, not {size}")
    return op.GlobalAveragePool(maps)


def _to_onnx(program: torch.export.ExportedProgram) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter, in every export
        if all(n.op != "call_function" or n.target in TRANSLATED for n in program.graph.nodes):
            return translated(program)
        return exported(program)


def exported(program: torch.export.ExportedProgram) -> onnx.ModelProto:
    """By torch's public exporter: any program, 1.2 CPU-seconds."""
    made = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        custom_translation_table={GLOBAL_AVERAGE: _global_average},
    )
    assert made is not None
    return made.model_proto


def translated(program: torch.export.ExportedProgram) -> onnx.ModelProto:
    """By the inner steps of the same exporter, 0.1 CPU-seconds; the same graph for programs of TRANSLATED operators.

    The public function reads its table of translations anew for every model and decomposes every operator first,
    which changes nothing for these. The steps are private to torch, whose version is pinned exactly.
    """
    made = _core._exported_program_to_onnx_program(program, registry=_registry())
    made.optimize()
    _ir_passes.rename_inputs(made.model, [INPUT])
    _ir_passes.rename_outputs(made.model, [OUTPUT])
    return made.model_proto


@functools.cache
def _registry() -> _registration.ONNXRegistry:
    registry = _registration.ONNXRegistry().from_torchlib(opset_version=OPSET)
    registry.register_op(GLOBAL_AVERAGE, _global_average, is_complex=False)
    return registry


def _described(model: onnx.ModelProto, about: Mapping[str, str]) -> onnx.ModelProto:
    """`model` with `about` as its metadata and without traces of how it was made (stack traces, folders)."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    onnx.helper.set_model_props(model, dict(about))
    return model
