"""Figures as people say them: `95.8 ± 0.3 %`, `5.1× faster`, `98.9 % · 5.1× faster · 14× smaller`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from search.study.metrics import Metrics, Quantity

NONE = "–"


class Values(Protocol):
    """Figures by name: a mapping, or a row of a table."""

    def get(self, name: Any, /) -> Any:
        """The named one, None or NaN without it."""
        ...


# Ratio to the dense model -> what a smaller, a larger and an equal one is called.
RATIOS = {
    "latency_ratio": ("faster", "slower", "as fast"),
    "size_ratio": ("smaller", "larger", "as large"),
}
_EQUAL = (0.95, 1.05)  # ratios between these are called equal


def spread(quantity: Quantity, value: float, half: float = 0.0) -> str:
    """`98.76 ± 0.26 %`: the value and half its interval, with no more digits than that interval leaves certain.

    Half an interval is shown with two significant digits below 0.355, 3.55, ... and else with one: the Particle
    Data Group's rule (Review of Particle Physics, introduction, section 5.3). 0 shows the value alone.
    """
    shown = half * quantity.scale
    if not shown > 0:
        return quantity.text(value)
    digits = -math.floor(math.log10(shown))
    digits += float(f"{shown:.2e}"[:4]) < 3.55
    digits = min(max(digits, 0), quantity.digits)
    if not float(f"{shown:.{digits}f}"):
        return quantity.text(value)
    unit = f" {quantity.unit}" if quantity.unit else ""
    return f"{value * quantity.scale:,.{digits}f} ± {shown:,.{digits}f}{unit}"


def figure(metrics: Metrics, values: Values, name: str, certain: bool = True) -> str:
    """The named figure of a trial, with its interval where `NAME_low` and `NAME_high` are there; `–` without a value.

    `certain`: show that interval.
    """
    value = _number(values.get(name))
    if value is None:
        return NONE
    low, high = _number(values.get(f"{name}_low")), _number(values.get(f"{name}_high"))
    half = max(high - value, value - low) if certain and low is not None and high is not None else 0.0
    if name.startswith("latency") and half > value:
        return f"{metrics[name].text(value)} (too noisy to tell)"
    return spread(metrics[name], value, half)


def times(values: Values, name: str) -> str:
    """How many times smaller a ratio says the value is than the dense model's: `4.2×`, `113×`."""
    ratio = _number(values.get(name))
    return NONE if ratio is None or ratio <= 0 else _factor(1 / ratio)


def _factor(factor: float) -> str:
    return f"{factor:.{1 if factor < 9.95 else 0}f}×"


def than_dense(values: Values) -> list[str]:
    """`["2.1× faster", "4.2× smaller"]` than the dense model, of what was measured; within 5 % counts as equal."""
    found = []
    for name, (better, worse, equal) in RATIOS.items():
        ratio = _number(values.get(name))
        if ratio is not None and ratio > 0:
            said = f"{_factor(max(ratio, 1 / ratio))} {better if ratio < 1 else worse}"
            found.append(equal if _EQUAL[0] < ratio < _EQUAL[1] else said)
    return found


def result(metrics: Metrics, objectives: Sequence[str], values: Values, certain: bool = False) -> list[str]:
    """What a trial came to: quality, then speed and size against the dense model, then the other objectives.

    `certain`: with intervals.
    """
    quality = [name for name in metrics.quality if name in objectives] or [metrics.first]
    found = [figure(metrics, values, name, certain) for name in quality if _number(values.get(name)) is not None]
    found += than_dense(values)
    said = {*quality, "latency_ms", "latency_ratio", "size_bytes", "size_ratio", "compression_ratio"}
    rest = [name for name in objectives if name not in said and _number(values.get(name)) is not None]
    return found + [f"{metrics[name].phrase} {figure(metrics, values, name, certain)}" for name in rest]


def span(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min, 2 h 10 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{max(0.0, seconds):.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(float(value)) else float(value)


def already(sweep: str, trials: int) -> str:
    """That a sweep is finished, and how to continue."""
    return f"{sweep}: already finished {trials} trials; raise study.budget.trials to continue, or fresh=true"
