"""A TaskSpec -> a Task, in a worker; and the names by which the driver learns of it what needs no worker."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from pathlib import Path
from typing import Any

from tasks.address import Address, read
from tasks.base import Progress, Task, TaskError, TaskSpec
from tasks.describe import BUILT_IN, GROUP, is_plain, metrics_of, models_of, trainers_of, user_files
from tasks.problems import problems
from tasks.sources import guest
from tasks.user_code import defined, fetch, guarded

__all__ = ["load", "metrics_of", "models_of", "problems", "trainers_of", "user_files"]

METHODS = ("info", "data", "scorer", "agreement", "program", "serving")


def silent(stage: str, fraction: float) -> None:
    """A progress that tells nobody."""


def load(spec: TaskSpec, home: Path, progress: Progress = silent) -> Task:
    """The task that the spec describes, in a worker process. `home`: the cache.

    Raises TaskError when it cannot work as it stands: everything that a file's names and text can tell before the
    user's code runs, and whatever that code raises.
    """
    if not guest(spec, home) and (found := problems(spec)):
        raise TaskError("; ".join(f"task.{problem}" for problem in found))
    if spec.name and not is_plain(spec):
        return _made(_factory(spec), spec, home, progress)
    from tasks.assemble import assembled

    return assembled(spec, home, progress)


def _factory(spec: TaskSpec) -> tuple[Any, Path | None]:
    """The Task class, factory or object that `spec.name` names, and the user's folder."""
    address = read("name", spec.name)
    if address.kind == "name":
        place = BUILT_IN.get(address.place)
        if place is not None:
            module, _, name = place.partition(":")
            return getattr(importlib.import_module(module), name), None
        point = importlib.metadata.entry_points(group=GROUP)[address.place]
        with guarded("code", f"importing the task {address.place}", None):
            return point.load(), None
    if not address.name:
        names = defined(address.path(spec))
        name = next((name for name in ("task", "Task") if name in names), "")
        address = Address(address.kind, address.place, name)
    return fetch(spec, "name", address)


def _made(found: tuple[Any, Path | None], spec: TaskSpec, home: Path, progress: Progress) -> Task:
    """A Task of a factory that takes any of spec, home and progress by name; or the task itself."""
    factory, folder = found
    task = factory
    if inspect.isclass(factory) or not all(hasattr(factory, method) for method in METHODS):
        if not callable(factory):
            raise TaskError(f"task.name: {spec.name} is a {type(factory).__name__}, no task and no function", "code")
        values = {"spec": spec, "home": home, "progress": progress}
        try:
            parameters = list(inspect.signature(factory).parameters)
        except (TypeError, ValueError):
            parameters = []
        with guarded("code", f"making the task {spec.name}", folder):
            task = factory(**{name: value for name, value in values.items() if name in parameters})
    missing = [method for method in METHODS if not callable(getattr(task, method, None))]
    if missing:
        raise TaskError(f"task.name: {spec.name} has no {', '.join(missing)}(); see tasks/base.py, class Task", "code")
    made: Task = task
    return made
