"""One trial: recipe -> trainer -> runtime -> metrics. The one place where the rooms meet; it runs in a worker.

Neither Optuna nor MLflow is imported here, and a framework only by the trainer that needs it.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import trainers.base
from runtimes import latency, quiet
from runtimes.architecture import architecture_of
from runtimes.base import Artifact, format_of
from runtimes.latency import LatencyResult
from search.study.config import Config
from search.study.metrics import Metrics
from search.trial.costly import not_faster
from search.trial.dense_file import dense_file
from search.trial.evaluate import quality, save_examples, score
from search.trial.measure import counted, latencies, latency_spec, same_hardware
from search.trial.resources import metered
from search.trial.results import Baseline, Exported, Judged, Outcome, Outline, Outlined, sizes
from search.trial.steps import TrainThenMeasure
from search.trial.task import task_of
from search.trial.timing import FileTimer
from tasks import cache
from tasks.base import Progress, digest_of
from trainers.base import NETWORK, Dense, DenseSpec, Job, Teacher, shape_of, task_digest
from trainers.recipe import Recipe
from trainers.stages import timed

Latencies = Mapping[str, LatencyResult]  # by architecture

# The files of a trainer that decide what a dense model becomes.
DENSE_SOURCES = ("average", "data", "device", "distill", "evaluate", "train")


def _train_and_export(config: Config, spec: DenseSpec, folder: Path, threads: int, progress: Progress) -> Baseline:
    """Train the dense model, or take it from the task or the cache, and export it to `folder`, not measured yet."""
    trainer = trainers.base.load(spec.trainer)
    runtime = config.study.runtime_of(spec.trainer)
    task = task_of(config, progress)
    info = task.info()
    spec = replace(spec, task=task_digest(info))
    folder.mkdir(parents=True, exist_ok=True)
    key = {**spec.to_dict(), "versions": trainer.versions(), "code": _code_digest(spec.trainer)}
    dense_folder = cache.entry(config.root / "cache", "dense", key)
    kept = _checkpoints(config, dense_folder.name)
    job = Job(task, folder, format_of(runtime), config.device, threads, progress=progress, checkpoints=kept)
    cache.fill(dense_folder, lambda into: _train(trainer, spec, job, into), key, progress)
    made = dense_file(config, trainer, spec, dense_folder, job)
    return Baseline(
        spec=spec,
        dense_folder=dense_folder,
        artifact=made.artifact,
        metrics=made.metrics,
        samples=len(task.data("validation")),
        size_bytes=made.size_bytes,
        latency_ms=float("nan"),
        data_digest=info.data_digest,
        versions=trainer.versions(),
        environment={},
        task=info,
        examples=save_examples(task, folder / "examples.npz"),
        float32_bytes=made.float32_bytes,
        architecture=made.architecture,
    )


def _time(
    config: Config, spec: DenseSpec, folder: Path, threads: int, baseline: Baseline, progress: Progress
) -> Baseline:
    """The baseline with its file measured."""
    progress("measure", 0.0)
    runtime = config.study.runtime_of(spec.trainer)
    measured = latency.measure(
        runtime, baseline.artifact, baseline.artifact, latency_spec(config.study), baseline.examples
    )
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
    known: Latencies,
    built: Exported,
    progress: Progress,
) -> Outcome:
    """What was built, measured against the baseline's file, unless the latency of its architecture is known."""
    stages, measured = dict(built.stages), None
    if (found := known.get(built.architecture)) is None:
        found = measured = _timed(config, built.artifact, baseline, stages, progress)
    metrics = built.figures(baseline, Metrics.from_info(baseline.task)) | latencies(found, baseline.latency_ms)
    of = "its own file" if measured else "files of its architecture"
    runtime = config.study.runtime_of(recipe.trainer)
    slow = not_faster(runtime, built.artifact, baseline.artifact, baseline.examples, found)
    environment = found.environment | {"noisy": found.noisy, "latency_of": of, "notes": "; ".join(built.notes)}
    environment |= {"not_faster": slow} if slow else {}
    return Outcome(
        metrics,
        stages,
        built.system,
        built.curves,
        built.artifact,
        environment,
        built.architecture,
        measured,
        built.beside,
    )


