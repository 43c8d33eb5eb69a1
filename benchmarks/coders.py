"""The same weights, every coder side by side: `python -m benchmarks.coders [FILE.onnx ...]`.

Bytes, times smaller than the weights as float32, milliseconds to pack and to unpack on one core. Without files: two
sparse networks on a grid with random weights, of the shapes and densities of small LeNets. What a line measures:

  zstd, brotli, xz     the file as it is, at the slowest setting
  openzl               the file as one array of bytes; skeleton, values and gaps apart, each with its best of four
  constriction         an adaptive model of row, column and neighbours, range-coded; the skeleton with brotli
  pare                 packing.pack

OpenZL (`pip install openzl`, 0.3.0 when this was written) is left out where it is not installed: its wheel holds no
licence text, so it is no dependency.
"""

from __future__ import annotations

import itertools
import lzma
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import brotli
import numpy as np
import onnx
import zstandard

from packing import onnx_tree, storage
from packing.decode import SPARSE, unpack
from packing.onnx_tree import Payload
from packing.pack import pack

REPEATS = 3
Code = Callable[[bytes], bytes]
Row = tuple[str, int, float, float]  # coder, bytes, seconds to pack, to unpack (NaN: not measured)


def planted(widths: tuple[int, ...], kept: int, kernel: int = 0, seed: int = 0) -> bytes:
    """A chain of fully connected layers, or with `kernel` two convolutions first; `kept` weights, -3 to 3 steps.

    Rows and columns have densities of their own, as after training with the group exponent.
    """
    rng = np.random.default_rng(seed)
    shapes: list[tuple[int, ...]] = [(o, i) for i, o in itertools.pairwise(widths)]
    if kernel:
        shapes = [(8, 1, kernel, kernel), (16, 8, kernel, kernel), (widths[1], 256), (widths[2], widths[1])]
    chances = []
    for shape in shapes:
        rate = np.outer(rng.gamma(0.7, 1, shape[0]), rng.gamma(0.7, 1, math.prod(shape[1:]))).reshape(shape)
        chances.append(rate * (5 if len(shape) == 4 else 1) / rng.random(shape))
    least = np.sort(np.concatenate([chance.ravel() for chance in chances]))[-kept]
    stored, nodes, now = list[onnx.TensorProto](), list[onnx.NodeProto](), "input"
    for place, shape in enumerate(shapes):
        values = rng.choice([-3, -2, -1, 1, 2, 3], shape) * np.float32(np.float16(0.1 + 0.03 * place))
        stored.append(
            onnx.numpy_helper.from_array(np.where(chances[place] >= least, values, 0).astype(np.float32), f"w{place}")
        )
        bias = (rng.integers(-15, 16, shape[0]) * np.float32(0.0625)).astype(np.float32)
        stored.append(onnx.numpy_helper.from_array(bias, f"b{place}"))
        if len(shape) == 2 and (place == 0 or len(shapes[place - 1]) == 4):
            nodes.append(onnx.helper.make_node("Flatten", [now], [f"f{place}"]))
            now = f"f{place}"
        out = "logits" if place == len(shapes) - 1 else f"y{place}"
        inputs = [now, f"w{place}", f"b{place}"]
        nodes.append(
            onnx.helper.make_node("Conv", inputs, [out])
            if len(shape) == 4
            else onnx.helper.make_node("Gemm", inputs, [out], transB=1)
        )
        now = out
        if out != "logits":
            nodes.append(onnx.helper.make_node("Relu", [now], [f"r{place}"]))
            now = f"r{place}"
        if len(shape) == 4:
            pool = onnx.helper.make_node("MaxPool", [now], [f"p{place}"], kernel_shape=[2, 2], strides=[2, 2])
            nodes.append(pool)
            now = f"p{place}"
    image = onnx.helper.make_tensor_value_info("input", 1, ["batch", 1, 28, 28])
    logits = onnx.helper.make_tensor_value_info("logits", 1, ["batch", 10])
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [image], [logits], stored))
    data: bytes = model.SerializeToString()
    return data


def timed(name: str, data: bytes, compress: Code, expand: Code | None = None) -> Row:
    """The least time of REPEATS; raises AssertionError when what is expanded is another file."""
    packing, unpacking, made = [], [], b""
    for _ in range(REPEATS):
        start = time.process_time()
        made = compress(data)
        packing.append(time.process_time() - start)
        start = time.process_time()
        assert expand is None or expand(made) == data
        unpacking.append(time.process_time() - start)
    return name, len(made), min(packing), min(unpacking) if expand else math.nan


def xz(data: bytes) -> bytes:
    """LZMA2 without a container's check sums, at the slowest setting."""
    return lzma.compress(data, lzma.FORMAT_RAW, filters=_XZ)


_XZ = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0}]


def streams(data: bytes) -> tuple[bytes, bytes, bytes, list[np.ndarray]]:
    """(skeleton, values, gaps, the integer matrices) of an ONNX file."""
    pieces = onnx_tree.tree(data, quoting=False)
    stored = [storage.uniform(piece, SPARSE) for piece in pieces if isinstance(piece, Payload)]
    made = storage.streams(pieces, stored, flat=False)
    matrices = [one.symbols for one in stored if one.coding.symbols is not None]
    return b"".join(made.skeleton), made.values, made.gaps, matrices


