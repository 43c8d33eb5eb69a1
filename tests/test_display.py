"""What a sweep says of itself as it goes: one line per trial, with whatever makes its figures doubtful."""

from __future__ import annotations

import io
import re
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
WILD = {**NOISY, "metrics": record(1).metrics | {"latency_ratio_low": 1e-9, "latency_ratio_high": 35.0}}
LONG = {"words": "53 % of channels removed, 16 clusters, QAT int8, temperature 12.5, " * 2}


def display(width: int, terminal: bool, total: int = 8) -> tuple[Display, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, highlight=False, color_system=None)
    return Display(total, 0, ["accuracy", "latency_ms"], Metrics(), console), file


def lines(file: io.StringIO) -> list[str]:
    """What a terminal shows, without its control sequences."""
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", file.getvalue()).split("\n")]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "10 % of channels removed, QAT int8 · 99.13 % · 1.9× faster · 4.4× smaller"),
        ({"reference": "ptq"}, "10 % of channels removed, QAT int8 (ptq) · 99.13 %"),
        ({"feasible": False}, " [infeasible]"),
        ({"duplicate_of": 0}, " [same as trial 0]"),
        (NOISY, " [noisy: latency ± 8 %]"),
        (WILD, " [too noisy: latency not known]"),
    ],
)
def test_a_trial_is_one_line_of_a_log_with_all_of_it(changes: dict[str, Any], says: str) -> None:
    made, file = display(60, terminal=False)
    with made:
        made.record(record(1, **changes), 8)
        made.record(failed(2, "the loss became NaN"), 8)
    first, second = file.getvalue().splitlines()
    assert first.startswith("[1/8] trial 1: 10 % of channels removed")
    assert says in first
    assert second.startswith("[2/8] trial 2: ")
    assert second.endswith("FAILED: the loss became NaN")


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("changes", [{}, LONG, NOISY, {"feasible": False, **LONG}], ids=["", "long", "noisy", "bad"])
def test_on_a_terminal_no_line_is_wider_than_it(width: int, changes: dict[str, Any]) -> None:
    made, file = display(width, terminal=True, total=18)
    made.record(record(11, **changes), 18)
    made.started(12, "trial 12: 53 % of channels removed, QAT int8, temperature 5.3")
    made.progress(12, "fine-tune", 0.5)
    made.console.print(made._render())
    made.record(
        failed(2, "a reason that is told in a hundred words, and then a hundred more of them, which is long"), 18
    )
    shown = lines(file)
    assert [line for line in shown if len(line) > width] == []
    trials = [line for line in shown if "trial 11:" in line]
    assert len(trials) == 1
    assert "98." in trials[0] or "99." in trials[0], "the first figure is never what is cut"
    assert sum(line.startswith("[ 2/18] trial 2: ") for line in shown) == 1


def test_time_left_is_told_only_while_something_is_left() -> None:
    made, file = display(80, terminal=True, total=2)
    for number, says in ((0, None), (1, True), (2, False)):
        if number:
            made.record(record(number), 2)
        file.truncate(0)
        made.console.print(made._render())
        shown = " ".join(lines(file))
        assert f"{number} of 2" in shown
        assert (" left" in shown) == bool(says)


def test_a_new_phase_counts_from_its_own_start() -> None:
    made, file = display(80, terminal=True, total=2)
    made.phase("confirm", 18, 12)
    made.console.print(made._render())
    assert re.search(r"confirm ━+ +12 of 18 · 0 s$", lines(file)[0])
    assert made.state()["total"] == 18
