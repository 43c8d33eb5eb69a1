"""Is anything slower for MNIST than in version 0.1? The same recipes carried out by both, interleaved.

    python -m benchmarks.parity [--minutes 8] [--into FOLDER]

Version 0.1 is commit 4a998d1, the last before the rooms moved, taken out of git and run with this environment's
packages. Each tree trains its own dense LeNet-5 first (untimed; with the same seed), then one process of each carries
out the recipes of RECIPES in turn, one thread, one at a time, which of the two first alternating, until the minutes are
over: training, quantization, export and evaluation; latency is not measured. Printed for every recipe: the median
ratio of wall-clock and of CPU time, now over then, the stage whose median moved most, and whether the files are equal,
and if not, why. The dense training is minutes more (two cores: about two). Written to INTO/parity.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

ROOT = Path(__file__).parent.parent
VERSION_0_1 = "4a998d1"
SOFT = {"kind": "soft", "temperature": 4.0, "alpha": 0.7}
TUNING = {"epochs": 2, "qat_epochs": 1, "learning_rate": 2e-3, "batch_size": 128}


def recipe(granularity: str, sparsity: float, schedule: str, scheme: str, soft: bool = False) -> dict[str, Any]:
    """A recipe as both versions read it."""
    found: dict[str, Any] = {
        "model": "lenet5",
        "trainer": "pytorch",
        "pruning": {"granularity": granularity, "sparsity": sparsity, "schedule": schedule},
        "quantization": {"scheme": scheme},
        "finetuning": TUNING,
        "seed": 0,
    }
    return found | ({"distillation": SOFT} if soft else {})


RECIPES = {
    "dense": recipe("none", 0.0, "gradual", "none"),
    "static int8": recipe("none", 0.0, "gradual", "static_int8"),
    "channels 50 % gradual": recipe("channel", 0.5, "gradual", "none"),
    "channels 65 % one-shot, int8, soft": recipe("channel", 0.65, "one_shot", "static_int8", soft=True),
    "weights 90 %, QAT": recipe("unstructured", 0.9, "gradual", "qat_int8"),
    "weights 95 %, soft": recipe("unstructured", 0.95, "gradual", "none", soft=True),
}

# What runs in each tree: both spell the same things differently.
CHILD = """
import json, os, shutil, sys, time
from pathlib import Path
out = os.fdopen(os.dup(1), "w"); os.dup2(2, 1)
root, folder = Path(sys.argv[1]), Path(sys.argv[2])
from search.run import EXPERIMENTS
try:
    from search.study.compose import composed
    from search.trial import objective
    prepare = objective._train_and_export
except ImportError:
    from search.cli import composed
    from search import objective
    prepare = objective._lay
from trainers.recipe import Recipe
quietly = lambda stage, share: None
config = composed(["study=mnist_prune", f"root={root}", *sys.argv[4:]], EXPERIMENTS)
baseline = prepare(config, config.study.dense_spec("pytorch", "lenet5"), folder / "dense", int(sys.argv[3]), quietly)
import torch
torch.set_num_threads(1)
def answer(found):
    print(json.dumps(found), file=out, flush=True)
answer({"file": str(baseline.artifact.path)})
for line in sys.stdin:
    asked = json.loads(line)
    shutil.rmtree(root / "cache" / "networks", ignore_errors=True)  # else one training would serve all rounds
    wall, cpu = time.perf_counter(), time.process_time()
    recipe, to = Recipe.from_dict(asked["recipe"]), folder / asked["to"]
    built = objective.build(config, recipe, baseline, baseline, to, quietly)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    accuracy = getattr(built, "accuracy", None)
    accuracy = built.metrics["accuracy"] if accuracy is None else accuracy
    answer({"wall": wall, "cpu": cpu, "stages": built.stages, "accuracy": accuracy, "file": str(built.artifact.path)})