def openzl(data: bytes) -> bytes:
    """One array of bytes, with the shortest of OpenZL's own graphs."""
    import openzl.ext as zl

    made = []
    for name in ("Compress", "Fse", "Huffman", "Zstd"):
        compressor = zl.Compressor()
        compressor.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
        compressor.select_starting_graph(getattr(zl.graphs, name)()(compressor))
        context = zl.CCtx()
        context.ref_compressor(compressor)
        context.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
        made.append(context.compress([zl.Input(zl.Type.Numeric, np.frombuffer(data, np.uint8))]))
    return min(made, key=len)


def constriction_coded(matrices: list[np.ndarray]) -> bytes:
    """Whether a weight is zero, by its row, column and neighbours; its size by how often sizes occurred; its sign."""
    import constriction

    encoder = constriction.stream.queue.RangeEncoder()
    bernoulli, uniform = constriction.stream.model.Bernoulli, constriction.stream.model.Uniform(2)
    near = np.full((8, 2), 0.4)
    for matrix in matrices:
        rows, columns, sizes = np.zeros(matrix.shape[0]), np.zeros(matrix.shape[1]), np.full(128, 0.05)
        seen = kept = 0.5
        for (r, c), value in np.ndenumerate(matrix):
            around = (
                bool(c and matrix[r, c - 1]) + 2 * bool(r and matrix[r - 1, c]) + 4 * bool(c > 1 and matrix[r, c - 2])
            )
            rate = kept / seen
            odds = [
                (rows[r] + 2 * rate) / (c + 2),
                (columns[c] + 2 * rate) / (r + 2),
                near[around, 1] / near[around].sum(),
            ]
            total = sum(math.log(max(p, 1e-4) / max(1 - p, 1e-4)) for p in odds[:2]) - math.log(
                rate / max(1 - rate, 1e-4)
            )
            total = 0.7 * total + 0.3 * math.log(odds[2] / max(1 - odds[2], 1e-4))
            present = int(value != 0)
            encoder.encode(
                present, bernoulli(float(np.clip(1 / (1 + math.exp(-total)), 1e-3, 1 - 1e-3)), perfect=False)
            )
            near[around, present] += 1
            seen, kept, rows[r], columns[c] = seen + 1, kept + 0.5 * present, rows[r] + present, columns[c] + present
            if present:
                size = abs(int(value)) - 1
                table = constriction.stream.model.Categorical(sizes / sizes.sum(), perfect=False)
                encoder.encode(size, table)
                encoder.encode(int(value < 0), uniform)
                sizes[size] += 1
    coded: bytes = encoder.get_compressed().tobytes()
    return coded


def rows(data: bytes) -> Iterator[Row]:
    """Every coder on one file."""
    skeleton, values, gaps, matrices = streams(data)
    zstd = zstandard.ZstdCompressor(level=19)
    yield timed("zstd -19", data, zstd.compress, zstandard.ZstdDecompressor().decompress)
    yield timed("brotli -11", data, lambda d: brotli.compress(d, quality=11), brotli.decompress)
    yield timed("xz -9e", data, xz, lambda d: lzma.decompress(d, lzma.FORMAT_RAW, filters=_XZ))
    try:
        yield timed("openzl, the file", data, openzl)
        yield timed("openzl, parts", data, lambda _: b"".join(map(openzl, (skeleton, values, gaps))))
    except ImportError:
        print("openzl is not installed: left out (pip install openzl)", file=sys.stderr)
    try:
        yield timed(
            "constriction", data, lambda _: constriction_coded(matrices) + brotli.compress(skeleton, quality=11)
        )
    except ImportError:
        print("constriction is not installed: left out (pip install constriction)", file=sys.stderr)
    yield timed("pare, brotli", data, pack, unpack)
    yield timed("pare, range", data, lambda d: pack(d, "range"), unpack)


def main() -> None:
    """A Markdown table for each file."""
    files = {path: Path(path).read_bytes() for path in sys.argv[1:]} or {
        "LeNet-5 8-16-64, 1,240 weights": planted((0, 64, 10), 1240, kernel=5),
        "LeNet-300-100, 3,800 weights": planted((784, 300, 100, 10), 3800),
    }
    for name, data in files.items():
        tensors = onnx.load_from_string(data).graph.initializer
        counts = [np.count_nonzero(onnx.numpy_helper.to_array(tensor)) for tensor in tensors]
        print(f"\n{name}: {len(data):,} bytes, {sum(counts):,} nonzeros\n")
        print("| coder | bytes | the file's / these | pack ms | unpack ms |\n| --- | --- | --- | --- | --- |")
        for coder, size, packing, unpacking in rows(data):
            back = "" if math.isnan(unpacking) else f"{1e3 * unpacking:.1f}"
            print(f"| {coder} | {size:,} | {len(data) / size:.1f} | {1e3 * packing:.0f} | {back} |", flush=True)


if __name__ == "__main__":
    main()
