"""Smaller numbers for an fp32 ONNX file that is already there: no network, no training, no data."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime.quantization as ort_quantization
from onnx import numpy_helper

from trainers.onnx.graph import described

# Operator -> which of its inputs are weights, and along which axis of each its output channels lie.
WEIGHTED = {
    "Conv": {1: 0},
    "ConvTranspose": {1: 1},
    "MatMul": {1: -1},
    "Gemm": {1: 0},  # with transB, else 1
    "Gather": {0: 0},  # rows of a table
    "LSTM": {1: 1, 2: 1},
    "GRU": {1: 1, 2: 1},
}
SMALLEST = 1024  # weights: what is smaller gains less than its scales take
BLOCK = 32  # weights that share a scale in 4 bits
# What ONNX Runtime can quantize as it comes; LSTM only after its own preparation.
DYNAMIC = ("MatMul", "Gemm", "LSTM")


def dynamic_int8(path: Path) -> None:
    """Make the weights of the fp32 ONNX file at `path` int8, its activations quantized as they come.

    Matrices and LSTM only: ONNX Runtime's dynamic convolution is slower than its float one.
    """
    about = _about(path)
    kinds = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    with quietly(), tempfile.TemporaryDirectory() as folder:
        fused = bool(kinds & {"MatMul", "LSTM"})  # of what there is nothing to prepare in, the names stay
        ready = prepared(path, Path(folder) / "prepared.onnx") if fused else path
        ort_quantization.quantize_dynamic(
            ready,
            path,
            op_types_to_quantize=list(DYNAMIC),
            weight_type=ort_quantization.QuantType.QInt8,
            per_channel=True,
        )
    onnx.save(described(onnx.load(path), about), path)


def prepared(path: Path, target: Path) -> Path:
    """The file as ONNX Runtime prepares it for quantization: shapes, fused operators.

    Its symbolic shapes fail on some graphs with whatever exception, and leave a file of theirs in the current folder:
    then without them, then the file as it is.
    """
    source, target = path.absolute(), target.absolute()
    for skipped in (False, True):
        with (
            contextlib.suppress(Exception),
            tempfile.TemporaryDirectory(dir=target.parent) as left,
            contextlib.chdir(left),
        ):
            ort_quantization.quant_pre_process(str(source), str(target), skip_symbolic_shape=skipped)
            return target
    return path


def weight_only_int8(path: Path) -> None:
    """Store the weights of the fp32 ONNX file at `path` as int8 with a scale per output channel; compute in float.

    A quarter of the bytes, as fast as fp32: what makes floats of them is Cast and Mul, which runtimes carry out once,
    at the start. A DequantizeLinear ONNX Runtime leaves to every call (1.1 to 1.5 times the time).
    """
    model = onnx.load(path)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    done: dict[str, str] = {}
    nodes = []
    for node in model.graph.node:
        for place, axis in weights_of(node):
            tensor = stored.get(node.input[place])
            if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < SMALLEST:
                continue
            if tensor.name not in done:
                done[tensor.name] = f"{tensor.name}/float"
                nodes += _store_int8(model.graph, tensor, axis % len(tensor.dims), done[tensor.name])
            node.input[place] = done[tensor.name]
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    for name in done.keys() - used:
        model.graph.initializer.remove(stored[name])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(described(model, _about(path)), path)


def weights_of(node: onnx.NodeProto) -> list[tuple[int, int]]:
    """Which inputs of the node are weights, and the axes of their output channels."""
    if node.op_type == "Gemm" and not any(each.name == "transB" and each.i for each in node.attribute):
        return [(1, 1)]
    return list(WEIGHTED.get(node.op_type, {}).items())


def _store_int8(graph: onnx.GraphProto, tensor: onnx.TensorProto, axis: int, made: str) -> list[onnx.NodeProto]:
    """Add the tensor as int8 with its scales to the graph; returns the nodes that make floats of it again."""
    array = numpy_helper.to_array(tensor)
    others = tuple(each for each in range(array.ndim) if each != axis)
    scale = np.maximum(np.abs(array).max(axis=others, keepdims=True) / 127.0, np.finfo(np.float32).tiny)
    integers = np.clip(np.round(array / scale), -127, 127).astype(np.int8)
    whole, steps, plain = (f"{tensor.name}/{part}" for part in ("int8", "scale", "cast"))
    graph.initializer.append(numpy_helper.from_array(integers, whole))
    graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), steps))
    return [
        onnx.helper.make_node("Cast", [whole], [plain], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Mul", [plain, steps], [made]),
    ]


def weight_only_int4(path: Path) -> None:
    """Store the matrices of the fp32 ONNX file at `path` in 4 bits, a scale per 32 weights: ONNX Runtime's MatMulNBits.

    Buys size, not latency; of ONNX Runtime alone.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    about, model = _about(path), onnx.load(path)
    _gemm_as_matmul(model.graph)
    with quietly():
        quantizer = MatMulNBitsQuantizer(model, block_size=BLOCK, is_symmetric=True)
        quantizer.process()
    onnx.save(described(quantizer.model.model, about), path)


def _gemm_as_matmul(graph: onnx.GraphProto) -> None:
    """Write every plain Gemm with a stored weight as MatMul and Add, the only form that MatMulNBits is made of."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        options = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        plain = options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0 and not options.get("transA", 0)
        if node.op_type != "Gemm" or not plain or node.input[1] not in stored:
            nodes.append(node)
            continue
        weight, product = node.input[1], f"{node.output[0]}/product" if len(node.input) > 2 else node.output[0]
        if options.get("transB", 0):
            turned = numpy_helper.to_array(stored[weight]).T
            weight = f"{node.input[1]}/turned"
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(turned), weight))
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], weight], [product]))
        if len(node.input) > 2:
            nodes.append(onnx.helper.make_node("Add", [product, node.input[2]], [node.output[0]]))
    used = {name for node in nodes for name in node.input}
    for name, tensor in stored.items():
        if name not in used:
            graph.initializer.remove(tensor)
    del graph.node[:]
    graph.node.extend(nodes)


def float16(path: Path) -> None:
    """Store the weights of the fp32 ONNX file at `path` in float16; compute in float32, which a CPU does as fast.

    Half the bytes; runtimes make float32 of them once, at the start. Arithmetic in float16 is left alone: ONNX Runtime
    1.32 has few such kernels for CPUs, and ends with a segmentation fault on some graphs (experiments/LOG.md).
    """
    model = onnx.load(path)
    casts = []
    for tensor in list(model.graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= SMALLEST:
            array = numpy_helper.to_array(tensor)
            if np.abs(array).max() <= np.finfo(np.float16).max:
                half = f"{tensor.name}/float16"
                model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float16), half))
                model.graph.initializer.remove(tensor)
                casts.append(onnx.helper.make_node("Cast", [half], [tensor.name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(described(model, _about(path)), path)


# Scheme -> what makes it of the exported fp32 file, in place.
FILE_SCHEMES: dict[str, Callable[[Path], None]] = {
    "dynamic_int8": dynamic_int8,
    "weight_only_int8": weight_only_int8,
    "weight_only_int4": weight_only_int4,
    "float16": float16,
}


def _about(path: Path) -> dict[str, str]:
    return {prop.key: prop.value for prop in onnx.load(path, load_external_data=False).metadata_props}


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without ONNX Runtime's advice on the root logger about steps that are taken here."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
