"""Whose fault a failure is: a trial's own, which is recorded, or the machine's, which stops the sweep."""

from __future__ import annotations

import errno

from runtimes.base import ArtifactError
from runtimes.latency import LatencyError
from tasks.base import TaskError
from tasks.cache import CacheError
from tasks.mnist.data import DataError
from trainers.base import TrainingError
from trainers.recipe import RecipeError


class SweepError(RuntimeError):
    """A sweep that cannot be opened or continued; the message says why and what to do."""


class SettingsError(SweepError):
    """A command that does not fit the sweep it would resume: a usage error."""


class WorkerError(RuntimeError):
    """The worker process died or ran out of time; the message is the reason."""


# Reasons of a trial's own; anything else a worker raises is recorded with its type, as a bug.
EXPECTED = (RecipeError, TrainingError, TaskError, ArtifactError, LatencyError, WorkerError)
# The machine's fault: no trial would succeed, and none may be lost for it.
ENVIRONMENT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def reason(error: BaseException) -> str:
    """The reason a trial failed, in words; raises SweepError when no other trial could succeed either."""
    if isinstance(error, SweepError):
        raise error
    if isinstance(error, DataError | CacheError):
        raise SweepError(str(error)) from error
    if isinstance(error, OSError) and error.errno in ENVIRONMENT:
        raise SweepError(
            f"{error.strerror}: {error.filename or 'mlruns'}; fix this, then rerun the same command: "
            "finished trials are kept"
        ) from error
    return str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"
