"""Promotion by noise-aware Pareto rank, against its definition."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from search.front.pareto import displaces
from search.sampling.rungs import best_first, promotable, promotes, ranks

MIXED = ("maximize", "minimize", "minimize")


@st.composite
def intervals(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = (draw(st.integers(1, 9)), 3)
    low = draw(arrays(np.float64, shape, elements=st.integers(0, 6).map(float)))
    return low, low + draw(arrays(np.float64, shape, elements=st.integers(0, 2).map(float)))


@given(intervals())
def test_a_layer_is_one_more_than_the_longest_chain_above(case: tuple[np.ndarray, np.ndarray]) -> None:
    above = displaces(*case, MIXED)

    def depth(row: int) -> int:
        return max((1 + depth(int(other)) for other in np.flatnonzero(above[:, row])), default=0)

    assert ranks(*case, MIXED).tolist() == [depth(row) for row in range(len(above))]


@settings(deadline=None)
@given(intervals(), st.sampled_from([0.25, 1 / 3, 0.5, 1.0]))
def test_the_best_share_is_promoted_and_no_worse_layer_before_a_better(
    case: tuple[np.ndarray, np.ndarray], share: float
) -> None:
    rows = promotable(*case, MIXED, share=share)
    layers = ranks(*case, MIXED)
    assert len(rows) == math.ceil(share * len(layers) - 1e-9)
    passed = [layers[row] for row in range(len(layers)) if row not in rows]
    assert max(layers[rows]) <= min(passed, default=len(layers))
    assert [promotes(*case, MIXED, row, share=share) for row in range(len(layers))] == [
        row in rows for row in range(len(layers))
    ]
    assert sorted(best_first(*case, MIXED)) == list(range(len(layers)))


def test_what_was_promoted_is_not_promoted_again_and_a_result_passed_over_may_come_later() -> None:
    values = np.array([[0.9], [0.8]])
    assert promotable(values, values, ("maximize",)) == [0]
    assert promotable(values, values, ("maximize",), promoted=np.array([True, False])) == []
    later = np.array([[0.9], [0.8], [0.7], [0.6]])
    assert promotable(later, later, ("maximize",), promoted=np.array([True, False, False, False])) == [1]


def test_of_equal_layers_the_redundant_comes_last() -> None:
    values = np.array([[0.9, 1.0], [0.899, 0.999], [0.5, 0.1]])  # all on one front; the first two nearly the same
    order = best_first(values, values, ("maximize", "minimize")).tolist()
    assert order[-1] in (0, 1)
    assert 2 in order[:2]


def test_within_the_noise_nothing_is_beaten() -> None:
    values, half = np.array([[0.990, 1.0], [0.9895, 1.0]]), np.array([0.001, 0.0])
    assert ranks(values, values, ("maximize", "minimize")).tolist() == [0, 1]
    wide = np.array([[0.990, 1.0], [0.9895, 1.01]])
    assert ranks(wide - half, wide + half, ("maximize", "minimize")).tolist() == [0, 1]  # surely slower, not better
    better = np.array([[0.990, 1.0], [0.9905, 1.01]])
    assert ranks(better - half, better + half, ("maximize", "minimize")).tolist() == [0, 0]


def test_what_was_not_measured_is_never_promoted_and_infeasible_comes_after_feasible() -> None:
    values = np.array([[np.nan], [0.8], [0.9]])
    assert promotable(values, values, ("maximize",), share=1.0) == [2, 1]
    assert promotable(values, values, ("maximize",), share=0.3, feasible=np.array([True, True, False])) == [1]


@pytest.mark.parametrize("share", [0.0, 1.5, math.nan])
def test_a_share_outside_its_range_is_named(share: float) -> None:
    with pytest.raises(ValueError, match="share: "):
        promotable(np.zeros((1, 1)), np.zeros((1, 1)), ("minimize",), share=share)
