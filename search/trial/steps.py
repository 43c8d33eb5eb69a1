"""Work in two steps of which the second measures: on a cluster that happens on other nodes than the first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainThenMeasure:
    """`work(*args, progress)`, then `measure(*args, result, progress)`, whose result is that of both."""

    work: Callable[..., Any]
    measure: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        """Both, one after the other, in this process."""
        *given, progress = args
        return self.measure(*given, self.work(*given, progress), progress)
