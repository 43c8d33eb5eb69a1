"""Front, knee and hypervolume against brute force; the noise-aware rule is a strict partial order."""

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from search.front.pareto import (
    displaces,
    front,
    hypervolume,
    hypervolume_curve,
    knee,
    nearest_feasible,
    noise_front,
)

DOWN2, DOWN3 = ("minimize",) * 2, ("minimize",) * 3
MIXED = ("maximize", "minimize", "minimize")
# A coarse grid, so that ties, equal points and shared interval ends really occur.
grid = st.integers(0, 6).map(float)


def dominates(a: np.ndarray, b: np.ndarray, directions: Sequence[str]) -> bool:
    signs = np.where(np.array(directions) == "maximize", -1.0, 1.0)
    left, right = a * signs, b * signs
    return bool(np.isfinite([left, right]).all() and (left <= right).all() and (left < right).any())


def tables(m: int, most: int = 7) -> st.SearchStrategy[np.ndarray]:
    return st.integers(1, most).flatmap(lambda n: arrays(np.float64, (n, m), elements=grid))


@st.composite
def intervals(draw: st.DrawFn, m: int = 3) -> tuple[np.ndarray, np.ndarray]:
    low = draw(tables(m))
    width = draw(arrays(np.float64, low.shape, elements=st.integers(0, 3).map(float)))
    return low, low + width


def test_front_keeps_the_trade_offs_and_the_first_of_equal_points() -> None:
    values = np.array([[0.99, 2.0], [0.98, 1.0], [0.97, 1.5], [0.98, 1.0], [0.99, 3.0]])
    assert front(values, ("maximize", "minimize")).tolist() == [True, True, False, False, False]


def test_a_point_that_was_not_measured_is_on_no_front_and_drives_none_off() -> None:
    values = np.array([[np.nan, 0.0], [1.0, 1.0], [-np.inf, -np.inf], [0.0, np.inf]])
    assert front(values, DOWN2).tolist() == [False, True, False, False]
    assert hypervolume(values, DOWN2, (2.0, 2.0)) == 1.0
    assert knee(values[:1], DOWN2) is None
    assert not dominates(values[2], values[1], DOWN2)


@given(tables(3))
def test_front_equals_brute_force(values: np.ndarray) -> None:
    n = len(values)
    expected = [
        not any(dominates(values[j], values[i], MIXED) for j in range(n))
        and not any((values[j] == values[i]).all() for j in range(i))
        for i in range(n)
    ]
    assert front(values, MIXED).tolist() == expected


def test_an_empty_table_has_an_empty_front_and_no_knee() -> None:
    nothing = np.empty((0, 2))
    assert front(nothing, DOWN2).tolist() == []
    assert knee(nothing, DOWN2) is None
    assert hypervolume(nothing, DOWN2, (1.0, 1.0)) == 0.0
    assert len(hypervolume_curve(nothing, DOWN2, (1.0, 1.0))) == 0


def test_wrong_direction_and_wrong_shape_name_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"directions\[1\]: 'down' is not valid; choose from minimize, maximize"):
        front(np.zeros((1, 2)), ("minimize", "down"))
    with pytest.raises(ValueError, match="does not fit 2 directions"):
        front(np.zeros((1, 3)), DOWN2)


def test_knee_is_the_point_farthest_from_the_line_through_the_ends() -> None:
    values = np.array([[0.0, 10.0], [1.0, 2.0], [4.0, 1.5], [10.0, 0.0], [9.0, 9.0]])
    ends = values[3] - values[0]
    scaled = (values[:4] - [0, 0]) / [10, 10]
    distance = [(ends[0] * (p[1] - 1) - ends[1] * p[0]) / np.hypot(*ends) for p in scaled]
    assert knee(values, DOWN2) == int(np.argmin(distance)) == 1


@given(tables(2))
def test_knee_does_not_depend_on_units(values: np.ndarray) -> None:
    assert knee(values, DOWN2) == knee(values * [1000.0, 0.01] + [3.0, -5.0], DOWN2)
    flipped = np.column_stack([values[:, 0], -values[:, 1]])
    assert knee(values, DOWN2) == knee(flipped, ("minimize", "maximize"))


