"""What is known of one finished trial, as plain data: kept in Optuna, logged to MLflow, read by the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

STATES = ("complete", "failed")


@dataclass(frozen=True)
class Metric:
    """A measured figure: `title` for people, `unit` ("" for none), `direction` as an objective, `scale` to show it."""

    title: str
    unit: str
    direction: str
    scale: float = 1.0
    digits: int = 2

    def text(self, value: float) -> str:
        """The value as people read it: `99.12 %`."""
        return f"{value * self.scale:,.{self.digits}f}{' ' * bool(self.unit)}{self.unit}"

    @property
    def axis(self) -> str:
        """Title and unit, as an axis shows them."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


METRICS = {
    "accuracy": Metric("Validation accuracy", "%", "maximize", 100),
    "accuracy_drop": Metric("Accuracy drop", "points", "minimize", 100),
    "latency_ms": Metric("Latency", "ms", "minimize", 1, 4),
    "latency_ratio": Metric("Latency, share of the dense model's", "%", "minimize", 100, 0),
    "size_bytes": Metric("Compressed size", "kB", "minimize", 1e-3, 1),
    "size_ratio": Metric("Size, share of the dense model's", "%", "minimize", 100, 1),
    "compression_ratio": Metric("Times smaller", "×", "maximize", 1, 1),
    "sparsity": Metric("Sparsity", "%", "maximize", 100, 1),
    "export_agreement": Metric("Agreement of the file with the trained model", "%", "maximize", 100, 2),
}


def metric(name: str) -> Metric:
    """How to show the named metric; one that is not in METRICS is shown as it is and minimized."""
    return METRICS.get(name, Metric(name.replace("_", " ").capitalize(), "", "minimize", 1, 4))


@dataclass(frozen=True)
class TrialRecord:
    """One finished trial of a sweep.

    `recipe`: nested, as Recipe.to_dict gives it; `params`: its dotted fields; `words`: the recipe as people say it.
    `metrics`: name -> measured value, in the units of METRICS; `NAME_low` and `NAME_high` are the ends of a metric's
    interval. `violations`: constraint -> amount, kept where <= 0. `stages`: seconds each. `curves`: one dict per
    epoch, in order. `artifact`: path of the exported file. `reference`: name of the reference recipe, if it is one.
    `duplicate_of`: number of the trial whose result this one shares. `start_ms`, `end_ms`: since the epoch.
    """

    number: int
    state: str
    start_ms: int
    end_ms: int
    words: str = ""
    reason: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    feasible: bool = True
    violations: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    curves: list[dict[str, float]] = field(default_factory=list)
    artifact: str | None = None
    reference: str | None = None
    duplicate_of: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str = ""
    data_digest: str = ""
    environment: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"record.state: {self.state!r} is not valid; choose from {', '.join(STATES)}")
        if self.state == "failed" and not self.reason:
            raise ValueError("record.reason: a failed trial needs the reason, in words")
        if self.end_ms < self.start_ms:
            raise ValueError(f"record.end_ms: {self.end_ms} lies before start_ms, {self.start_ms}")

    def to_json(self) -> str:
        """One line of JSON; `from_json` gives an equal record."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> TrialRecord:
        """The record that `to_json` wrote; raises ValueError for a text that is not one."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"record: not JSON ({error})") from None
        if not isinstance(values, Mapping):
            raise ValueError(f"record: a JSON object is needed, not {type(values).__name__}")
        known = [f.name for f in fields(TrialRecord)]
        if unknown := [key for key in values if key not in known]:
            raise ValueError(f"record.{unknown[0]}: no such field; choose from {', '.join(known)}")
        if missing := [name for name in ("number", "state", "start_ms", "end_ms") if name not in values]:
            raise ValueError(f"record.{missing[0]}: missing")
        return TrialRecord(**values)
