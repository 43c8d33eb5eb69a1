"""Constraints on the metrics of a trial."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Constraint:
    """`metric op bound`, e.g. `accuracy_drop <= 0.02`."""

    metric: str
    op: str
    bound: float

    @staticmethod
    def parse(text: str) -> Constraint:
        """Raises ValueError with the rule; whether there is such a metric the study's `Metrics` says."""
        match = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*([-+0-9.eE]+)\s*", text)
        if not match:
            raise ValueError(f"{text!r} must read like 'accuracy_drop <= 0.02': metric, <= or >=, number")
        metric, op, bound = match.groups()
        try:
            return Constraint(metric, op, float(bound))
        except ValueError:
            raise ValueError(f"{bound!r} in {text!r} must be a number") from None

    def violation(self, value: float) -> float:
        """How far `value` is beyond the bound, in the metric's unit; <= 0 is feasible."""
        return value - self.bound if self.op == "<=" else self.bound - value

    def __str__(self) -> str:
        return f"{self.metric} {self.op} {self.bound:g}"
