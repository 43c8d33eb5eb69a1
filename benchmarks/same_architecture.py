"""Do files of one architecture take equal time, whatever their weights? What "cost first" assumes, measured.

    python -m benchmarks.same_architecture RUN_FOLDER [--weights 6] [--runtime onnxruntime]

Takes the exported files of a sweep (`mlruns/trials/NAME-001`), one of each architecture, gives each other weights
(drawn again, and nine tenths of them zero), and measures all of them against the sweep's baseline, each in a process of
its own. Prints the standard deviation of the ratio within an architecture, in per cent, beside half the width that a
single measurement's interval has.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from runtimes.architecture import architecture_of
from runtimes.base import Artifact
from runtimes.latency import LatencySpec, measure
from runtimes.pooling import half_width


def main() -> None:
    """One line per architecture, then all together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=int, default=6)
    parser.add_argument("--most", type=int, default=6, help="architectures")
    parser.add_argument("--runtime", default="onnxruntime")
    asked = parser.parse_args()
    baseline = next(asked.folder.glob("baseline-*/model.onnx"))
    files: dict[str, Path] = {}
    for file in sorted(asked.folder.glob("0*/model.onnx")):
        files.setdefault(architecture_of(Artifact.of(file), asked.runtime), file)
    spreads, widths = [], []
    for architecture, file in list(files.items())[: asked.most]:
        ratios, halves = timed(file, baseline, asked.runtime, asked.weights)
        spread = float(np.std(np.log(ratios), ddof=1))
        spreads.append(spread)
        widths += halves
        print(
            f"{architecture}  {file.parent.name}  ratio {np.mean(ratios):.4f}  spread {100 * spread:.2f} %  "
            f"nine tenths zero {100 * (ratios[-1] / np.mean(ratios[:-1]) - 1):+.2f} %  "
            f"interval ± {100 * np.median(halves):.2f} %",
            flush=True,
        )
    together = math.sqrt(np.mean(np.square(spreads)))
    print(f"{len(spreads)} architectures: spread {100 * together:.2f} %, intervals ± {100 * np.median(widths):.2f} %")


def timed(file: Path, baseline: Path, runtime: str, weights: int) -> tuple[list[float], list[float]]:
    """Ratios and half-widths of the file with other weights, the last with nine tenths of them zero."""
    ratios, halves = [], []
    architecture = architecture_of(Artifact.of(file), runtime)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(weights):
            changed = Path(folder) / f"{seed}.onnx"
            onnx.save(reweighted(onnx.load(file), seed, seed == weights - 1), changed)
            assert architecture_of(Artifact.of(changed), runtime) == architecture
            found = measure(runtime, Artifact.of(changed), Artifact.of(baseline), LatencySpec(max_seconds=3.0))
            ratios.append(found.latency_ratio)
            halves.append(half_width(found.comparisons[0]))
    return ratios, halves


def reweighted(model: onnx.ModelProto, seed: int, sparse: bool) -> onnx.ModelProto:
    """The model with every tensor of weights shuffled and negated at random; `sparse`: nine tenths of them zero."""
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim < 2 or array.dtype not in (np.float32, np.int8):
            continue
        mixed = rng.permutation(array.ravel()).reshape(array.shape)
        if sparse:
            mixed = mixed * (rng.random(array.shape) < 0.1)
        tensor.CopyFrom(numpy_helper.from_array(mixed.astype(array.dtype), tensor.name))
    return model


if __name__ == "__main__":
    main()