def _timed(
    config: Config, artifact: Artifact, baseline: Baseline, stages: dict[str, float], progress: Progress
) -> LatencyResult:
    """The file's latency beside the baseline's, once the host is quiet."""
    runtime = config.study.runtime_of(baseline.spec.trainer)
    with timed(stages, "measure"), quiet.training():
        latency.warm(runtime)
    with ExitStack() as room:
        with timed(stages, "wait_for_quiet"):
            progress("wait for quiet", 0.0)
            room.enter_context(quiet.measuring())
        with timed(stages, "measure"):
            progress("measure", 0.0)
            measured = latency.measure(
                runtime, artifact, baseline.artifact, latency_spec(config.study), baseline.examples
            )
    same_hardware(measured.environment, baseline.environment)
    return measured


def _outline(
    config: Config, recipe: Recipe, baseline: Baseline, folder: Path, known: Latencies, progress: Progress
) -> Outlined | None:
    """The recipe's file without its training, and its sizes; None where the trainer cannot know."""
    progress("outline", 0.0)
    trainer = trainers.base.load(recipe.trainer)
    runtime = config.study.runtime_of(recipe.trainer)
    task = task_of(config, progress, baseline.task)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet.training() as pause:
        timer, decisions = FileTimer(runtime, task), _decisions(config)
        job = Job(task, folder, format_of(runtime), config.device, 1, pause, progress, None, timer, decisions)
        file = shape_of(trainer, recipe, trainer.open_dense(baseline.spec, baseline.dense_folder), job)
        if file is None:
            return None
        artifact = Artifact.of(file)
        figures = sizes(artifact.size_bytes(), counted(artifact, config.study), baseline)
    return Outlined(Outline(_architecture(artifact, runtime, recipe), figures), artifact)


def _price(
    config: Config,
    recipe: Recipe,
    baseline: Baseline,
    folder: Path,
    known: Latencies,
    outlined: Outlined | None,
    progress: Progress,
) -> Outlined | None:
    """The same, measured where its architecture's latency is not known; the file is removed."""
    if outlined is not None and outlined.outline.architecture not in known:
        outlined = replace(outlined, measured=_timed(config, outlined.artifact, baseline, {}, progress))
    shutil.rmtree(folder, ignore_errors=True)
    return outlined


def _architecture(artifact: Artifact, runtime: str, recipe: Recipe) -> str:
    zeros = recipe.pruning.granularity in ("unstructured", "block", "n_m")
    return architecture_of(artifact, runtime, zeros)


def build(
    config: Config, recipe: Recipe, baseline: Baseline, teacher: Baseline, folder: Path, progress: Progress
) -> Exported:
    """Carry out the recipe in `folder`; its metrics are the exported file's on the validation split."""
    stages: dict[str, float] = {}
    with timed(stages, "load"):
        trainer = trainers.base.load(recipe.trainer)
        runtime = config.study.runtime_of(recipe.trainer)
        task = task_of(config, progress, baseline.task)
        dense = trainer.open_dense(baseline.spec, baseline.dense_folder)
        taught = Teacher.of(Dense.open(teacher.spec, teacher.dense_folder))
        folder.mkdir(parents=True, exist_ok=True)
    with quiet.training() as pause:
        kept = _checkpoints(config, f"{baseline.dense_folder.name}-{recipe.digest()}")
        timer, decisions = FileTimer(runtime, task), _decisions(config)
        job = Job(task, folder, format_of(runtime), config.device, 1, pause, progress, kept, timer, decisions)
        job = replace(job, networks=_networks(config))
        compressed = trainer.compress(recipe, dense, taught if recipe.distillation.kind != "none" else None, job)
        stages |= compressed.stages
        artifact = Artifact.of(compressed.file)
        with timed(stages, "evaluate"):
            metrics, agreement = quality(runtime, artifact, compressed, task, pause)
            size = artifact.size_bytes()
        with timed(stages, "pack"):
            figures = counted(artifact, config.study)
        architecture = _architecture(artifact, runtime, recipe)
    return Exported(
        artifact,
        size,
        metrics,
        agreement,
        compressed.sparsity,
        compressed.pruned,
        stages,
        compressed.curves,
        figures,
        architecture=architecture,
        notes=list(compressed.notes),
        beside=tuple(sorted(path for path in (folder / NETWORK).rglob("*") if path.is_file())),
    )


