"""A sampler that knows what a recipe costs untrained, and asks for what is expected to add most to the front.

Latency and size follow from the architecture: `costs` looks them up. Quality is modelled, and so is what is not known
of the costs. The candidate with the largest expected gain in hypervolume, times the probability that it keeps the
constraints, is proposed (Emmerich et al., "Single- and multiobjective evolutionary optimization assisted by Gaussian
random field metamodels", IEEE TEC 10, 2006). Running trials count as having what the model expects of them, so that
many may be asked for at once (Ginsbourger et al., "Kriging is well-suited to parallelize optimization", 2010).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from search.front import pareto
from search.sampling import gain
from search.sampling.candidates import Candidate, drawn, given, neighbour
from search.sampling.encoding import Columns
from search.sampling.surrogate import Surrogate
from search.study.space import Space
from trainers.recipe import Recipe

Interval = tuple[float, float, float]  # value, and the low and high ends of its 95 % interval
# Recipes -> for each the metrics that are known of it without training, by name; {} where nothing is.
Costs = Callable[[Sequence[Recipe]], Sequence[Mapping[str, Interval]]]

_POOL, _FRESH, _NEIGHBOURS = 256, 48, 96  # candidates: drawn once, drawn for this trial, near the front
# User attribute of a trial that was stopped after a short training: values by objective, as the full one would give.
EXPECTED = "expected"
# User attribute of a trial of an earlier study, told to this one: it counts like others, but not for `until`.
PRIOR = "prior"
STARTUP = 5  # finished trials that the models need
_SPAN = 3.0  # a metric whose values are positive and differ by more than this factor is modelled by its logarithm


def nothing_known(recipes: Sequence[Recipe]) -> Sequence[Mapping[str, Interval]]:
    """Costs of a search that has to train to know them."""
    return [{} for _ in recipes]


class KnownCostSampler(optuna.samplers.BaseSampler):
    """Proposes the points of `space` with the largest expected gain, of trials that report `objectives` in that order.

    `costs`: what is known of recipes before training, asked of some 400 for each trial. Before `startup_trials` have
    finished, points far from those tried are proposed, and after `until` of them `then` proposes. A fresh sampler with
    the same seed makes the same proposal of the same trials. The study's constraints are those its trials were given
    (`Trial.set_constraint`).
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[str],
        *,
        seed: int,
        costs: Costs = nothing_known,
        startup_trials: int = STARTUP,
        until: int | None = None,
        then: optuna.samplers.BaseSampler | None = None,
    ):
        self._space, self._objectives, self._costs = space, list(objectives), costs
        self._seed, self._startup = seed, max(startup_trials, 1)
        self._until, self._then = until, then
        self._plan: tuple[int, Mapping[str, Any]] | None = None
        self._tried: dict[int, Candidate] = {}  # by number of the trial
        self._pool: list[Candidate] = []
        self._models: dict[str, Surrogate] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing: a proposal is made when a trial's first parameter is asked for."""
        later = self._later(study)
        return later.infer_relative_search_space(study, trial) if later else {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What the later sampler proposes."""
        later = self._later(study)
        return later.sample_relative(study, trial, search_space) if later else {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The parameter's value in this trial's proposal."""
        planned = self._plan is not None and self._plan[0] == trial.number
        if not planned and (later := self._later(study)):
            return later.sample_independent(study, trial, param_name, param_distribution)
        if not planned:
            self._plan = trial.number, self._proposed(study, trial).params
        assert self._plan is not None
        return self._plan[1][param_name]

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """As Optuna calls it."""
        if later := self._later(study):
            later.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As Optuna calls it."""
        if later := self._later(study):
            later.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Another process must not make the same proposals."""
        self._seed = int(np.random.default_rng().integers(2**31))
        if self._then:
            self._then.reseed_rng()

    def _later(self, study: optuna.Study) -> optuna.samplers.BaseSampler | None:
        if self._then is None or self._until is None:
            return None
        done = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])
        return self._then if sum(PRIOR not in t.user_attrs for t in done) >= self._until else None

    def _proposed(self, study: optuna.Study, trial: FrozenTrial) -> Candidate:
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        known, running, done = self._split(others)
        told = [t for t in done if t.state == TrialState.PRUNED and EXPECTED in t.user_attrs]
        rng = np.random.default_rng([self._seed, trial.number])
        offered = self._offered(trial, rng, [self._tried[t.number].params for t in _front(known, study.directions)])
        before = {each.recipe for each in self._tried.values()}
        offered = [each for each in offered if each.recipe not in before] or offered
        if len(known) < self._startup:
            return _farthest(offered, [self._tried[t.number] for t in [*done, *running]])
        worth = self._worth(study, known, told, running, offered)
        return offered[int(np.argmax(worth))]

    def _split(self, trials: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], list[FrozenTrial], list[FrozenTrial]]:
        """Those with values, those that run, and all that have ended; a trial that is no point of the space is left."""
        for trial in trials:
            if trial.number not in self._tried and (found := given(self._space, trial.params)) is not None:
                self._tried[trial.number] = found
        there = [t for t in trials if t.number in self._tried]
        done = [t for t in there if t.state.is_finished()]
        known = [t for t in done if t.state == TrialState.COMPLETE and np.isfinite(t.values).all()]
        return known, [t for t in there if t.state == TrialState.RUNNING], done

    def _offered(
        self, trial: FrozenTrial, rng: np.random.Generator, good: Sequence[Mapping[str, Any]]
    ) -> list[Candidate]:
        fixed = trial.system_attrs.get("fixed_params", {}) | trial.params  # of an enqueued trial
        if fixed:
            return [drawn(self._space, rng, fixed) for _ in range(_FRESH)]
        if not self._pool:
            own = np.random.default_rng(self._seed)
            self._pool = [drawn(self._space, own) for _ in range(_POOL)]
        near = [neighbour(self._space, rng, good[i % len(good)]) for i in range(_NEIGHBOURS if good else 0)]
        return [*self._pool, *(drawn(self._space, rng) for _ in range(_FRESH)), *near]

    def _worth(
        self,
        study: optuna.Study,
        known: Sequence[FrozenTrial],
        told: Sequence[FrozenTrial],
        running: Sequence[FrozenTrial],
        offered: Sequence[Candidate],
    ) -> np.ndarray:
        """float [n]: expected gain of each candidate, times the probability that it is feasible.

        The models learn from `told` too; the front is that of `known` and `running`.
        """
        directions = [direction.name.lower() for direction in study.directions]
        points = [self._tried[t.number] for t in [*known, *told, *running]]
        expected = [[t.user_attrs[EXPECTED][name] for name in self._objectives] for t in told]
        seen = np.array([*(t.values for t in known), *expected])
        looked_up = self._costs([each.recipe for each in [*points, *offered]])
        mean, std = np.empty((len(looked_up), len(directions))), np.zeros((len(looked_up), len(directions)))
        for j, name in enumerate(self._objectives):
            modelled = [*points, *offered]
            mean[:, j], std[:, j] = self._predicted(name, directions[j], modelled, seen[:, j], len(running))
            mean[: len(seen), j] = seen[:, j]  # as measured, luck and all: chasing less than that finds nothing
            for i, costs in enumerate(looked_up):
                if name in costs:
                    mean[i, j], std[i, j] = costs[name][0], float(gain.spread(*costs[name][1:]))
        feasible = np.array([_feasible(t) for t in known] + [False] * len(told) + [True] * len(running))
        front = mean[: len(points)][feasible]
        worst = pareto.costs(mean[: len(points)] if not feasible.any() else front, directions)
        limit = worst.max(axis=0) + 0.1 * np.maximum(np.ptp(worst, axis=0), 1e-12)
        reference = pareto.costs(limit[None], directions)[0]  # negated twice
        ahead = slice(len(points), None)
        worth = gain.expected_gain(front, directions, list(reference), mean[ahead], std[ahead])
        chance = self._feasibility(known, offered)
        return worth * chance if worth.max() > 0 else chance

    def _predicted(
        self, name: str, direction: str, at: Sequence[Candidate], seen: np.ndarray, running: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation at each of `at`, of which the first are those seen and then those running."""
        log = bool((seen > 0).all() and seen.max() > _SPAN * seen.min())
        values = np.log(seen) if log else seen
        model = self._models.setdefault(name, Surrogate(direction))
        features = [each.features for each in at]
        model.fit(features[: len(seen)], values.tolist())
        model.expecting(features[len(seen) : len(seen) + running])
        mean, std = model.predict(features)
        return (np.exp(mean), np.exp(mean) * std) if log else (mean, std)

    def _feasibility(self, known: Sequence[FrozenTrial], offered: Sequence[Candidate]) -> np.ndarray:
        """float [n]: the probability that the constraints hold, each for itself."""
        from scipy.special import ndtr

        chance = np.ones(len(offered))
        for name in sorted({name for t in known for name in t.constraints}):
            seen = [(self._tried[t.number].features, t.constraints[name]) for t in known if name in t.constraints]
            if max(amount for _, amount in seen) > 0:  # never broken so far: nothing to keep away from
                model = self._models.setdefault(f"constraint {name}", Surrogate("minimize", tail=np.inf))
                amounts = np.array([amount for _, amount in seen])
                unit = np.median(np.abs(amounts)) or np.abs(amounts).max()
                model.fit([point for point, _ in seen], np.arcsinh(amounts / unit).tolist())  # tails count by the log
                mean, std = model.predict([each.features for each in offered])
                chance *= ndtr(-mean / np.maximum(std, 1e-300))
        return chance


def _feasible(trial: FrozenTrial) -> bool:
    return all(amount <= 0 for amount in trial.constraints.values())


def _front(trials: Sequence[FrozenTrial], directions: Sequence[Any]) -> list[FrozenTrial]:
    feasible = [t for t in trials if _feasible(t)]
    if not feasible:
        return []
    kept = pareto.front(np.array([t.values for t in feasible]), [d.name.lower() for d in directions])
    return [t for t, on_front in zip(feasible, kept, strict=True) if on_front]


def _farthest(offered: Sequence[Candidate], tried: Sequence[Candidate]) -> Candidate:
    """The one farthest from its nearest that was tried."""
    columns = Columns([each.features for each in [*offered, *tried]])
    here, there = (columns.table([each.features for each in those]) for those in (offered, tried))
    if not len(tried):
        return offered[0]
    return offered[int(np.argmax(((here[:, None] - there[None]) ** 2).sum(axis=2).min(axis=1)))]
