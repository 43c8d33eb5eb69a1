"""What a sweep says of itself as it goes: one line per trial, with whatever makes its figures doubtful."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from search.study.metrics import Metrics
from search.sweep.display import Display
from tests.sweeps import failed, record

NOISY = {
    "metrics": record(1).metrics | {"latency_ratio": 0.5, "latency_ratio_low": 0.46, "latency_ratio_high": 0.54},
    "environment": {"noisy": ["the machine is too noisy to tell"]},
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "accuracy 99.13 %, latency_ms 0.0649 ms"),
        ({"reference": "ptq"}, "channel 10 % · qat int8 (ptq): accuracy"),
        ({"feasible": False}, " [infeasible]"),
        ({"duplicate_of": 0}, " [same as trial 0]"),
        (NOISY, " [noisy: latency ± 8 %]"),
    ],
)
def test_a_trial_is_one_line(changes: dict[str, Any], says: str) -> None:
    console = Console(file=io.StringIO(), width=400)
    display = Display(8, 0, ["accuracy", "latency_ms"], Metrics(), console)
    with display:
        display.record(record(1, **changes), 8)
        display.record(failed(2, "the loss became NaN"), 8)
    first, second = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert first.startswith("[  1/8] trial 1: channel 10 %")
    assert says in first
    assert second.startswith("[  2/8] trial 2: ")
    assert second.endswith("FAILED: the loss became NaN")
