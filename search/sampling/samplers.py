"""Samplers by the name a study gives them."""

from __future__ import annotations

import optuna

from search.sampling.known_costs import Costs, KnownCostSampler, nothing_known
from search.sampling.tpe import TPESampler
from search.study import config


def samplers(study: config.Study, seed: int, costs: Costs = nothing_known) -> optuna.samplers.BaseSampler:
    """The study's sampler, seeded. `costs`: what is known of a recipe before it is trained."""
    settings, startup = study.sampler, study.sampler.startup_trials
    if settings.name == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
    if settings.name == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, startup))
    if settings.name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if settings.name == "tpe":
        return TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)
    grouped = TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True)
    if settings.name == "tpe_grouped":
        return grouped
    return KnownCostSampler(
        study.space,
        study.objectives,
        seed=seed,
        costs=costs,
        until=settings.model_trials if settings.name == "auto" else None,
        then=grouped,
    )
