"""The executor that a configuration names."""

from __future__ import annotations

from pathlib import Path

from search.executors.base import Executor
from search.executors.inline import InlineExecutor
from search.executors.local import LocalExecutor
from search.study import config
from tasks.base import TaskInfo


def start(wanted: config.Config, output: Path, info: TaskInfo | None = None) -> Executor:
    """The executor that the configuration names; `output`: file for what frameworks print on this host;
    `info`: the task, whose data a cluster's nodes are sent.

    Raises SweepError when its cluster cannot be reached or does not have what the study needs.
    """
    if wanted.executor.name == "inline":
        return InlineExecutor()
    if wanted.executor.name == "ray":
        from search.executors.ray.executor import RayExecutor
        from search.executors.ray.inputs import inputs

        return RayExecutor(wanted.executor, wanted.root, wanted.study.target, inputs(wanted, info))
    output.parent.mkdir(parents=True, exist_ok=True)
    return LocalExecutor(wanted.executor, output)
