"""From a TaskSpec to a working Task, and what is known of it without importing a framework or the user's code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tasks.base import Progress, Task, TaskSpec
from tasks.mnist.task import MODELS, Mnist


def load(spec: TaskSpec, home: Path, progress: Progress) -> Task:
    """The task, in a worker; `home`: ROOT/cache. Raises TaskError when it cannot work."""
    return Mnist(spec, home, progress)


def models_of(spec: TaskSpec) -> Mapping[str, tuple[str, ...]] | None:
    """Trainer -> names of the models; None where only a worker can tell."""
    return MODELS


def problems(spec: TaskSpec) -> list[str]:
    """Every reason, in words, why the addresses of the spec cannot be used."""
    return [] if spec.name == "mnist" else [f"name: {spec.name!r} is not a task; choose from mnist"]
