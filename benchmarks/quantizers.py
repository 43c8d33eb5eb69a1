"""int8 by Pare beside ONNX Runtime's, NNCF's and OpenVINO's own quantizers, on trained networks.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.quantizers [NAME ...] [--minutes 4] [--seconds 6] [--pruned]

NAME: resnet18, mobilenet_v2, vit_tiny, bert_tiny (benchmarks/trained.py); all of them without. Each is trained for
about `--minutes` of CPU time once (kept below ROOT/cache/quantizers; cut off, it goes on) and quantized by every
quantizer from the same float file and calibration samples. All files of a network are then measured beside the float
one in one interleaved run for each runtime: batch 1, one thread, `--seconds` a file. Accuracy is the file's on the
validation split. `--pruned`: ResNet-18 with half of its channels and int8 too, against torch in eager mode.

A table per network is printed; all figures go to ROOT/quantizers.json, network after network. Needs
.venv/bin/pip install -e '.[openvino,text,vision]' nncf -c constraints.txt. Accuracy can be taken on a busy machine,
latency cannot.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quantized import RUNTIMES, TITLES, Bench, Made
from benchmarks.trained import NETWORKS, told
from runtimes import cpu
from runtimes.base import Artifact
from runtimes.base import load as load_runtime
from runtimes.latency import LatencySpec, measure_many
from search.trial.evaluate import save_examples
from tasks.base import Task
from trainers.base import Dense

EAGER = "torch eager fp32"


def measure(all_made: Sequence[Made], examples: Path, seconds: float) -> None:
    """Add the latencies: all files of a runtime interleaved in one run, the float one as the baseline."""
    for runtime in RUNTIMES:
        fp32, *others = [each for each in all_made if each.runtime == runtime]
        told(f"measuring {len(others)} files on {TITLES[runtime]}", 0.0)
        spec = LatencySpec(max_seconds=seconds)
        files = [Artifact.of(each.file) for each in others]
        found = measure_many(runtime, files, Artifact.of(fp32.file), spec, examples)
        for each, result in zip(others, found, strict=True):
            first = result.comparisons[0]
            each.figures |= {
                "ratio": first.ratio,
                "ratio_low": first.ratio_low,
                "ratio_high": first.ratio_high,
                "ms": first.candidate.p50_ms,
                "noisy": first.noisy or "",
            }
            fp32.figures |= {"ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0, "ms": first.baseline.p50_ms}


def against_eager(bench: Bench, seconds: float, epochs: float) -> list[dict[str, Any]]:
    """torch in eager mode beside the files of ResNet-18, dense and with half the channels: ms by CPU time, in turns."""
    import torch

    made = [
        *(bench.stored(Made("fp32", runtime, bench.float)) for runtime in RUNTIMES),
        *(
            bench.stored(bench.pruned(runtime, epochs, scheme))
            for scheme in ("none", "static_int8")
            for runtime in RUNTIMES
        ),
    ]
    given = dict(bench.samples[0])
    network = eager(bench.task, bench.dense)
    tensors = [torch.from_numpy(given[port.name]) for port in bench.task.info().inputs]
    torch.set_num_threads(1)

    def called() -> None:
        with torch.inference_mode():
            network(*tensors)

    calls = {("", EAGER): called}
    for each in made:
        bench.judge(each, {})
        session = load_runtime(each.runtime).load(Artifact.of(each.file), 1)
        calls[each.runtime, each.quantizer] = session.bind(given)
    taken = in_turns(calls, seconds)
    known = {(each.runtime, each.quantizer): each for each in made}
    return [
        {
            "what": what,
            "runtime": runtime,
            "ms": 1000 * one,
            "times_faster_than_eager": taken["", EAGER] / one,
            "times_faster_than_onnxruntime": taken["onnxruntime", "fp32"] / one,
            "accuracy": known[runtime, what].figures["accuracy"] if runtime else float("nan"),
            "notes": list(known[runtime, what].notes) if runtime else [],
        }
        for (runtime, what), one in taken.items()
    ]


def eager(task: Task, dense: Dense) -> Any:
    """The dense network in torch, in eval mode."""
    from trainers.pytorch import models
    from trainers.pytorch.trainer import WEIGHTS

    return models.load(task.program("pytorch").build(dense.spec.model), dense.folder / WEIGHTS).eval()


def in_turns(calls: Mapping[Any, Callable[[], object]], seconds: float, burst: int = 10) -> dict[Any, float]:
    """Seconds of CPU time of each call: the median of short bursts in turns."""
    found: dict[Any, list[float]] = {key: [] for key in calls}
    until = time.monotonic() + seconds * len(calls)
    while time.monotonic() < until or len(next(iter(found.values()))) < 5:
        for key, call in calls.items():
            call()
            start = time.process_time()
            for _ in range(burst):
                call()
            found[key].append((time.process_time() - start) / burst)
    return {key: float(np.median(each)) for key, each in found.items()}


def table(made: Sequence[Made], metric: str) -> list[str]:
    """One line per runtime and quantizer."""
    lines = [
        f"| runtime | quantizer | {metric} | agrees: fp32 | its own network | time / fp32 | ms | bytes | notes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in sorted(made, key=lambda one: list(TITLES).index(one.runtime) if one.runtime else 9):
        figures = each.figures
        if not each.runtime:
            lines.append(f"| - | {each.quantizer} | | | | | | | {'; '.join(each.notes)} |")
            continue
        own = f"{100 * each.own:.2f} %" if each.own is not None else ""
        ratio = f"{figures['ratio']:.3f} [{figures['ratio_low']:.3f}, {figures['ratio_high']:.3f}]"
        lines.append(
            f"| {TITLES[each.runtime]} | {each.quantizer} | {figures[metric]:.4f} | "
            f"{100 * figures['agrees_with_fp32']:.2f} % | {own} | {ratio} | {figures['ms']:.3f} | "
            f"{figures['size_bytes']:,} | {'; '.join(note for note in each.notes if not note.startswith('training'))} |"
        )
    return lines


def compared(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Print the network's table; returns its figures."""
    root = Path(asked.root)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(name, root / "cache", asked.minutes, Path(folder))
        made, exact = list[Made](), dict[str, np.ndarray]()
        for each in bench.all():
            outputs = bench.judge(each, exact)
            exact = exact or dict(outputs)
            made.append(each)
        measure(
            [each for each in made if each.runtime], save_examples(bench.task, Path(folder, "in.npz")), asked.seconds
        )
        metric = bench.task.info().metrics[0].name
        epochs = bench.dense.spec.epochs
        print(f"\n{name}: {epochs:g} epochs, {bench.dense.parameters:,} parameters\n", flush=True)
        print("\n".join(table(made, metric)), flush=True)
        found: dict[str, Any] = {"epochs": epochs, "files": [{**asdict(each), "file": each.file.name} for each in made]}
        if name == "resnet18" and asked.pruned:
            found["half the channels"] = against_eager(bench, asked.seconds, epochs)
            for each in found["half the channels"]:
                print({key: round(value, 4) if isinstance(value, float) else value for key, value in each.items()})
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--minutes", type=float, default=4.0, help="CPU time of each training")
    parser.add_argument("--seconds", type=float, default=6.0, help="of measuring each file")
    parser.add_argument("--root", default="mlruns")
    parser.add_argument("--pruned", action="store_true", help="half the channels and int8 of ResNet-18, too")
    asked = parser.parse_args()
    if wrong := [name for name in asked.names if name not in NETWORKS]:
        parser.error(f"{wrong[0]!r} is not a network; choose from {', '.join(NETWORKS)}")
    file = Path(asked.root, "quantizers.json")
    kept = json.loads(file.read_text())["networks"] if file.exists() else {}
    for name in asked.names:
        kept[name] = compared(name, asked) | {"load_average": os.getloadavg(), "cpu": cpu.name()}
        file.write_text(
            json.dumps({"python": platform.python_version(), "networks": kept}, indent=1, default=str) + "\n"
        )
    print(f"\n{file}; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
