"""One trial: recipe -> trainer -> runtime -> metrics. The one place where the rooms meet; it runs in a worker.

Neither Optuna nor MLflow is imported here, and a framework only by the trainer that needs it.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import runtimes.base
import trainers.base
from runtimes import latency, quiet
from runtimes.base import FORMATS, Artifact
from runtimes.latency import LatencyResult as Measured
from search.study.config import Config, Data
from search.trial.measure import latencies, latency_spec, same_hardware
from search.trial.resources import metered
from search.trial.steps import TrainThenMeasure
from tasks import cache
from tasks.mnist.data import DataSet, normalized, open_test
from tasks.mnist.data import load as load_data
from trainers.base import Compressed, DenseSpec, Job
from trainers.recipe import Recipe, digest_of

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, to be stored with the sweep."""
        return _plain(self)

    @staticmethod
    def restore(stored: dict[str, Any]) -> Baseline | None:
        """What `to_dict` gave -> Baseline; None when its files are gone or changed since."""
        spec, folder = DenseSpec(**stored["spec"]), Path(stored["dense_folder"])
        artifact = _restored(stored["artifact"])
        if artifact is None or not cache.get(folder):
            return None
        return Baseline(**stored | {"spec": spec, "dense_folder": folder, "artifact": artifact})


@dataclass(frozen=True)
class Outcome:
    """What one trial gave; `stages` in seconds, `system` as `meter.metered` gives it, `curves` one dict per epoch."""

    metrics: dict[str, float]
    stages: dict[str, float]
    system: dict[str, float]
    curves: list[dict[str, float]]
    artifact: Artifact
    environment: dict[str, Any]


@dataclass(frozen=True)
class Exported:
    """An exported file and what is known of it without timing it."""

    artifact: Artifact
    size_bytes: int
    accuracy: float
    agreement: float
    sparsity: float
    pruned: float
    stages: dict[str, float]
    curves: list[dict[str, float]]
    system: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, to be stored with the sweep."""
        return _plain(self)

    @staticmethod
    def restore(stored: dict[str, Any]) -> Exported | None:
        """What `to_dict` gave -> Exported; None when its file is gone or changed since."""
        artifact = _restored(stored["artifact"])
        return None if artifact is None else Exported(**stored | {"artifact": artifact})

    def metrics(self, baseline: Baseline) -> dict[str, float]:
        """The metrics that need no measuring, by name."""
        return {
            "accuracy": self.accuracy,
            "accuracy_drop": baseline.accuracy - self.accuracy,
            "size_bytes": float(self.size_bytes),
            "size_ratio": self.size_bytes / baseline.size_bytes,
            "compression_ratio": baseline.size_bytes / self.size_bytes,
            "sparsity": self.sparsity,
            "pruned": self.pruned,
            "export_agreement": self.agreement,
        }


def _plain(value: Baseline | Exported) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(value), default=str))
    return plain


def _restored(stored: dict[str, str]) -> Artifact | None:
    path = Path(stored["path"])
    if not path.is_file() or (found := Artifact.of(path)).sha256 != stored["sha256"]:
        return None
    return found


def _train_and_export(config: Config, spec: DenseSpec, folder: Path, threads: int, progress: Progress) -> Baseline:
    """Train the dense model, or take it from the cache, and export it to `folder`; its latency is not known yet."""
    trainer = trainers.base.load(spec.trainer)
    runtime = config.study.runtime_of(spec.trainer)
    data = _data(config, progress)
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(data, folder, FORMATS[runtime], config.device, threads, progress=progress)
    key = {**spec.to_dict(), "data": data.digest, "versions": trainer.versions(), "code": _code_digest(spec.trainer)}
    dense_folder = cache.entry(config.root / "cache", "dense", key)
    cache.fill(dense_folder, lambda into: _train(trainer, spec, job, into), key, progress)
    with quiet.training():
        recipe = Recipe(spec.model, spec.trainer, seed=spec.seed)
        compressed = trainer.compress(recipe, trainer.open_dense(spec, dense_folder), None, job)
        artifact = Artifact.of(compressed.file)
        accuracy, _ = _accuracy(runtime, artifact, compressed, data)
    return Baseline(
        spec=spec,
        dense_folder=dense_folder,
        artifact=artifact,
        accuracy=accuracy,
        size_bytes=artifact.size_bytes(),
        latency_ms=float("nan"),
        data_digest=data.digest,
        versions=trainer.versions(),
        environment={},
    )


def _time(
    config: Config, spec: DenseSpec, folder: Path, threads: int, baseline: Baseline, progress: Progress
) -> Baseline:
    """The baseline with its file measured."""
    progress("measure", 0.0)
    runtime = config.study.runtime_of(spec.trainer)
    measured = latency.measure(runtime, baseline.artifact, baseline.artifact, latency_spec(config.study))
    return replace(
        baseline,
        latency_ms=measured.latency_ms,
        versions={**baseline.versions, runtime: measured.environment["runtime_version"]},
        environment=measured.environment | {"noisy": measured.noisy},
    )


def _measure(
    config: Config,
    recipe: Recipe,
    baseline: Baseline,
    teacher: Baseline,
    folder: Path,
    built: Exported,
    progress: Progress,
) -> Outcome:
    """What was built, measured against the baseline's file."""
    stages = dict(built.stages)
    with _stage(stages, "measure"), quiet.training():
        latency.warm(config.study.runtime_of(recipe.trainer))
    with ExitStack() as room:
        with _stage(stages, "wait_for_quiet"):
            progress("wait for quiet", 0.0)
            room.enter_context(quiet.measuring())
        with _stage(stages, "measure"):
            progress("measure", 0.0)
            runtime = config.study.runtime_of(recipe.trainer)
            measured = latency.measure(runtime, built.artifact, baseline.artifact, latency_spec(config.study))
    same_hardware(measured.environment, baseline.environment)
    metrics = built.metrics(baseline) | latencies(measured, baseline.latency_ms)
    environment = measured.environment | {"noisy": measured.noisy}
    return Outcome(metrics, stages, built.system, built.curves, built.artifact, environment)


