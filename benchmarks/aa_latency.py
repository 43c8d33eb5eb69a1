"""Does the latency ratio's 95 % interval keep its word? Two experiments on a LeNet-5 with random weights.

    python -m benchmarks.aa_latency [--runs 100] [--quiet]

A/A measures the file against a copy of itself: the true ratio is 1, so about 95 of 100 intervals must hold 1.
A/B measures a narrower network against it again and again: two runs of equal size should lie in each other's
interval 83 % of the time. Unless --quiet, a second process multiplies matrices on the other core meanwhile.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtimes.base import Artifact
from runtimes.latency import Comparison, LatencySpec, measure

LOAD = """
import numpy
a = numpy.random.default_rng(0).random((512, 512), dtype="float32")
while True:
    a @ a
"""


def lenet(path: Path, channels: tuple[int, int] = (20, 50), hidden: int = 500) -> Artifact:
    """A LeNet-5 with random weights (Caffe's widths by default), input float32 [batch, 1, 28, 28]."""
    rng, (first, second) = np.random.default_rng(0), channels
    shapes = {
        "w1": (first, 1, 5, 5),
        "b1": (first,),
        "w2": (second, first, 5, 5),
        "b2": (second,),
        "w3": (second * 16, hidden),
        "b3": (hidden,),
        "w4": (hidden, 10),
        "b4": (10,),
    }
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["images", "w1", "b1"], ["conv1"]),
        helper.make_node("MaxPool", ["conv1"], ["pool1"], **pool),
        helper.make_node("Conv", ["pool1", "w2", "b2"], ["conv2"]),
        helper.make_node("MaxPool", ["conv2"], ["pool2"], **pool),
        helper.make_node("Flatten", ["pool2"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["fc1"]),
        helper.make_node("Relu", ["fc1"], ["relu"]),
        helper.make_node("Gemm", ["relu", "w4", "b4"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "lenet5",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [
            numpy_helper.from_array(rng.normal(0, 0.05, shape).astype(np.float32), name)
            for name, shape in shapes.items()
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return Artifact.of(path)


@contextmanager
def loaded_core() -> Iterator[None]:
    """A second process that keeps one core busy."""
    worker = subprocess.Popen([sys.executable, "-c", LOAD], env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})
    try:
        yield
    finally:
        worker.kill()
        worker.wait()


def repeat(name: str, candidate: Artifact, baseline: Artifact, runs: int) -> list[Comparison]:
    """Measure `runs` times and print one line for each."""
    made = []
    for run in range(runs):
        found = measure("onnxruntime", candidate, baseline, LatencySpec(seed=run)).comparisons[0]
        made.append(found)
        print(
            f"{name} {run:3d}: {found.ratio:.4f} [{found.ratio_low:.4f}, {found.ratio_high:.4f}] "
            f"{1000 * found.candidate.p50_ms:.1f} / {1000 * found.baseline.p50_ms:.1f} µs, "
            f"{found.undisturbed}/{found.blocks} blocks, {found.seconds:.2f} s, {found.stopped}",
            flush=True,
        )
    return made


def summary(name: str, made: list[Comparison]) -> None:
    """Print half-widths, time taken and how the runs agree."""
    halves = np.array([(each.ratio_high - each.ratio_low) / 2 / each.ratio for each in made])
    ratios = np.array([each.ratio for each in made])
    inside = [each.ratio_low <= other <= each.ratio_high for each in made for other in ratios if other != each.ratio]
    overlap = [
        one.ratio_low <= two.ratio_high and two.ratio_low <= one.ratio_high
        for k, one in enumerate(made)
        for two in made[:k]
    ]
    print(
        f"{name}: half-width median {100 * np.median(halves):.2f} %, 95th percentile "
        f"{100 * np.quantile(halves, 0.95):.2f} %; ratios {ratios.min():.4f} to {ratios.max():.4f}, "
        f"spread (sd) {100 * ratios.std(ddof=1) / ratios.mean():.2f} %; other runs' ratios inside the interval "
        f"{100 * np.mean(inside):.0f} %, pairs of intervals that overlap {100 * np.mean(overlap):.0f} %; "
        f"{np.median([each.seconds for each in made]):.2f} s each; stopped at time "
        f"{sum(each.stopped == 'time' for each in made)} of {len(made)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--quiet", action="store_true", help="leave the other core alone")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        baseline = lenet(Path(folder, "baseline.onnx"))
        copy = Artifact.of(Path(shutil.copy(baseline.path, Path(folder, "copy.onnx"))))
        narrow = lenet(Path(folder, "narrow.onnx"), (12, 24), 256)
        if asked.quiet:
            same, other = repeat("A/A", copy, baseline, asked.runs), repeat("A/B", narrow, baseline, asked.runs)
        else:
            with loaded_core():
                same, other = repeat("A/A", copy, baseline, asked.runs), repeat("A/B", narrow, baseline, asked.runs)
    covered = sum(each.ratio_low <= 1 <= each.ratio_high for each in same)
    print(f"\nA/A: the 95 % interval holds 1 in {covered} of {len(same)} runs")
    summary("A/A", same)
    summary("A/B", other)


if __name__ == "__main__":
    main()
