"""The model of a metric: what it predicts, how sure it is, and how recipes look to it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.sampling.encoding import Columns, features
from search.sampling.surrogate import MOST, Surrogate
from trainers.recipe import Distillation, FineTuning, Pruning, Quantization, Recipe


def points(n: int, seed: int = 0) -> list[dict[str, float | str]]:
    rng = np.random.default_rng(seed)
    return [{"x": float(rng.uniform()), "kind": str(rng.choice(["a", "b", "c"]))} for _ in range(n)]


def truth(point: dict[str, float | str]) -> float:
    return 0.98 - 0.01 * float(point["x"]) ** 2 - {"a": 0.0, "b": 0.004, "c": 0.002}[str(point["kind"])]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_it_predicts_and_its_intervals_hold(direction: str) -> None:
    rng, sign = np.random.default_rng(1), 1.0 if direction == "maximize" else -1.0
    seen, others = points(40), points(200, seed=2)
    values = [sign * truth(p) + rng.normal(0, 0.0005) for p in seen]
    model = Surrogate(direction).fit(seen, values)
    mean, std = model.predict(others)
    wanted = sign * np.array([truth(p) for p in others])
    assert np.sqrt(np.mean((mean - wanted) ** 2)) < 0.0008  # of a spread of 0.0035
    assert 0.0002 < model.noise < 0.0012
    assert (np.abs(mean - wanted) < 1.96 * std).mean() > 0.8
    assert (model.predict(others, luck=True)[1] > std).all()


def test_where_nothing_is_known_it_is_less_sure() -> None:
    near = [{"x": float(x)} for x in np.linspace(0, 0.4, 12)]
    model = Surrogate().fit(near, [math.sin(8 * float(p["x"])) for p in near])
    _, (inside, outside) = model.predict([{"x": 0.2}, {"x": 1.0}])
    assert outside > 3 * inside


def test_given_noise_a_doubtful_value_moves_it_less() -> None:
    seen = [{"x": x / 5} for x in range(6)]
    values = [0.0, 0.1, 0.0, 0.1, 0.0, 1.0]
    trusting = Surrogate().fit(seen, values, noise=0.01).predict([{"x": 1.0}])[0][0]
    doubting = Surrogate().fit(seen, values, noise=[0.01] * 5 + [1.0]).predict([{"x": 1.0}])[0][0]
    assert doubting < trusting - 0.1


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5, 0.5, 0.5], [0.1, 0.2, 0.9]])
def test_with_few_or_equal_values_it_predicts_their_mean(values: list[float]) -> None:
    mean, std = Surrogate().fit(points(len(values)), values).predict(points(3, seed=5))
    assert np.isfinite(std).all()
    assert mean == pytest.approx([np.mean(values)] * 3, abs=0.25)


def test_a_network_that_lost_everything_does_not_spoil_the_rest() -> None:
    seen, others = points(40), points(100, seed=2)
    values = [truth(p) for p in seen]
    values[3] = 0.1
    values[7] = math.nan
    mean, _ = Surrogate().fit(seen, values).predict(others)
    assert np.median(np.abs(mean - [truth(p) for p in others])) < 0.0015


def test_of_many_points_the_best_and_the_newest_are_learned_from_in_bounded_time() -> None:
    seen = points(MOST + 300)
    values = [truth(p) for p in seen]
    model = Surrogate().fit(seen, values)
    best = int(np.argmax(values))
    assert model.predict([seen[best]])[0][0] == pytest.approx(values[best], abs=0.001)


def test_the_same_points_give_the_same_model() -> None:
    seen, others = points(30), points(5, seed=3)
    once, again = (Surrogate().fit(seen, [truth(p) for p in seen]).predict(others) for _ in range(2))
    assert (once[0] == again[0]).all()
    assert (once[1] == again[1]).all()


def test_what_was_fitted_before_does_not_matter() -> None:
    seen, others = points(30), points(5, seed=3)
    values, model = [truth(p) for p in seen], Surrogate()
    for n in (5, 9, 30):
        model.fit(seen[:n], values[:n])
    fresh = Surrogate().fit(seen, values)
    assert (model.predict(others)[0] == fresh.predict(others)[0]).all()


def test_what_is_expected_of_running_trials_leaves_the_mean_and_lessens_the_doubt() -> None:
    seen: list[dict[str, float | str]] = [{"x": x / 10} for x in (0, 1, 2, 3, 9, 10)]
    model = Surrogate().fit(seen, [math.sin(4 * float(p["x"])) for p in seen], noise=0.001)
    (before, later), (doubt, near) = model.predict([{"x": 0.6}, {"x": 0.63}])
    model.expecting([{"x": 0.6}])
    (mean, close), (left, left_near) = model.predict([{"x": 0.6}, {"x": 0.63}])
    assert (mean, close) == pytest.approx((before, later), abs=1e-3)
    assert left < 0.1 * doubt
    assert left_near < 0.5 * near


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="choose from maximize, minimize"):
        Surrogate("upward")
    with pytest.raises(ValueError, match="none is finite"):
        Surrogate().fit([{"x": 1.0}], [math.nan])


@settings(deadline=None)
@given(
    st.sampled_from(["none", "unstructured", "channel", "n_m"]),
    st.floats(0.1, 0.95),
    st.sampled_from(["none", "static_int8", "qat_int8", "qat_int4"]),
    st.sampled_from(["none", "soft", "hard"]),
    st.floats(1e-4, 1e-2),
)
def test_equal_work_is_one_point_and_every_feature_a_finite_number_or_a_word(
    granularity: str, sparsity: float, scheme: str, kind: str, rate: float
) -> None:
    recipe = Recipe(
        "net",
        pruning=Pruning(granularity, sparsity),
        quantization=Quantization(scheme),
        distillation=Distillation(kind, temperature=3.0, alpha=0.5),
        finetuning=FineTuning(learning_rate=rate, epochs=0.25),
    )
    found = features(recipe)
    assert found == features(recipe.canonical())
    assert all(isinstance(value, str) or math.isfinite(value) for value in found.values())


def test_recipes_of_different_kinds_share_what_they_have_in_common() -> None:
    weights = features(Recipe("net", pruning=Pruning("unstructured", 0.75), quantization=Quantization("qat_int4")))
    channels = features(Recipe("net", pruning=Pruning("channel", 0.5)))
    assert weights["density"] == channels["density"] == -2.0
    assert (weights["width"], channels["width"]) == (1.0, 0.5)
    assert (weights["bits"], channels["bits"]) == (2.0, 5.0)


def test_columns_hold_what_varies_scaled_and_a_missing_name_in_the_middle() -> None:
    seen: list[dict[str, float | str]] = [
        {"x": 2.0, "k": "a", "c": 1.0},
        {"x": 4.0, "k": "b", "c": 1.0},
        {"c": 1.0, "k": "c"},
    ]
    table = Columns(seen).table([*seen, {"x": 5.0, "k": "d"}])
    assert table.tolist() == [[0, 1, 0, 0], [1, 0, 1, 0], [0.5, 0, 0, 1], [1.5, 0, 0, 0]]
    assert Columns([{"x": 1.0}]).table([{"x": 3.0}]).shape == (1, 1)
