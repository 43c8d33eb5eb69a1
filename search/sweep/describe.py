"""Asks a worker of this host what the study's task is: the user's code and data are here, and run in no driver."""

from __future__ import annotations

from pathlib import Path

from search.errors import SweepError, reason
from search.executors.base import Executor
from search.executors.inline import InlineExecutor
from search.executors.local import LocalExecutor
from search.study.config import Config, ConfigError
from search.study.metrics import Metrics
from search.trial import task
from tasks.base import TaskInfo


def here(config: Config, output: Path) -> Executor:
    """Workers of this host to ask, and to run the sweep where it is no cluster's. `output`: what frameworks print."""
    if config.executor.name == "inline":
        return InlineExecutor()
    output.parent.mkdir(parents=True, exist_ok=True)
    one = config.executor.name == "ray"  # the cluster's own follow
    return LocalExecutor(config.executor.model_copy(update={"workers": 1} if one else {}), output)


def ask(config: Config, worker: Executor) -> TaskInfo:
    """The task in words and figures; raises SweepError saying why it cannot be loaded, ConfigError for metrics."""
    future = worker.submit(-1000, config.study.space.trainers()[0], task.describe, config)
    if error := future.exception():
        raise SweepError(f"study.task: {reason(error)}") from error
    info: TaskInfo = future.result()
    check(config, info)
    return info


def check(config: Config, info: TaskInfo) -> None:
    """Raise ConfigError with every metric and model that the study names and the task does not have."""
    study, space = config.study, config.study.space
    problems = Metrics.from_info(info).problems(study.objectives, study.constraints)
    for trainer in space.trainers():
        models = info.models.get(trainer, ())
        for model in space.models():
            if model not in models and not any(model in names for names in info.models.values()):
                problems.append(
                    f"study.recipe.model: the task {info.name} has no {model!r} for the {trainer} trainer; choose from "
                    f"{', '.join(models) or 'another trainer'}"
                )
    if problems:
        raise ConfigError(problems)