def _inclusion_exclusion(values: np.ndarray, reference: np.ndarray) -> float:
    total = 0.0
    for size in range(1, len(values) + 1):
        for chosen in combinations(values, size):
            total -= (-1) ** size * np.prod(np.maximum(reference - np.max(chosen, axis=0), 0.0))
    return total


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_hypervolume_equals_inclusion_and_exclusion(m: int) -> None:
    @settings(max_examples=40)
    @given(tables(m, most=6))
    def check(values: np.ndarray) -> None:
        expected = _inclusion_exclusion(values, np.full(m, 5.0))
        assert hypervolume(values, ("minimize",) * m, (5.0,) * m) == pytest.approx(expected, abs=1e-9)

    check()


def test_hypervolume_of_maximized_objectives() -> None:
    assert hypervolume(np.array([[0.9, 2.0], [0.8, 1.0]]), ("maximize", "minimize"), (0.5, 4.0)) == pytest.approx(
        0.4 * 2 + 0.3 * 1
    )
    with pytest.raises(ValueError, match="must be finite"):
        hypervolume(np.zeros((1, 2)), DOWN2, (1.0, np.inf))


@given(tables(3))
def test_the_curve_is_the_hypervolume_of_each_beginning(values: np.ndarray) -> None:
    reference = (0.0, 5.0, 5.0)
    curve = hypervolume_curve(values, MIXED, reference)
    assert curve == pytest.approx([hypervolume(values[: i + 1], MIXED, reference) for i in range(len(values))])
    assert (np.diff(curve) >= 0).all()


@given(intervals())
def test_displaces_is_a_strict_partial_order(ends: tuple[np.ndarray, np.ndarray]) -> None:
    order = displaces(*ends, MIXED)
    n = len(order)
    assert not order.diagonal().any()
    assert not (order & order.T).any()
    for a, b, c in product(range(n), repeat=3):
        assert not (order[a, b] and order[b, c]) or order[a, c]


@given(intervals())
def test_a_point_better_beyond_its_interval_somewhere_is_never_displaced(ends: tuple[np.ndarray, np.ndarray]) -> None:
    low, high = ends
    order = displaces(low, high, DOWN3)
    for a, b in product(range(len(low)), repeat=2):
        if (high[b] < low[a]).any():
            assert not order[a, b]


@given(intervals())
def test_displaced_points_have_someone_on_the_front_who_displaces_them(ends: tuple[np.ndarray, np.ndarray]) -> None:
    low, high = ends
    members, order = noise_front(low, high, MIXED), displaces(low, high, MIXED)
    for b in np.flatnonzero(~members):
        same = [(low[a] == low[b]).all() and (high[a] == high[b]).all() for a in range(len(low))]
        assert (members & (order[:, b] | same)).any()


@given(intervals())
def test_the_noise_front_holds_the_front_of_the_midpoints(ends: tuple[np.ndarray, np.ndarray]) -> None:
    low, high = ends
    assert not (front((low + high) / 2, MIXED) & ~noise_front(low, high, MIXED)).any()


@given(tables(3))
def test_without_noise_displacing_is_dominating(values: np.ndarray) -> None:
    order = displaces(values, values, MIXED)
    for a, b in product(range(len(values)), repeat=2):
        assert order[a, b] == dominates(values[a], values[b], MIXED)
    assert noise_front(values, values, MIXED).tolist() == front(values, MIXED).tolist()


def test_overlapping_intervals_displace_nothing() -> None:
    low, high = np.array([[1.0, 1.0], [1.9, 1.0]]), np.array([[2.0, 1.0], [2.9, 1.0]])
    assert not displaces(low, high, DOWN2).any()
    assert displaces(low, high - [[0.2, 0], [0, 0]], DOWN2).tolist() == [[False, True], [False, False]]
    with pytest.raises(ValueError, match="low end lies above its high end"):
        displaces(high, low, DOWN2)


def test_nearest_feasible_weighs_constraints_of_different_units() -> None:
    # points of accuracy beside bytes: without scaling the bytes alone would decide
    violations = np.array([[0.02, 0.0], [0.0, 90_000.0], [0.01, 10_000.0], [np.nan, 0.0]])
    assert nearest_feasible(violations) == 2
    assert nearest_feasible(np.array([[0.5], [-1.0]])) == 1
    assert nearest_feasible(np.full((2, 1), np.nan)) is None
    assert nearest_feasible(np.empty((0, 2))) is None
