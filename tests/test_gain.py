"""What a candidate is expected to add, against counting, sampling and the hypervolume itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from search.front import pareto
from search.sampling.gain import boxes, expected_gain, front_probability, gain_share, spread

MIXED = ("maximize", "minimize", "minimize")
REFERENCE = (0.0, 7.0, 7.0)
grid = st.integers(0, 7).map(float)  # coarse, so that ties and points on the reference really occur


def tables(m: int, most: int = 7) -> st.SearchStrategy[np.ndarray]:
    return st.integers(0, most).flatmap(lambda n: arrays(np.float64, (n, m), elements=grid))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4).flatmap(lambda m: st.tuples(st.just(m), tables(m))))
def test_the_boxes_are_disjoint_and_cover_exactly_what_no_member_dominates(case: tuple[int, np.ndarray]) -> None:
    m, table = case
    limit = np.full(m, 6.0)
    members = table[pareto.front(table, ["minimize"] * m)] if len(table) else table
    members = members[(members < limit).all(axis=1)]
    low, high = boxes(members, limit)
    for point in np.random.default_rng(0).uniform(-1, 6.5, (80, m)):
        inside = ((low <= point) & (point < high)).all(axis=1).sum()
        free = (point < limit).all() and not (members <= point).all(axis=1).any()
        assert inside == int(free)


@settings(max_examples=80, deadline=None)
@given(tables(3), arrays(np.float64, (4, 3), elements=grid))
def test_a_known_candidate_gains_what_it_adds_to_the_hypervolume(front: np.ndarray, points: np.ndarray) -> None:
    gains = expected_gain(front, MIXED, REFERENCE, points, np.zeros((4, 3)))
    before = pareto.hypervolume(front, MIXED, REFERENCE)
    for point, gain in zip(points, gains, strict=True):
        after = pareto.hypervolume(np.vstack([front.reshape(-1, 3), point]), MIXED, REFERENCE)
        assert gain == pytest.approx(after - before, abs=1e-9)


@pytest.mark.parametrize("std", [(0.8, 0.0, 0.0), (0.8, 0.3, 0.0), (1.5, 0.4, 0.9)])
@pytest.mark.parametrize("seed", range(3))
def test_expected_gain_and_probability_equal_the_mean_over_samples(std: tuple[float, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    front = rng.uniform(0.5, 6.5, (8, 3))
    mean = rng.uniform(1, 6, 3)
    drawn = mean + np.array(std) * rng.standard_normal((4000, 3))
    gains = expected_gain(front, MIXED, REFERENCE, drawn, np.zeros((4000, 3)))
    expected = float(expected_gain(front, MIXED, REFERENCE, mean, np.array(std))[0])
    assert expected == pytest.approx(gains.mean(), abs=4 * gains.std() / np.sqrt(len(gains)) + 1e-9)
    chance = float(front_probability(front, MIXED, REFERENCE, mean, np.array(std))[0])
    assert chance == pytest.approx((gains > 0).mean(), abs=0.035)


@settings(max_examples=50, deadline=None)
@given(tables(3), arrays(np.float64, 3, elements=grid), st.floats(0.01, 3))
def test_a_larger_front_leaves_less_to_gain_and_doubt_leaves_more(
    front: np.ndarray, point: np.ndarray, std: float
) -> None:
    some = expected_gain(front[: len(front) // 2], MIXED, REFERENCE, point, np.array([std, 0, 0]))
    more = expected_gain(front, MIXED, REFERENCE, point, np.array([std, 0, 0]))
    sure = expected_gain(front, MIXED, REFERENCE, point, np.array([std / 2, 0, 0]))
    assert more <= some + 1e-9
    assert sure <= more + 1e-9  # the growth is convex in each objective, so that spread never lessens its mean


def test_within_the_noise_a_member_does_not_count_as_better() -> None:
    front, directions = np.array([[0.990, 1.0]]), ("maximize", "minimize")
    point, known = np.array([0.9895, 1.0]), np.zeros(2)
    assert front_probability(front, directions, (0.9, 2.0), point, known)[0] == 0.0
    assert front_probability(front, directions, (0.9, 2.0), point, known, noise=(0.001, 0.0))[0] == 1.0
    assert front_probability(front, directions, (0.9, 2.0), point, known, noise=(0.0004, 0.0))[0] == 0.0


def test_the_share_is_of_the_present_hypervolume_and_without_one_everything_counts() -> None:
    front, directions = np.array([[0.5, 1.0]]), ("maximize", "minimize")
    share = gain_share(front, directions, (0.0, 2.0), np.array([[1.0, 1.0], [0.4, 1.5]]), np.zeros((2, 2)))
    assert share.tolist() == pytest.approx([1.0, 0.0])
    nothing = gain_share(np.empty((0, 2)), directions, (0.0, 2.0), np.array([[1.0, 1.0], [1.0, 3.0]]), np.zeros((2, 2)))
    assert nothing.tolist() == [np.inf, 0.0]


def test_an_interval_gives_the_standard_deviation_of_a_normal() -> None:
    assert spread(np.array([-1.96]), np.array([1.96]))[0] == pytest.approx(1.0, abs=1e-4)


def test_mistakes_are_named() -> None:
    front, directions = np.array([[0.5, 1.0]]), ("maximize", "minimize")
    with pytest.raises(ValueError, match="std: below 0"):
        expected_gain(front, directions, (0, 2), np.array([0.5, 1]), np.array([-1, 0]))
    with pytest.raises(ValueError, match="std: shape"):
        expected_gain(front, directions, (0, 2), np.array([0.5, 1]), np.array([1.0]))
    with pytest.raises(ValueError, match="must be finite"):
        expected_gain(front, directions, (0, np.inf), np.array([0.5, 1]), np.zeros(2))
