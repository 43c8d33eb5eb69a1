"""Search spaces: what is open is sampled, what has no effect is not, references are points of the space."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.study.parse import parse
from search.study.space import SpaceError, nest
from tasks.mnist.task import MODELS
from trainers.base import capabilities
from trainers.recipe import Distillation, FineTuning, Recipe, flatten

OPEN = {
    "trainer": "pytorch",
    "model": "lenet5",
    "pruning": {
        "granularity": {"choices": ["none", "unstructured", "n_m", "channel"]},
        "sparsity": {"unstructured": {"low": 0.5, "high": 0.95}, "channel": {"low": 0.2, "high": 0.8, "step": 0.1}},
        "schedule": {"choices": ["one_shot", "gradual"]},
    },
    "quantization": {"scheme": {"choices": ["none", "static_int8", "qat_int8", "qat_int4"]}},
    "distillation": {
        "kind": {"choices": ["none", "soft", "hard"]},
        "temperature": {"low": 1, "high": 10, "log": True},
        "alpha": {"low": 0.1, "high": 0.9},
    },
    "finetuning": {"epochs": {"low": 1, "high": 4}, "qat_epochs": 1},
}


def asked(recipe: dict[str, Any], trials: int, seed: int) -> list[tuple[Recipe, dict[str, Any]]]:
    space = parse(recipe, models=MODELS)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    found = []
    for _ in range(trials):
        trial = study.ask()
        found.append((space.suggest(trial), trial.params))
    return found


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_every_sampled_recipe_can_be_carried_out(seed: int) -> None:
    for recipe, _ in asked(OPEN, 5, seed):
        assert capabilities(recipe.trainer).problems(recipe) == []
        assert recipe == recipe.canonical()
        if recipe.pruning.granularity == "channel":
            assert 0.2 <= recipe.pruning.sparsity <= 0.8
        if recipe.pruning.granularity == "unstructured":
            assert 0.5 <= recipe.pruning.sparsity <= 0.95


def test_settings_without_effect_are_not_sampled() -> None:
    for recipe, params in asked(OPEN, 200, 0):
        fields = {name.split("@")[0] for name in params}
        assert ("distillation.temperature" in fields) == (recipe.distillation.kind == "soft")
        assert ("pruning.sparsity" in fields) == (recipe.pruning.granularity in ("unstructured", "channel"))
        assert ("pruning.schedule" in fields) == (recipe.pruning.granularity != "none")
        assert ("finetuning.epochs" in fields) == recipe.trains


def test_whole_numbers_stay_whole_and_fractions_may_be_written_whole() -> None:
    for recipe, params in asked(OPEN, 50, 1):
        assert isinstance(params.get("finetuning.epochs", 1), int)
        assert isinstance(recipe.distillation.temperature, float)


def test_a_reference_is_a_point_of_the_space_with_its_switches_off() -> None:
    space = parse(OPEN, models=MODELS)
    params = space.reference({"pruning": {"granularity": "channel", "sparsity": 0.5}})
    study = optuna.create_study()
    study.enqueue_trial(params)
    recipe = space.suggest(study.ask())
    assert recipe.describe() == "half the channels removed"


@pytest.mark.parametrize(
    ("partial", "says"),
    [
        ({"pruning": {"granularity": "block"}}, "'block' is outside the study's choices none, unstructured"),
        ({"pruning": {"granularity": "channel", "sparsity": 0.9}}, "0.9 is outside the study's range 0.2 to 0.8"),
        ({"model": "lenet300"}, "the study fixes it at 'lenet5', not 'lenet300'"),
        ({"pruning": {"sparsty": 0.5}}, "pruning.sparsty: no such recipe field"),
    ],
)
def test_a_reference_outside_the_space_is_refused(partial: dict[str, Any], says: str) -> None:
    with pytest.raises(SpaceError, match=says.replace("(", r"\(")):
        parse(OPEN, models=MODELS).reference(partial)


def test_with_two_trainers_each_chooses_among_what_it_can_do() -> None:
    both = {
        "trainer": {"choices": ["pytorch", "tensorflow"]},
        "model": "lenet5",
        "quantization": {"scheme": {"choices": ["none", "float16", "qat_int4", "qat_int8"]}},
    }
    seen: dict[str, set[str]] = {"pytorch": set(), "tensorflow": set()}
    for recipe, _ in asked(both, 100, 2):
        assert capabilities(recipe.trainer).problems(recipe) == []
        seen[recipe.trainer].add(recipe.quantization.scheme)
    assert seen == {
        "pytorch": {"none", "float16", "qat_int4", "qat_int8"},
        "tensorflow": {"none", "float16", "qat_int8"},
    }


@given(st.dictionaries(st.sampled_from(list(Recipe("m").flat())), st.integers(), max_size=8))
def test_nest_undoes_flatten(flat: dict[str, int]) -> None:
    assert flatten(nest(flat)) == flat


@given(
    granularity=st.sampled_from(["none", "unstructured", "n_m", "channel"]),
    sparsity=st.floats(0, 0.99),
    scheme=st.sampled_from(capabilities("pytorch").schemes),
    kind=st.sampled_from(["none", "soft", "hard"]),
    temperature=st.floats(0.5, 20),
    epochs=st.integers(0, 5),
)
def test_canonical_is_idempotent_and_survives_plain_data(
    granularity: str, sparsity: float, scheme: str, kind: str, temperature: float, epochs: int
) -> None:
    recipe = Recipe.from_dict(
        {
            "model": "lenet5",
            "pruning": {"granularity": granularity, "sparsity": sparsity},
            "quantization": {"scheme": scheme},
            "distillation": {"kind": kind, "temperature": temperature, "alpha": 0.5},
            "finetuning": {"epochs": epochs},
        }
    )
    once = recipe.canonical()
    assert once.canonical() == once
    assert once.digest() == recipe.digest() == Recipe.from_dict(once.to_dict()).digest()
    assert (once.pruning.granularity, once.quantization.scheme) == (granularity, scheme)


def test_distillation_without_an_epoch_to_learn_in_is_no_distillation() -> None:
    recipe = Recipe("lenet5", distillation=Distillation("soft", 4.0, 0.5), finetuning=FineTuning(epochs=0))
    assert recipe.canonical() == Recipe("lenet5")
