"""Which recipes are not worth their training, by what is known of them before it: `study.early_stopping`.

Latency and size are known without training (search/storage/costs.py); what training decides is predicted from the
trials that were trained (search/sampling/surrogate.py). Off by `early_stopping: none`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from search.study.config import Study
from search.study.constraint import Constraint
from search.study.metrics import Metrics
from search.study.phrases import figure, spread
from search.trial.record import TrialRecord
from trainers.recipe import Recipe

# How far a size may be from that of the trained file, as a share: the standard deviation of what is expected, and what
# a constraint is missed by at least before a recipe is stopped for it.
SIZE_STD, SIZE_MARGIN = 0.01, 0.05


@dataclass(frozen=True)
class Stopped:
    """Why a recipe is not trained. `expected`: figures by name; `violations`: as in TrialRecord, what is known."""

    reason: str
    expected: dict[str, float]
    violations: dict[str, float] = field(default_factory=dict)


def intervals(figures: Mapping[str, float]) -> dict[str, tuple[float, float, float]]:
    """Known figures by name, each with the ends of its interval: of a size by how far a trained file may be from it."""
    margin = 1.96 * SIZE_STD
    return {
        name: (
            value,
            figures.get(f"{name}_low", value * (1 - margin)),
            figures.get(f"{name}_high", value * (1 + margin)),
        )
        for name, value in figures.items()
        if not name.endswith(("_low", "_high"))
    }


class EarlyStopping:
    """Decides of recipes one by one. `reference`: the hypervolume's reference point, one value per objective."""

    def __init__(self, study: Study, metrics: Metrics, reference: Sequence[float]):
        self._study, self._metrics, self._reference = study, metrics, list(reference)
        self._limits = study.limits
        self._directions = metrics.directions(study.objectives)
        self._models: dict[str, object] = {}  # by objective; they keep what they have learned of the space's lengths
        self._learned: dict[str, int] = {}  # from how many trials

    def verdict(self, recipe: Recipe, figures: Mapping[str, float], records: Sequence[TrialRecord]) -> Stopped | None:
        """Why the recipe is not worth its training; None when it is, or when too little is known.

        `figures`: its latency with the ends of its interval, and its sizes. `records`: of all trials so far.
        """
        known = {f"expected/{name}": figures[name] for name in self._known(figures)}
        if broken := [limit for limit in self._limits if self._breaks(limit, figures)]:
            violations = {str(limit): limit.violation(figures[limit.metric]) for limit in broken}
            said = "; ".join(f"{each}, and it has {figure(self._metrics, figures, each.metric)}" for each in broken)
            return Stopped(f"known before training to break {said}", known, violations)
        trained = [r for r in records if r.state == "complete" and r.duplicate_of is None]
        if len(trained) < self._study.early_stopping.after:
            return None
        return self._hopeless(recipe, figures, trained, known)

    def _known(self, figures: Mapping[str, float]) -> list[str]:
        wanted = [*self._study.objectives, *(limit.metric for limit in self._limits)]
        return [name for name in dict.fromkeys(wanted) if name in figures]

    def _breaks(self, limit: Constraint, figures: Mapping[str, float]) -> bool:
        """Whether it is missed even at the good end of what is known."""
        name = limit.metric
        if name not in figures:
            return False
        if f"{name}_low" in figures:
            good = figures[f"{name}_low" if limit.op == "<=" else f"{name}_high"]
        else:
            good = figures[name] * (1 - SIZE_MARGIN if limit.op == "<=" else 1 + SIZE_MARGIN)
        return limit.violation(good) > 0

    def _hopeless(
        self, recipe: Recipe, figures: Mapping[str, float], trained: Sequence[TrialRecord], known: dict[str, float]
    ) -> Stopped | None:
        from search.sampling.gain import front_probability, gain_share
        from search.sampling.gain import spread as deviation

        names, mean, std = self._study.objectives, [], []
        for name in names:
            if name not in figures:
                value, doubt = self._predicted(name, recipe, trained)
            elif f"{name}_low" in figures:
                value = figures[name]
                doubt = float(deviation(np.array(figures[f"{name}_low"]), np.array(figures[f"{name}_high"])))
            else:
                value, doubt = figures[name], SIZE_STD * abs(figures[name])
            mean.append(value)
            std.append(doubt)
        usable = [r for r in trained if r.feasible]
        front = np.array([[r.metrics[name] for name in names] for r in usable]).reshape(len(usable), len(names))
        candidate = (front, self._directions, self._reference, np.array(mean), np.array(std))
        gain, settings = float(gain_share(*candidate)[0]), self._study.early_stopping
        if gain >= settings.share or (settings.chance < 1 and front_probability(*candidate)[0] > settings.chance):
            return None
        said = [
            f"{self._metrics[name].phrase} {spread(self._metrics[name], value, 1.96 * doubt)}"
            for name, value, doubt in zip(names, mean, std, strict=True)
        ]
        least = self._study.early_stopping.share
        reason = f"{', '.join(said)} would add {100 * gain:.2g} % to the front, less than {100 * least:.2g} %"
        expected = {name: (v, s) for name, v, s in zip(names, mean, std, strict=True) if name not in figures}
        predicted = {f"expected/{name}": value for name, (value, _) in expected.items()}
        predicted |= {f"expected/{name}_std": doubt for name, (_, doubt) in expected.items()}
        return Stopped(reason, {**known, **predicted, "expected/gain": gain})

    def _predicted(self, name: str, recipe: Recipe, trained: Sequence[TrialRecord]) -> tuple[float, float]:
        """Mean and standard deviation of what training gives of the named metric."""
        from search.sampling.encoding import features
        from search.sampling.surrogate import Surrogate

        model = self._models.setdefault(name, Surrogate(self._metrics[name].direction))
        assert isinstance(model, Surrogate)
        if self._learned.get(name) != len(trained):
            points = [features(Recipe.from_dict(record.recipe)) for record in trained]
            model.fit(points, [record.metrics[name] for record in trained])
            self._learned[name] = len(trained)
        mean, std = model.predict([features(recipe)])
        return float(mean[0]), float(std[0])
