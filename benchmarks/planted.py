"""A planted objective: what a trial of `mnist_prune` gives, without its training.

The surface follows the front in the README and the study's header (LeNet-5, 1,593 kB and 0.109 ms dense); settings that
a real training feels little have little effect here, and every recipe has its own luck, as a seed has.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from runtimes.base import Artifact
from runtimes.latency import Comparison, LatencyResult, Timing
from search.study.config import Config, check
from search.trial.results import Baseline, Outcome, Outline, Outlined
from tasks.base import ACCURACY, Progress, TaskInfo
from tasks.mnist.task import INPUT, MODELS, OUTPUT
from trainers.base import DenseSpec
from trainers.recipe import Recipe

STUDIES = Path(__file__).parent.parent / "experiments" / "study"
SECONDS = 0.01  # what a trial takes
DENSE = {"accuracy": 0.9918, "latency_ms": 0.109, "size_bytes": 1_593_000.0}

INFO = TaskInfo("planted", MODELS, (INPUT,), (OUTPUT,), (ACCURACY,), "planted")


def config(root: Path, trials: int, workers: int, study: str = "mnist_prune", **changes: Any) -> Config:
    """The study as it stands in experiments/, unconfirmed."""
    raw: Any = OmegaConf.to_container(OmegaConf.load(STUDIES / f"{study}.yaml"))
    raw |= {"budget": {"trials": trials}, "confirm": {"seeds": 0}, "early_stopping": {"name": "none"}} | changes
    return check({"study": raw, "executor": {"name": "local", "workers": workers}, "root": root})


def surface(recipe: Recipe) -> dict[str, float]:
    """metric -> value of that recipe."""
    kept, granularity = 1 - recipe.pruning.sparsity, recipe.pruning.granularity
    int8 = recipe.quantization.scheme != "none"
    width = kept if granularity == "channel" else 1.0
    latency = 0.305 + 0.25 * width**2.6 if int8 else 0.14 + 0.86 * width**2.6
    size = 0.005 + 0.995 * width**2
    if granularity == "unstructured":
        size = 0.03 + 1.1 * kept
    size /= (2.6 if granularity == "unstructured" else 3.8) if int8 else 1.0
    drop = {"none": 0.0, "channel": 0.013 * (recipe.pruning.sparsity / 0.85) ** 8}.get(granularity)
    if drop is None:
        drop = 0.006 * max(0.0, (recipe.pruning.sparsity - 0.8) / 0.17) ** 3
    drop += {"none": 0.0, "static_int8": 0.0006}.get(recipe.quantization.scheme, 0.0003)
    drop += 0.002 * math.log(recipe.finetuning.learning_rate / 2.5e-3) ** 2 * recipe.trains
    if recipe.distillation.kind == "soft":
        drop -= 0.0008 * math.exp(-(math.log(recipe.distillation.temperature / 4) ** 2))
    drop += float(np.random.default_rng(int(recipe.digest(), 16)).normal(0, 0.0004))
    return {
        "accuracy": DENSE["accuracy"] - drop,
        "accuracy_drop": drop,
        "latency_ms": DENSE["latency_ms"] * latency,
        "latency_ratio": latency,
        "size_bytes": DENSE["size_bytes"] * size,
        "size_ratio": size,
    }


def evaluate(
    config: Config, recipe: Recipe, baseline: Baseline, teacher: Baseline, folder: Path, known: Any, progress: Progress
) -> Outcome:
    """In the place of `objective.evaluate`: takes SECONDS, writes a file."""
    started = time.perf_counter()
    progress("plant", 0.0)
    folder.mkdir(parents=True, exist_ok=True)
    metrics = surface(recipe)
    file = folder / "model.onnx"
    file.write_text(json.dumps(metrics))
    time.sleep(max(0.0, SECONDS - (time.perf_counter() - started)))
    return Outcome(metrics, {"train": SECONDS}, {}, [], Artifact.of(file), baseline.environment)


def outline(
    config: Config, recipe: Recipe, baseline: Baseline, folder: Path, known: Any, progress: Progress
) -> Outlined:
    """In the place of `objective.outline`: costs as the surface has them, latency within 2 %."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics, file = surface(recipe), folder / "model.onnx"
    file.write_text("outline")
    ratio, timing = metrics["latency_ratio"], Timing(0.1, 0.1, 0.0, 10_000.0)
    architecture = f"{ratio:.6f}"
    found = Comparison(1, 1, timing, timing, ratio, 0.98 * ratio, 1.02 * ratio, 24, 24, 1.0, "tight", None)
    measured = None if architecture in known else LatencyResult((found,), {"cpu": "planted"})
    return Outlined(
        Outline(architecture, {n: metrics[n] for n in ("size_bytes", "size_ratio")}), Artifact.of(file), measured
    )


def prepare(config: Config, spec: DenseSpec, folder: Path, threads: int, progress: Progress) -> Baseline:
    """In the place of `objective.prepare`."""
    file = folder / "dense.onnx"
    file.write_text("dense")
    return Baseline(
        spec=spec,
        dense_folder=folder,
        artifact=Artifact.of(file),
        metrics={"accuracy": DENSE["accuracy"]},
        samples=5000,
        size_bytes=int(DENSE["size_bytes"]),
        latency_ms=DENSE["latency_ms"],
        data_digest="planted",
        versions={"planted": "1"},
        environment={"cpu": "planted", "noisy": False},
        task=INFO,
        examples=folder / "examples.npz",
    )