"""


class Tree:
    """One checkout at work."""

    def __init__(self, name: str, place: Path, into: Path, threads: int, epochs: int) -> None:
        self.name, self.folder = name, into / name
        self.folder.mkdir(parents=True, exist_ok=True)
        root = self.folder / "root"
        (root / "cache").mkdir(parents=True, exist_ok=True)
        data = ROOT / "mlruns" / "cache" / "data"
        if data.exists() and not (root / "cache" / "data").exists():
            (root / "cache" / "data").symlink_to(data)
        self.log = (self.folder / "log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(root), str(self.folder), str(threads), f"study.dense.epochs={epochs}"],
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(place)},
            text=True,
        )

    def answer(self) -> dict[str, Any]:
        """Its next answer; raises RuntimeError with its last words."""
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"{self.name}: {(self.folder / 'log').read_text()[-2000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, asked: dict[str, Any], to: str) -> dict[str, Any]:
        """Have the tree run a recipe."""
        assert self.process.stdin is not None
        print(json.dumps({"recipe": asked, "to": to}), file=self.process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()
        self.log.close()


def difference(now: Path, then: Path) -> str:
    """How two exported files differ, in words."""
    if hashlib.sha256(now.read_bytes()).digest() == hashlib.sha256(then.read_bytes()).digest():
        return "equal bytes"
    one, other = onnx.load(now), onnx.load(then)
    nodes = [[node.op_type for node in model.graph.node] for model in (one, other)]
    weights = [
        sorted((numpy_helper.to_array(t) for t in model.graph.initializer if np.prod(t.dims) > 10), key=np.size)
        for model in (one, other)
    ]
    words = []
    if nodes[0] != nodes[1]:
        words.append(f"{len(nodes[0])} operators, were {len(nodes[1])}")
    if [w.shape for w in weights[0]] != [w.shape for w in weights[1]]:
        words.append("tensors of other shapes")
    else:
        pairs = list(zip(*weights, strict=True))
        most = max((float(np.abs(a.astype(float) - b.astype(float)).max()) for a, b in pairs), default=0.0)
        words.append(f"weights differ by at most {most:.2g}" if most else "equal weights")
    texts = [{each.key: each.value for each in model.metadata_props} for model in (one, other)]
    if texts[0] != texts[1]:
        keys = sorted({*texts[0], *texts[1]})
        words.append("other notes: " + ", ".join(k for k in keys if texts[0].get(k) != texts[1].get(k)))
    if one.opset_import != other.opset_import or one.ir_version != other.ir_version:
        words.append("another ONNX version")
    return "; ".join(words)


def row(name: str, found: list[dict[str, Any]]) -> str:
    """One recipe: medians of the ratios, and the stage that moved most."""
    ratios = {part: [each["now"][part] / each["then"][part] for each in found] for part in ("wall", "cpu")}
    told = "  ".join(f"{statistics.median(r):5.2f} [{min(r):.2f}, {max(r):.2f}]" for r in ratios.values())
    stages = {stage for each in found for tree in ("now", "then") for stage in each[tree]["stages"]}
    moved = {
        stage: statistics.median(
            each["now"]["stages"].get(stage, 0) - each["then"]["stages"].get(stage, 0) for each in found
        )
        for stage in stages
    }
    most = max(moved, key=lambda stage: abs(moved[stage]))
    last = found[-1]
    accuracies = f"{100 * last['now']['accuracy']:.2f} % ({100 * last['then']['accuracy']:.2f} %)"
    return f"{name:36}{told}  {accuracies}  {most} {moved[most]:+.2f} s  {last['files']}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--into", type=Path)
    parser.add_argument("--dense-epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2, help="of the dense training")
    parser.add_argument("--commit", default=VERSION_0_1, help="what is compared with")
    said = parser.parse_args(argv)
    into = (said.into or Path(tempfile.mkdtemp(prefix="pare-parity-"))).absolute()
    before = into / "tree"
    before.mkdir(parents=True, exist_ok=True)
    archive = subprocess.run(["git", "archive", said.commit], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(before)], input=archive, check=True)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in RECIPES}
    trees = dict[str, Tree]()
    try:
        dense = {}
        for name, place in (("then", before), ("now", ROOT)):  # one after the other: each trains with both cores
            trees[name] = Tree(name, place, into, said.threads, said.dense_epochs)
            dense[name] = trees[name].answer()
        print(f"dense: {difference(Path(dense['now']['file']), Path(dense['then']['file']))}", flush=True)
        for tree in trees.values():
            tree.ask(RECIPES["static int8"], "warm")
        deadline, turn = time.monotonic() + 60 * said.minutes, 0
        while time.monotonic() < deadline or not found["dense"]:
            name = list(RECIPES)[turn % len(RECIPES)]
            order = ("then", "now") if (turn + turn // len(RECIPES)) % 2 else ("now", "then")
            each: dict[str, Any] = {tree: trees[tree].ask(RECIPES[name], f"{turn:04d}") for tree in order}
            each["files"] = difference(*(Path(each[tree]["file"]) for tree in ("now", "then")))
            found[name].append(each)
            turn += 1
    finally:
        for tree in trees.values():
            tree.close()
        (into / "parity.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"now over then, median [least, most]; load average {os.getloadavg()[0]:.1f}; {into}")
    print(f"{'':36}wall-clock           CPU time             accuracy (then)  largest change")
    for name, results in found.items():
        if results:
            print(row(name, results))
    wall = [each["now"]["wall"] / each["then"]["wall"] for results in found.values() for each in results]
    print(f"all: median {statistics.median(wall):.3f} of the wall-clock, {len(wall)} pairs")


if __name__ == "__main__":
    main(sys.argv[1:])
