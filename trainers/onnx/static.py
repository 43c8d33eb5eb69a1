"""Integer operators for an fp32 ONNX file by ONNX Runtime's own quantizer, calibrated once."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx
import onnxruntime.quantization as ort_quantization

from tasks.base import Arrays
from trainers.base import TrainingError
from trainers.onnx import run
from trainers.onnx.weights import prepared, quietly

# With a scale per output channel; what stands in no line here stays float: it has no integer kernel, or costs accuracy
# (all operators of a BERT: 2.6 points).
WEIGHTED = ("Conv", "MatMul", "Gemm")
BESIDE = ("Add", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "Relu", "Clip", "Reshape", "Transpose")
# What of a file is integer, from most to least; the first that is accurate and fast enough is taken.
SETS: Mapping[str, tuple[str, ...]] = {
    "layers and what joins them": (*WEIGHTED, *BESIDE),
    "layers alone": WEIGHTED,
    "matrices alone": ("MatMul", "Gemm"),
}


class Reader(ort_quantization.CalibrationDataReader):
    """Batches of inputs, as ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: Sequence[Arrays]) -> None:
        self._left = iter(batches)

    def get_next(self) -> Any:
        """The next batch by name; None after the last."""
        return next(self._left, None)


class StaticInt8:
    """The integer versions of one float file. `samples`: what it is calibrated on. To be used in a `with`.

    `keep`: names of nodes that stay float.
    """

    def __init__(self, file: Path, samples: Sequence[Arrays], keep: Collection[str] = ()) -> None:
        self.samples, self.keep = samples, tuple(keep)
        self._place = tempfile.TemporaryDirectory()
        self._folder = Path(self._place.name)
        with quietly():
            self.file = prepared(file, self._folder / "prepared.onnx")
        self.graph = onnx.load(self.file).graph
        self.exact = run.outputs(self.file.read_bytes(), samples)

    def __enter__(self) -> StaticInt8:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: object, trace: TracebackType | None) -> None:
        self._place.cleanup()

    def layers(self, types: Collection[str] = WEIGHTED) -> list[str]:
        """Names of the nodes of these types that may be integer, in order."""
        return [node.name for node in self.graph.node if node.op_type in types and node.name not in self.keep]

    def made(self, kind: str, keep_float: Collection[str] = ()) -> onnx.ModelProto:
        """The file with the integer operators of SETS[kind] but those named. TrainingError where the library fails."""
        types, target = SETS[kind], self._folder / "made.onnx"
        ranges = self._folder / f"{len(types)}.json"
        # Ours are unsigned 8-bit activations with signed weights: what VNNI kernels take.
        try:
            with quietly():
                ort_quantization.quantize_static(
                    self.file,
                    target,
                    Reader(self.samples),
                    op_types_to_quantize=list(types),
                    per_channel=True,
                    activation_type=ort_quantization.QuantType.QUInt8,
                    weight_type=ort_quantization.QuantType.QInt8,
                    nodes_to_exclude=[*self.keep, *keep_float],
                    calibration_cache_path=ranges,
                    extra_options={"MatMulConstBOnly": False},
                )
        except Exception as problem:  # the library raises whatever happens inside
            raise TrainingError(f"static_int8: onnxruntime.quantization fails: {run.reason(problem)}") from None
        return onnx.load(target)

    def error(self, model: onnx.ModelProto) -> float:
        """Relative error of the model's outputs on the calibration samples against the float file's."""
        return run.relative_error(run.outputs(model, self.samples), self.exact)

    def candidates(self) -> Iterator[tuple[str, onnx.ModelProto]]:
        """Every set that makes another choice than the one before, with its file; what the library cannot is left."""
        failed: TrainingError | None = None
        before: list[str] | None = None
        for kind, types in SETS.items():
            found = self.layers(types)
            if not found or found == before:
                continue
            try:
                yield kind, self.made(kind)
                before = found
            except TrainingError as problem:
                failed = problem
        if before is None:
            raise failed or TrainingError("static_int8: the file has no convolution or matrix product to quantize")
