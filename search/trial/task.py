"""The study's task in a worker: loaded once per process, and described for the driver."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from runtimes import quiet
from search.errors import SettingsError
from search.study.config import Config
from tasks.base import Progress, Task, TaskInfo, TaskSpec
from tasks.load import load

_kept: dict[tuple[TaskSpec, Path], Task] = {}


def task_of(config: Config, progress: Progress, known: TaskInfo | None = None) -> Task:
    """The study's task, its data kept for the worker's next trial.

    `known`: what the sweep was started with; raises SettingsError when data or code are no longer that.
    """
    key = config.task, config.root / "cache"
    if key not in _kept:
        _kept.clear()
        with quiet.training():
            _kept[key] = load(*key, progress)
    task = _kept[key]
    if known is not None:
        _same(known, task.info())
    return task


def describe(config: Config, progress: Progress) -> TaskInfo:
    """What the driver needs to know of the task; raises TaskError when the task cannot be loaded."""
    progress("task", 0.0)
    task = task_of(config, progress)
    info, serving = task.info(), task.serving()
    stated = config.study.task.license or info.license
    return replace(info, serving=None if serving is None else serving.to_dict(), license=stated)


def _same(known: TaskInfo, now: TaskInfo) -> None:
    changed = [
        what
        for what, was, name in (
            ("data", known.data_digest, "data_digest"),
            ("code", known.code_digest, "code_digest"),
        )
        if was != getattr(now, name)
    ]
    if changed:
        raise SettingsError(
            f"study.task: its {' and '.join(changed)} changed since this sweep began; put it back, or start a new "
            "sweep with fresh=true"
        )
