"""One trial: recipe -> trainer -> runtime -> metrics. The one place where the rooms meet; it runs in a worker.

Neither Optuna nor MLflow is imported here, and a framework only by the trainer that needs it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import runtimes.base
import trainers.base
from runtimes import latency, quiet
from runtimes.base import FORMATS, Artifact
from search.config import Config, Data
from trainers import cache
from trainers.base import Compressed, DenseSpec, Job, Recipe, digest_of
from trainers.data import DataSet, normalized
from trainers.data import load as load_data

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Baseline:
    """A dense model of the study and its exported fp32 file, which every latency and size is compared with.

    `accuracy`: of the file on the validation split. `latency_ms`: median on the study's runtime, once per sweep:
    a trial's `latency_ms` is its ratio times this, so that the machine's drift does not order the front.
    """

    spec: DenseSpec
    dense_folder: Path
    artifact: Artifact
    accuracy: float
    size_bytes: int
    latency_ms: float
    data_digest: str
    versions: dict[str, str]
    environment: dict[str, Any]

    @property
    def name(self) -> str:
        """TRAINER/MODEL, as `distillation.teacher` spells it."""
        return f"{self.spec.trainer}/{self.spec.model}"


@dataclass(frozen=True)
class Outcome:
    """What one trial gave; `stages` in seconds, `curves` one dict per epoch."""

    metrics: dict[str, float]
    stages: dict[str, float]
    curves: list[dict[str, float]]
    artifact: Artifact
    environment: dict[str, Any]


def prepare(config: Config, spec: DenseSpec, folder: Path, threads: int, progress: Progress) -> Baseline:
    """Train the dense model, or take it from the cache; export it to `folder` and measure the file."""
    trainer = trainers.base.load(spec.trainer)
    runtime = config.study.runtime_of(spec.trainer)
    data = _data(config, progress)
    job = Job(data, folder, FORMATS[runtime], config.device, threads, progress=progress)
    key = {**spec.to_dict(), "data": data.digest, "versions": trainer.versions(), "code": _code_digest(spec.trainer)}
    dense_folder = cache.entry(config.root / "cache", "dense", key)
    with quiet.training() as pause:
        cache.fill(dense_folder, lambda into: _train(trainer, spec, job, into, pause), key)
        recipe = Recipe(spec.model, spec.trainer, seed=spec.seed)
        compressed = trainer.compress(recipe, trainer.open_dense(spec, dense_folder), None, job)
        artifact = Artifact.of(compressed.file)
        accuracy, _ = _accuracy(runtime, artifact, compressed, data)
    progress("measure", 0.0)
    with quiet.measuring():
        measured = latency.measure(runtime, artifact, artifact, latency_spec(config))
    return Baseline(
        spec=spec,
        dense_folder=dense_folder,
        artifact=artifact,
        accuracy=accuracy,
        size_bytes=artifact.size_bytes(),
        latency_ms=measured.latency_ms,
        data_digest=data.digest,
        versions={**trainer.versions(), runtime: runtimes.base.load(runtime).version()},
        environment=measured.environment,
    )


def evaluate(
    config: Config, recipe: Recipe, baseline: Baseline, teacher: Baseline, folder: Path, progress: Progress
) -> Outcome:
    """Carry out the recipe in `folder` and measure the exported file against the baseline's."""
    stages: dict[str, float] = {}
    with _stage(stages, "load"):
        trainer = trainers.base.load(recipe.trainer)
        runtime = config.study.runtime_of(recipe.trainer)
        data = _data(config, progress)
        dense = trainer.open_dense(baseline.spec, baseline.dense_folder)
        logits = _logits(teacher.dense_folder) if recipe.distillation.kind != "none" else None
        folder.mkdir(parents=True, exist_ok=True)
    with quiet.training() as pause:
        job = Job(data, folder, FORMATS[runtime], config.device, 1, pause, progress)
        compressed = trainer.compress(recipe, dense, logits, job)
        stages |= compressed.stages
        artifact = Artifact.of(compressed.file)
        with _stage(stages, "evaluate"):
            accuracy, agreement = _accuracy(runtime, artifact, compressed, data)
    with ExitStack() as room:
        with _stage(stages, "wait_for_quiet"):
            progress("wait for quiet", 0.0)
            room.enter_context(quiet.measuring())
        with _stage(stages, "measure"):
            progress("measure", 0.0)
            measured = latency.measure(runtime, artifact, baseline.artifact, latency_spec(config))
    metrics = _metrics(accuracy, agreement, compressed, artifact, baseline, measured)
    return Outcome(metrics, stages, compressed.curves, artifact, measured.environment)


