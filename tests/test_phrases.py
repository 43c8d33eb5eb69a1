"""Figures as people say them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.study.metrics import Metrics
from search.study.phrases import figure, result, span, spread, than_dense, times

METRICS = Metrics()


@pytest.mark.parametrize(
    ("name", "value", "half", "says"),
    [
        ("accuracy", 0.9576, 0.0026, "95.76 ± 0.26 %"),
        ("accuracy", 0.9576, 0.0061, "95.8 ± 0.6 %"),
        ("accuracy", 0.927, 0.0889, "93 ± 9 %"),
        ("accuracy", 0.927, 0.0, "92.70 %"),
        ("accuracy", 0.927, 0.000001, "92.70 %"),
        ("latency_ms", 0.02664, 0.00031, "0.0266 ± 0.0003 ms"),
        ("latency_ms", 12.5, 0.4, "12.5 ± 0.4 ms"),
        ("size_bytes", 44_712_345, 1_500, "44,712.3 ± 1.5 kB"),
    ],
)
def test_a_figure_has_no_more_digits_than_its_interval_leaves_certain(
    name: str, value: float, half: float, says: str
) -> None:
    assert spread(METRICS[name], value, half) == says


@given(st.floats(1e-6, 1e6), st.floats(0, 1e6))
def test_what_is_shown_is_near_what_was_measured(value: float, half: float) -> None:
    number = spread(METRICS["latency_ms"], value, half).split()[0].replace(",", "")
    assert abs(float(number) - value) <= max(half, 5.1e-5)


def test_an_interval_is_shown_only_where_it_is_certain() -> None:
    row = {"accuracy": 0.98, "accuracy_low": 0.97, "accuracy_high": 0.99}
    assert figure(METRICS, row, "accuracy") == "98.0 ± 1.0 %"
    assert figure(METRICS, row, "accuracy", certain=False) == "98.00 %"
    assert figure(METRICS, {}, "accuracy") == figure(METRICS, {"accuracy": math.nan}, "accuracy") == "–"


@pytest.mark.parametrize(
    ("ratio", "says", "factor"),
    [
        (0.4, "2.5× faster", "2.5×"),
        (1.25, "1.2× slower", "0.8×"),
        (0.98, "as fast", "1.0×"),
        (0.0088, "114× faster", "114×"),
    ],
)
def test_ratios_are_said_the_right_way_round(ratio: float, says: str, factor: str) -> None:
    assert than_dense({"latency_ratio": ratio}) == [says]
    assert times({"latency_ratio": ratio}, "latency_ratio") == factor


def test_a_result_is_quality_then_speed_and_size_then_other_objectives() -> None:
    row = {"accuracy": 0.95, "latency_ms": 1.0, "latency_ratio": 0.2, "size_ratio": 0.07, "sparsity": 0.9}
    said = result(METRICS, ["accuracy", "latency_ms", "sparsity"], row)
    assert " · ".join(said) == "95.00 % · 5.0× faster · 14× smaller · sparsity 90.0 %"


@pytest.mark.parametrize(("seconds", "says"), [(-1, "0 s"), (42.4, "42 s"), (130, "2 min"), (7800, "2 h 10 min")])
def test_times_are_said_in_few_words(seconds: float, says: str) -> None:
    assert span(seconds) == says