def _build(
    config: Config,
    recipe: Recipe,
    baseline: Baseline,
    teacher: Baseline,
    folder: Path,
    known: Latencies,
    progress: Progress,
) -> Exported:
    """The same, and what it took of the system."""
    with metered(config.device) as system:
        built = build(config, recipe, baseline, teacher, folder, progress)
    return replace(built, system=system)


def _test(
    config: Config,
    split: Path | None,
    artifacts: list[Artifact],
    architectures: list[str],
    baseline: Baseline,
    progress: Progress,
) -> Judged:
    """The metrics of each file on the TEST split, opened by nothing else. `split`: its folder, which travels along."""
    runtime = config.study.runtime_of(baseline.spec.trainer)
    progress("test split", 0.0)
    task = task_of(config, progress, baseline.task)
    test = task.data("test")
    with quiet.training() as pause:
        found = [score(runtime, artifact, task, test, pause=pause)[0] for artifact in artifacts]
    return Judged(found, len(test))


def _measure_all(
    config: Config,
    split: Path | None,
    artifacts: list[Artifact],
    architectures: list[str],
    baseline: Baseline,
    judged: Judged,
    progress: Progress,
) -> Judged:
    """The same, and the latency of each file, one of each architecture, all interleaved in one run."""
    progress("measure", 0.0)
    runtime = config.study.runtime_of(baseline.spec.trainer)
    first: dict[str, Artifact] = {}
    for architecture, artifact in zip(architectures, artifacts, strict=True):
        first.setdefault(architecture, artifact)
    found = latency.measure_many(
        runtime, list(first.values()), baseline.artifact, latency_spec(config.study), baseline.examples
    )
    same_hardware(found[0].environment, baseline.environment)
    by_architecture = dict(zip(first, found, strict=True))
    return replace(judged, latencies=[by_architecture[architecture] for architecture in architectures])


# (config, spec, folder, threads, progress) -> Baseline. Trains the dense model, or takes it from the cache, exports it
# to `folder` and measures the file.
prepare = TrainThenMeasure(_train_and_export, _time)
# (config, recipe, baseline, teacher, folder, known, progress) -> Outcome. Carries out the recipe in `folder`, measures
# the exported file against the baseline's. `known`: latencies by architecture, which are not measured again.
evaluate = TrainThenMeasure(_build, _measure)
# (config, recipe, baseline, folder, known, progress) -> Outlined | None. What the recipe costs, without its training.
outline = TrainThenMeasure(_outline, _price)
# (config, split, artifacts, architectures, baseline, progress) -> Judged on the TEST split, at the search's end.
judge = TrainThenMeasure(_test, _measure_all)


def _train(trainer: trainers.base.Trainer, spec: DenseSpec, job: Job, into: Path) -> None:
    # The host is entered here, inside the cache's lock: waiting for that lock must not keep a measurement waiting.
    with quiet.training() as pause:
        trainer.dense(spec, replace(job, folder=into, pause=pause))


def _checkpoints(config: Config, name: str) -> Path:
    """Where the state of a long training lies: by what it makes, since a killed trial comes back as another."""
    return config.root / "cache" / "checkpoints" / name


def _networks(config: Config) -> Path | None:
    """Where fine-tuned networks are kept, if the study has recipes that may share one."""
    space = config.study.space
    several = any(len(space.possible(f"quantization.{part}")) > 1 for part in ("scheme", "clusters", "max_drop"))
    return config.root / "cache" / "networks" if several else None


def _decisions(config: Config) -> Path:
    """Where trainers keep what they decided by measuring."""
    return config.root / "cache" / "placement"


@functools.cache
def _code_digest(trainer: str) -> str:
    """Of the source that decides what a dense model becomes, so that a changed trainer does not reuse old ones."""
    package = Path(trainers.base.__file__).parent / trainer
    return digest_of([file.read_text() for file in sorted(package.glob("*.py")) if file.stem in DENSE_SOURCES])
