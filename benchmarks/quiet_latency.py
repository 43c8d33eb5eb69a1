"""What training on the same host does to a measured latency, with the quiet lock and without it.

    python -m benchmarks.quiet_latency [--rounds 20] [--workers 2]

In every round a LeNet-5 file is measured three times: with the workers at rest, with the workers training and
pausing for measurements (`quiet.training`), and with the workers training as if there was no lock.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.aa_latency import lenet
from runtimes import quiet
from runtimes.base import Artifact
from runtimes.latency import LatencySpec, measure

MODES = ("resting", "pausing", "unaware")


def train(elsewhere: Path) -> None:
    """A worker: trains a LeNet-5 with one thread in the mode that standard input last named (`pausing 3`)."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        *(torch.nn.Conv2d(1, 20, 5), torch.nn.MaxPool2d(2), torch.nn.Conv2d(20, 50, 5), torch.nn.MaxPool2d(2)),
        *(torch.nn.Flatten(), torch.nn.Linear(800, 500), torch.nn.ReLU(), torch.nn.Linear(500, 10)),
    )
    optimizer = torch.optim.Adam(network.parameters())
    images, labels = torch.randn(128, 1, 28, 28), torch.randint(10, (128,))
    mode = "resting"

    def listen() -> None:
        nonlocal mode
        for line in sys.stdin:
            mode = line.strip()

    threading.Thread(target=listen, daemon=True).start()
    while True:
        doing = mode
        print(doing, flush=True)
        if doing.startswith("resting"):
            while mode == doing:
                time.sleep(0.01)
            continue
        with quiet.training(elsewhere if doing.startswith("unaware") else None) as pause:
            while mode == doing:
                pause()
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(network(images), labels).backward()
                optimizer.step()


def pause_cost() -> float:
    """Microseconds of one `pause` when nobody waits."""
    with quiet.training() as pause:
        began = time.perf_counter()
        for _ in range(100_000):
            pause()
        return (time.perf_counter() - began) * 10


def run(workers: list[subprocess.Popen[str]], baseline: Artifact, narrow: Artifact, rounds: int) -> None:
    """Measure `rounds` times in every mode, in turns, and print the figures."""
    taken: dict[str, list[float]] = {mode: [] for mode in MODES}
    ratios: dict[str, list[float]] = {mode: [] for mode in MODES}
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for turn in range(rounds):
        for mode in np.random.default_rng(turn).permutation(MODES):
            for worker in workers:
                assert worker.stdin
                assert worker.stdout
                worker.stdin.write(f"{mode} {turn}\n")
                worker.stdin.flush()
                while worker.stdout.readline().strip() != f"{mode} {turn}":
                    pass
            time.sleep(0.3)
            result = measure("onnxruntime", narrow, baseline, LatencySpec(seed=turn))
            taken[mode].append(1000 * result.latency_ms)
            ratios[mode].append(result.latency_ratio)
            seconds[mode].append(result.comparisons[0].seconds)
            print(f"{turn:2d} {mode}: {taken[mode][-1]:.1f} µs, ratio {ratios[mode][-1]:.4f}", flush=True)
    for mode in MODES:
        print(
            f"{mode}: median {np.median(taken[mode]):.2f} µs (p10 {np.quantile(taken[mode], 0.1):.2f}, p90 "
            f"{np.quantile(taken[mode], 0.9):.2f}), ratio {np.median(ratios[mode]):.4f}, "
            f"{np.median(seconds[mode]):.2f} s each; the same round's resting figure "
            f"differs by {100 * np.median(np.array(taken[mode]) / taken['resting'] - 1):+.1f} % in the median"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.train:
        train(asked.train)
    print(f"pause() when nobody waits: {pause_cost():.2f} µs")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.quiet_latency", "--train", str(Path(folder, "elsewhere"))]
        workers = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(asked.workers)
        ]
        try:
            baseline = lenet(Path(folder, "baseline.onnx"))
            run(workers, baseline, lenet(Path(folder, "narrow.onnx"), (12, 24), 256), asked.rounds)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


if __name__ == "__main__":
    main()
