"""The nightly verdict on sweeps of a planted objective: unchanged nights raise no alarm, a real loss does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from search.front import luck
from search.front.comparison import compare
from search.front.summary import Summary
from tests import nightly


@pytest.fixture(scope="module")
def nights() -> list[Summary]:
    """Twenty nights of one unchanged study."""
    return [nightly.sweep(seed, trials=12) for seed in range(20)]


def test_unchanged_nights_raise_at_most_one_false_alarm_in_twenty(nights: list[Summary]) -> None:
    pairs = [compare(nights[2 * i], nights[2 * i + 1]) for i in range(10)]
    pairs += [compare(nights[2 * i + 1], nights[2 * i]) for i in range(10)]
    alarms = [pair.title for pair in pairs if pair.moved[1]]
    assert len(alarms) <= 1, alarms


@pytest.mark.cluster
@pytest.mark.parametrize("trials", [12, 18, 40])
def test_false_alarms_stay_below_five_per_cent(trials: int) -> None:
    found = [nightly.sweep(seed, trials=trials) for seed in range(80)]
    alarms = sum(compare(found[i], found[i + 1]).moved[1] for i in range(0, 80, 2))
    assert alarms <= 2  # of 40


@pytest.mark.parametrize("change", [{"shift": 0.005}, {"slow": 1.3}], ids=str)
def test_a_real_loss_is_told(nights: list[Summary], change: dict[str, float]) -> None:
    worse = [nightly.sweep(100 + seed, trials=12, **change) for seed in range(3)]  # type: ignore[arg-type]
    verdicts = [compare(nights[i], each).verdict for i, each in enumerate(worse)]
    assert verdicts == ["worse beyond noise"] * 3
    assert compare(worse[0], nights[0]).verdict == "better beyond noise"


def test_what_is_not_confirmed_cannot_be_told_and_what_differs_is(nights: list[Summary]) -> None:
    bare = nightly.sweep(200, trials=12, seeds=0, shift=0.01)
    bare = replace(bare, about={**bare.about, "settings": {"seed": "0", "data.train_size": "300"}})
    found = compare(nights[0], bare)
    assert found.verdict == f"cannot tell: {bare.sweep} is unconfirmed (study.confirm.seeds)"
    assert found.moved == (False, False)
    assert found.settings == ("study.data.train_size: not set, now 300",)
    both = compare(bare, bare).verdict
    assert both == f"cannot tell: {bare.sweep} and {bare.sweep} are unconfirmed (study.confirm.seeds)"


def test_the_luck_of_few_trials_is_not_known() -> None:
    values = np.random.default_rng(0).random((6, 2))
    fixed = np.array([True, True, False, False, False, False])
    assert luck.luck(values, fixed, ["minimize", "minimize"], [1.0, 1.0]) is None


def test_a_search_that_finds_the_same_everywhere_has_no_luck() -> None:
    values = np.tile([0.5, 0.5], (12, 1))
    assert luck.luck(values, np.zeros(12, bool), ["minimize", "minimize"], [1.0, 1.0]) == pytest.approx(0.0)
    scattered = np.random.default_rng(0).random((12, 2))
    found = luck.luck(scattered, np.zeros(12, bool), ["minimize", "minimize"], [1.0, 1.0])
    assert found is not None
    assert found > 0.01


def test_the_noise_of_confirmed_points_grows_with_their_intervals() -> None:
    means = np.array([[0.2, 0.8], [0.8, 0.2]])
    small, large = (luck.noise(means, np.full((2, 2), half), ["minimize"] * 2, [1.0, 1.0]) for half in (0.01, 0.1))
    assert 0 < small < large / 5