def latency_spec(config: Config) -> latency.LatencySpec:
    """How the study measures latency."""
    said = config.study.latency
    return latency.LatencySpec(
        batch=tuple(said.batch),
        threads=tuple(said.threads),
        target_rel_ci=said.target_rel_ci,
        max_seconds=said.max_seconds,
        seed=config.study.seed,
    )


def _metrics(
    accuracy: float,
    agreement: float,
    compressed: Compressed,
    artifact: Artifact,
    baseline: Baseline,
    measured: latency.LatencyResult,
) -> dict[str, float]:
    size = artifact.size_bytes()
    first = measured.first
    return {
        "accuracy": accuracy,
        "accuracy_drop": baseline.accuracy - accuracy,
        "latency_ms": first.ratio * baseline.latency_ms,
        "latency_ms_low": first.ratio_low * baseline.latency_ms,
        "latency_ms_high": first.ratio_high * baseline.latency_ms,
        "latency_ratio": first.ratio,
        "latency_ratio_low": first.ratio_low,
        "latency_ratio_high": first.ratio_high,
        "latency_raw_ms": first.latency_ms,
        "throughput": first.throughput,
        "size_bytes": float(size),
        "size_ratio": size / baseline.size_bytes,
        "compression_ratio": baseline.size_bytes / size,
        "sparsity": compressed.sparsity,
        "pruned": compressed.pruned,
        "export_agreement": agreement,
    }


@contextmanager
def _stage(stages: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    stages[name] = stages.get(name, 0.0) + time.perf_counter() - start


def _accuracy(runtime: str, artifact: Artifact, compressed: Compressed, data: DataSet) -> tuple[float, float]:
    """(accuracy of the file on validation, agreement with the model it was exported from)."""
    session = runtimes.base.load(runtime).load(artifact, threads=1)
    labels = session.predict(normalized(data.validation.images, artifact.layout)).argmax(1)
    return float(np.mean(labels == data.validation.labels)), float(np.mean(labels == compressed.labels))


def _train(trainer: trainers.base.Trainer, spec: DenseSpec, job: Job, into: Path, pause: Callable[[], None]) -> None:
    trainer.dense(spec, Job(job.data, into, job.format, job.device, job.threads, pause, job.progress))


_KEPT: dict[Data, DataSet] = {}


def _data(config: Config, progress: Progress) -> DataSet:
    """The study's data set, kept in memory for the worker's next trial."""
    said = config.study.data
    if said not in _KEPT:
        folder = Path(said.folder).expanduser() if said.folder else None
        sizes = {"train_size": said.train_size, "validation_size": said.validation_size}
        _KEPT.clear()
        _KEPT[said] = load_data(said.name, config.root / "cache", folder=folder, **sizes, progress=progress)
    return _KEPT[said]


def _logits(folder: Path) -> np.ndarray:
    """float32 [train size, classes] that a dense model gave on the training split, of either framework."""
    logits: np.ndarray = np.load(folder / "logits.npy")
    return logits


@functools.cache
def _code_digest(trainer: str) -> str:
    """Of the source that decides what a dense model becomes, so that a changed trainer does not reuse old ones."""
    package = Path(trainers.base.__file__).parent / trainer
    return digest_of([(package / name).read_text() for name in ("models.py", "train.py")])
