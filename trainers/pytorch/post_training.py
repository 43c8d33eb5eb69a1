"""Integer weights for an fp32 ONNX file that is already there: no network, no training."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
import onnxruntime.quantization as ort_quantization

from trainers.pytorch.onnx_graph import described


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
    onnx.save(described(onnx.load(path), about), path)