def build(
    config: Config, recipe: Recipe, baseline: Baseline, teacher: Baseline, folder: Path, progress: Progress
) -> Exported:
    """Carry out the recipe in `folder`; the accuracy is the exported file's on the validation split."""
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
            size = artifact.size_bytes()
    return Exported(
        artifact, size, accuracy, agreement, compressed.sparsity, compressed.pruned, stages, compressed.curves
    )


def _build(
    config: Config, recipe: Recipe, baseline: Baseline, teacher: Baseline, folder: Path, progress: Progress
) -> Exported:
    """The same, and what it took of the system."""
    with metered(config.device) as system:
        built = build(config, recipe, baseline, teacher, folder, progress)
    return replace(built, system=system)


def _test(
    config: Config, split: Path, artifacts: list[Artifact], baseline: Baseline, progress: Progress
) -> list[float]:
    """Accuracy of each file on the TEST split, opened by nothing else. `split`: its folder, which travels along."""
    runtime = config.study.runtime_of(baseline.spec.trainer)
    progress("test split", 0.0)
    test = open_test(config.study.data.name, config.root / "cache", _own_folder(config), progress)
    loader = runtimes.base.load(runtime)
    accuracies = []
    with quiet.training():
        for artifact in artifacts:
            labels = loader.load(artifact, threads=1).predict(normalized(test.images, artifact.layout)).argmax(1)
            accuracies.append(float(np.mean(labels == test.labels)))
    return accuracies


def _measure_all(
    config: Config,
    split: Path,
    artifacts: list[Artifact],
    baseline: Baseline,
    accuracies: list[float],
    progress: Progress,
) -> tuple[list[float], list[Measured]]:
    """The accuracies, and the latency of each file, all interleaved in one run."""
    progress("measure", 0.0)
    runtime = config.study.runtime_of(baseline.spec.trainer)
    found = latency.measure_many(runtime, artifacts, baseline.artifact, latency_spec(config.study))
    same_hardware(found[0].environment, baseline.environment)
    return accuracies, found


# (config, spec, folder, threads, progress) -> Baseline. Trains the dense model, or takes it from the cache, exports it
# to `folder` and measures the file.
prepare = TrainThenMeasure(_train_and_export, _time)
# (config, recipe, baseline, teacher, folder, progress) -> Outcome. Carries out the recipe in `folder` and measures the
# exported file against the baseline's.
evaluate = TrainThenMeasure(_build, _measure)
# (config, split, artifacts, baseline, progress) -> (accuracies on the TEST split, latencies), one of each per file.
# Called once the search has ended.
judge = TrainThenMeasure(_test, _measure_all)


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


def _train(trainer: trainers.base.Trainer, spec: DenseSpec, job: Job, into: Path) -> None:
    # The host is entered here, inside the cache's lock: waiting for that lock must not keep a measurement waiting.
    with quiet.training() as pause:
        trainer.dense(spec, replace(job, folder=into, pause=pause))


_KEPT: dict[Data, DataSet] = {}


def _data(config: Config, progress: Progress) -> DataSet:
    """The study's data set, kept in memory for the worker's next trial."""
    said = config.study.data
    if said not in _KEPT:
        sizes = {"train_size": said.train_size, "validation_size": said.validation_size}
        _KEPT.clear()
        _KEPT[said] = load_data(
            said.name, config.root / "cache", folder=_own_folder(config), **sizes, progress=progress
        )
    return _KEPT[said]


def _own_folder(config: Config) -> Path | None:
    """The folder with the original files that the study names, if it does."""
    return Path(config.study.data.folder).expanduser() if config.study.data.folder else None


def _logits(folder: Path) -> np.ndarray:
    """float32 [train size, classes] that a dense model gave on the training split, of either framework."""
    logits: np.ndarray = np.load(folder / "logits.npy")
    return logits


@functools.cache
def _code_digest(trainer: str) -> str:
    """Of the source that decides what a dense model becomes, so that a changed trainer does not reuse old ones."""
    package = Path(trainers.base.__file__).parent / trainer
    return digest_of([(package / name).read_text() for name in ("models.py", "train.py")])
