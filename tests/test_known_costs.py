"""The sampler that knows costs: what it proposes, on the planted surface."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import planted, samplers
from search.front import pareto
from search.sampling import candidates
from search.sampling.known_costs import Interval, KnownCostSampler
from search.sampling.tpe import TPESampler
from search.study.space import Choice, Range
from trainers.recipe import Recipe

STUDY = planted.config(Path("unused"), 20, 1).study
DIRECTIONS = ["maximize", "minimize", "minimize"]
COSTS = samplers.looked_up(samplers.smooth)


def sampler(**more: object) -> KnownCostSampler:
    arguments: dict = {"seed": 1, "costs": COSTS, "startup_trials": 7} | more
    return KnownCostSampler(STUDY.space, STUDY.objectives, **arguments)


def created(own: optuna.samplers.BaseSampler, references: bool = True) -> optuna.Study:
    study = optuna.create_study(directions=DIRECTIONS, sampler=own)
    for partial in STUDY.references.values() if references else ():
        study.enqueue_trial(STUDY.space.reference(partial))
    return study


def tell(study: optuna.Study, trial: optuna.Trial, recipe: Recipe) -> None:
    seen = samplers.smooth(recipe)[1]
    trial.set_constraint("accuracy_drop <= 0.02", seen["accuracy_drop"] - 0.02)
    study.tell(trial, [seen[name] for name in STUDY.objectives])


def searched(study: optuna.Study, trials: int) -> list[Recipe]:
    recipes = []
    for _ in range(trials):
        trial = study.ask()
        recipes.append(STUDY.space.suggest(trial))
        tell(study, trial, recipes[-1])
    return recipes


def volume(recipes: Sequence[Recipe]) -> float:
    values = [[samplers.smooth(recipe)[0][name] for name in STUDY.objectives] for recipe in recipes]
    return pareto.hypervolume(np.array(values), DIRECTIONS, samplers.reference_point(STUDY, planted.DENSE))


def test_it_finds_more_in_25_trials_than_random_search_and_never_asks_twice() -> None:
    ours, random = searched(created(sampler()), 25), searched(created(optuna.samplers.RandomSampler(seed=1)), 25)
    assert volume(ours) > 1.03 * volume(random)
    assert len({recipe.digest() for recipe in ours}) == 25


def test_references_come_as_they_are_written() -> None:
    recipes = searched(created(sampler()), 5)
    wanted = [partial.get("pruning", {}).get("sparsity", 0.0) for partial in STUDY.references.values()]
    assert [recipe.pruning.sparsity for recipe in recipes] == wanted


def test_a_fresh_sampler_with_the_same_seed_goes_on_with_the_same_proposal() -> None:
    study = created(sampler())
    searched(study, 12)
    first = STUDY.space.suggest(study.ask())
    again = optuna.create_study(directions=DIRECTIONS, sampler=sampler())
    again.add_trials(study.get_trials(states=[optuna.trial.TrialState.COMPLETE]))
    assert STUDY.space.suggest(again.ask()) == first
    other = optuna.create_study(directions=DIRECTIONS, sampler=sampler(seed=2))
    other.add_trials(again.get_trials(states=[optuna.trial.TrialState.COMPLETE]))
    assert STUDY.space.suggest(other.ask()) != first


def test_many_may_be_asked_for_at_once_and_differ() -> None:
    study = created(sampler())
    searched(study, 10)
    asked = []
    for _ in range(6):
        trial = study.ask()
        asked.append((trial, STUDY.space.suggest(trial)))
    assert len({recipe.digest() for _, recipe in asked}) == 6
    kinds = {(r.pruning.granularity, round(r.pruning.sparsity, 1), r.quantization.scheme) for _, r in asked}
    assert len(kinds) >= 3  # not one spot six times
    for trial, recipe in asked:
        tell(study, trial, recipe)


def test_what_is_known_to_cost_too_much_is_not_asked_for() -> None:
    def dear(recipes: Sequence[Recipe]) -> Sequence[Mapping[str, Interval]]:
        found = []
        for recipe, costs in zip(recipes, COSTS(recipes), strict=True):
            factor = 1e3 if recipe.pruning.granularity == "channel" else 1.0
            found.append({name: (factor * v, factor * a, factor * b) for name, (v, a, b) in costs.items()})
        return found

    study = created(sampler(costs=dear), references=False)
    searched(study, 7)
    assert "channel" not in {recipe.pruning.granularity for recipe in searched(study, 6)}


def test_failed_and_stopped_trials_are_not_asked_for_again() -> None:
    study = created(sampler())
    searched(study, 9)
    gone = []
    for state in [optuna.trial.TrialState.FAIL, optuna.trial.TrialState.PRUNED] * 2:
        trial = study.ask()
        gone.append(STUDY.space.suggest(trial).digest())
        study.tell(trial, state=state)
    later = [recipe.digest() for recipe in searched(study, 3)]
    assert len({*gone, *later}) == len(gone) + len(later)


def test_where_the_constraints_break_it_does_not_go() -> None:
    study = created(sampler())
    broken = 0
    for number in range(24):
        trial = study.ask()
        recipe = STUDY.space.suggest(trial)
        trial.set_constraint("temperature", 1.0 if recipe.distillation.kind == "soft" else -1.0)
        broken += recipe.distillation.kind == "soft" and number >= 14
        study.tell(trial, [samplers.smooth(recipe)[1][name] for name in STUDY.objectives])
    assert broken <= 2  # half of the space


def test_after_so_many_trials_the_later_sampler_proposes() -> None:
    later = TPESampler(seed=4, multivariate=True, group=True)
    study = created(sampler(until=8, then=later))
    searched(study, 8)
    before = created(TPESampler(seed=4, multivariate=True, group=True), references=False)
    before.add_trials(study.get_trials())
    assert STUDY.space.suggest(study.ask()) == STUDY.space.suggest(before.ask())


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.01, 5),
    st.floats(0.5, 90),
    st.booleans(),
    st.sampled_from([None, 0.25, 0.7]),
    st.booleans(),
    st.integers(),
)
def test_candidates_lie_in_the_range_and_on_its_grid(
    low: float, span: float, log: bool, step: float | None, whole: bool, seed: int
) -> None:
    entry = Range(low, low + span, log, None if log else step)
    if whole:
        entry = Range(float(int(low) + 1), float(int(low + span) + 2), log, None, True)
    rng = np.random.default_rng(abs(seed))
    for value in (candidates._random(entry, rng), candidates._moved(entry, entry.low, rng)):
        assert entry.low <= value <= entry.high
        assert not whole or isinstance(value, int)
        if entry.step:
            steps = (value - entry.low) / entry.step
            assert steps == pytest.approx(round(steps), abs=1e-6)
    assert candidates._random(Choice((1, "a")), rng) in (1, "a")
