"""The dense model's exported file, kept in the cache with its figures: the next sweep's first trial waits no second.

Exporting the first file of a process takes longer than all else between the command and the first trial.
"""

from __future__ import annotations

import functools
import inspect
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import runtimes.base
import trainers.base
from packing.measure import float32_bytes
from runtimes import quiet
from runtimes.architecture import architecture_of
from runtimes.base import Artifact
from search.study.config import Config
from search.trial.evaluate import quality
from tasks import cache
from tasks.base import digest_of
from trainers.base import DenseSpec, Job, Trainer
from trainers.recipe import Recipe

FIGURES = "figures.json"
# Rooms whose code may decide what the file is, or what it is found to be worth.
ROOMS = ("tasks", "trainers", "runtimes", "packing", "search/trial")


@dataclass(frozen=True)
class DenseFile:
    """The file, and what is known of it without timing it: see `results.Baseline`."""

    artifact: Artifact
    metrics: dict[str, float]
    size_bytes: int
    float32_bytes: int
    architecture: str


def dense_file(config: Config, trainer: Trainer, spec: DenseSpec, dense_folder: Path, job: Job) -> DenseFile:
    """The dense model exported to the job's folder, from the cache where the same was exported before."""
    runtime = config.study.runtime_of(spec.trainer)
    key = {
        "dense": dense_folder.name,
        "task": digest_of([job.task.info().to_dict()]),
        "runtime": [runtime, runtimes.base.load(runtime).version(), job.format],
        "device": config.device,
        "versions": trainer.versions(),
        "code": _code_digest(_source(trainer)),
    }
    place = cache.entry(config.root / "cache", "dense_file", key)
    cache.fill(place, lambda into: _export(trainer, spec, dense_folder, replace(job, folder=into), runtime), key)
    unneeded = shutil.ignore_patterns(FIGURES, cache.SUMS, cache.KEY)
    shutil.copytree(place, job.folder, ignore=unneeded, dirs_exist_ok=True)
    figures = json.loads((place / FIGURES).read_text())
    return DenseFile(Artifact.of(job.folder / figures.pop("file")), **figures)


def _export(trainer: Trainer, spec: DenseSpec, dense_folder: Path, job: Job, runtime: str) -> None:
    # The host is entered here, inside the cache's lock: waiting for that lock must not keep a measurement waiting.
    with quiet.training() as pause:
        recipe = Recipe(spec.model, spec.trainer, seed=spec.seed)
        job = replace(job, pause=pause)
        compressed = trainer.compress(recipe, trainer.open_dense(spec, dense_folder), None, job)
        artifact = Artifact.of(compressed.file)
        metrics, _ = quality(runtime, artifact, compressed, job.task, pause)
        figures = {
            "file": compressed.file.relative_to(job.folder).as_posix(),
            "metrics": metrics,
            "size_bytes": artifact.size_bytes(),
            "float32_bytes": float32_bytes(artifact.read()),
            "architecture": architecture_of(artifact, runtime),
        }
    (job.folder / FIGURES).write_text(json.dumps(figures) + "\n")


def _source(trainer: Trainer) -> Path | None:
    """The file of a trainer that is none of ours, which may be one that its author works on."""
    source = inspect.getsourcefile(type(trainer))
    return Path(source) if source else None


@functools.cache
def _code_digest(source: Path | None) -> str:
    root = Path(trainers.base.__file__).parent.parent
    files = [file for room in ROOMS for file in sorted((root / room).rglob("*.py"))]
    return digest_of([file.read_text() for file in [*files, *([source] if source else [])]])
