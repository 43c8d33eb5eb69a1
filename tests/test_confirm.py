"""Confirmation: candidates near the front, means with honest intervals, and an optimist that does not survive."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.front.interval import mean_interval, pooled_interval, student
from search.study.config import Confirm
from search.study.metrics import Metrics
from search.sweep.candidates import candidates, repeats, reseeded, seconds, seeds_for
from search.sweep.confirmed import Confirmed, front
from search.trial.record import TrialRecord
from trainers.recipe import Recipe

OBJECTIVES = ["accuracy", "latency_ms"]


def record(number: int, accuracy: float, latency: float, feasible: bool = True) -> TrialRecord:
    recipe = {"model": "lenet5", "pruning": {"granularity": "channel", "sparsity": 0.01 * (number + 1)}}
    metrics = {"accuracy": accuracy, "latency_ms": latency}
    return TrialRecord(number, "complete", 0, 1, recipe=recipe, metrics=metrics, feasible=feasible, words=str(number))


def point(number: int, accuracy: tuple[float, float], latency: tuple[float, float], feasible: bool = True) -> Confirmed:
    metrics = {n: (sum(i) / 2, *i) for n, i in (("accuracy", accuracy), ("latency_ms", latency))}
    return Confirmed(number, str(number), 3, metrics, (), "", feasible, False)


def test_the_interval_of_the_mean_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        _, low, high = mean_interval(list(random.normal(5.0, 2.0, 3)))
        hits += low <= 5.0 <= high
    assert 0.935 < hits / 2000 < 0.965


def test_a_second_run_of_equal_size_lies_inside_as_often_as_theory_says() -> None:
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        _, low, high = mean_interval(list(random.normal(0.0, 1.0, 3)))
        inside += low <= random.normal(0.0, 1.0, 3).mean() <= high
    assert 0.88 < inside / 2000 < 0.93  # P(|t_2| < 4.303 / sqrt 2) = 0.907


@pytest.mark.parametrize("relative", [False, True])
def test_two_values_with_pooled_spread_cover_as_often_as_three_alone_and_are_narrower(relative: bool) -> None:
    random = np.random.default_rng(2)
    hits, widths, alone = 0, 0.0, 0.0
    for _ in range(2000):
        groups = [list(random.normal(mean, 0.02 * mean if relative else 1.0, 2)) for mean in (50, 60, 70, 80, 90, 100)]
        mean, low, high = pooled_interval(groups[0], groups, relative=relative)
        assert mean == pytest.approx(np.mean(groups[0]))
        hits += low <= 50 <= high
        widths += (high - low) / 2
        three = mean_interval(list(random.normal(50, 1.0, 3)))
        alone += (three[2] - three[1]) / 2
    assert 0.935 < hits / 2000 < 0.98
    assert widths < 0.85 * alone


def test_a_candidate_that_scatters_far_more_than_the_others_keeps_an_interval_of_its_own() -> None:
    calm = [[0.99, 0.991], [0.98, 0.9805], [0.97, 0.9712], [0.96, 0.9603]]
    wild = [0.9, 0.6]
    assert pooled_interval(wild, [wild, *calm]) == mean_interval(wild)
    _, low, high = pooled_interval(calm[0], calm)
    assert high - low < 0.25 * np.ptp(mean_interval(calm[0])[1:])


def test_there_are_as_many_seeds_as_the_pool_of_candidates_needs() -> None:
    records = [record(n, 0.9, 1.0) for n in range(6)]
    dense = replace(records[0], recipe={"model": "lenet5"})
    assert [seeds_for(records[:n], Confirm()) for n in (1, 2, 3, 6)] == [3, 3, 2, 2]
    assert seeds_for([dense] * 6, Confirm()) == 3
    assert [seeds_for(records[:2], Confirm(seeds=n)) for n in (1, 3, 5)] == [1, 3, 5]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8), st.floats(0, 1))
def test_the_interval_holds_the_mean_and_is_never_narrower_than_the_resolution(
    values: list[float], resolution: float
) -> None:
    mean, low, high = mean_interval(values, resolution)
    assert low <= mean <= high
    assert high - low >= 2 * resolution - 1e-9 * max(1.0, abs(mean))


def test_candidates_are_the_front_and_what_lies_just_behind_it() -> None:
    records = [record(0, 0.99, 1.0), record(1, 0.98, 0.5), record(2, 0.97, 0.2)]  # the front
    records += [record(3, 0.979, 0.51), record(4, 0.90, 0.9), record(5, 0.999, 0.1, feasible=False)]
    assert [r.number for r in candidates(records, OBJECTIVES, Confirm(), Metrics())] == [0, 1, 2, 3, 4]
    assert [r.number for r in candidates(records, OBJECTIVES, Confirm(neighbours=0), Metrics())] == [0, 1, 2]
    assert [r.number for r in candidates(records, OBJECTIVES, Confirm(candidates=4), Metrics())] == [0, 1, 2, 3]
    assert [r.number for r in candidates(records, OBJECTIVES, Confirm(candidates=2), Metrics())] == [0, 2]


def test_without_a_feasible_trial_the_nearest_are_candidates_since_confirmed_values_decide() -> None:
    records = [
        replace(record(n, 0.9, 1.0, feasible=False), violations={"accuracy_drop <= 0.01": v, "latency_ms <= 1": 0.0})
        for n, v in enumerate((0.03, 0.002, 0.02, 0.01))
    ]
    assert [r.number for r in candidates(records, OBJECTIVES, Confirm(neighbours=1), Metrics())] == [1, 3]
    assert [r.number for r in candidates(records, OBJECTIVES, Confirm(candidates=1), Metrics())] == [1]
    assert candidates([], OBJECTIVES, Confirm(), Metrics()) == []


@given(st.lists(st.tuples(st.floats(0.5, 1), st.floats(0.1, 2)), min_size=1, max_size=12), st.integers(1, 12))
@settings(max_examples=50)
def test_a_front_that_fits_is_wholly_among_the_candidates(values: list[tuple[float, float]], most: int) -> None:
    records = [record(i, *v) for i, v in enumerate(values)]
    chosen = candidates(records, OBJECTIVES, Confirm(candidates=most), Metrics())
    assert len(chosen) == min(most, len(records))
    best = max(values)[0]
    assert any(r.metrics["accuracy"] == best for r in chosen) or most == 1


def test_another_seed_is_all_that_changes() -> None:
    before = Recipe.from_dict(record(0, 0.9, 1.0).recipe)
    assert reseeded(record(0, 0.9, 1.0), 7) == replace(before, seed=7) != before


def test_the_confirmed_front_follows_intervals_and_feasibility() -> None:
    points = [
        point(0, (0.98, 0.99), (1.0, 1.1)),
        point(1, (0.97, 0.985), (0.4, 0.5)),
        point(2, (0.90, 0.95), (0.6, 0.7)),  # surely worse than 1 in both
        point(3, (0.999, 1.0), (0.1, 0.2), feasible=False),
    ]
    assert [p.on_front for p in front(points, OBJECTIVES, Metrics())] == [True, True, False, False]
    assert front([], OBJECTIVES, Metrics()) == []


def test_plain_data_and_back() -> None:
    import json

    one = front([point(0, (0.98, 0.99), (1.0, 1.1))], OBJECTIVES, Metrics())[0]
    assert Confirmed.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (99, 1.9842)]
)
def test_the_quantile_is_that_of_the_tables(freedom: int, t: float) -> None:
    assert student(freedom) == pytest.approx(t, abs=5e-5)


def test_a_recipe_that_trains_nothing_is_confirmed_by_one_file() -> None:
    trained = record(0, 0.9, 1.0)
    dense = replace(trained, recipe={"model": "lenet5", "quantization": {"scheme": "static_int8"}})
    assert [recipe.seed for recipe in repeats(trained, Confirm(seeds=3), 3)] == [1_000_000, 1_000_001, 1_000_002]
    assert [recipe.seed for recipe in repeats(dense, Confirm(seeds=3), 3)] == [1_000_000]


def test_what_a_training_takes_leaves_out_what_only_a_trial_does() -> None:
    assert seconds(replace(record(0, 0.9, 1.0), stages={"finetune": 5.0, "export": 1.0, "measure": 9.0})) == 6.0
