"""Which recipes deserve their full schedule, by what a short one gave: `study.early_stopping: rungs`.

A short schedule is complete in itself; the recipe starts anew with the full one. It is decided as soon as a result is
there, by its rank among those so far (search/sampling/rungs.py), and no trial waits for others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search.front import pareto
from search.sampling import rungs
from search.sampling.encoding import features
from search.sampling.surrogate import Surrogate
from search.study.config import Study
from search.study.metrics import Metrics
from search.study.phrases import figure
from search.sweep.early import Stopped, intervals
from search.trial.record import EXPECTED, SHORT, TrialRecord
from trainers.recipe import Recipe

FEWEST = 4  # results, before which every one is promoted, and promoted ones that say what the full schedule adds
MOST = 60  # results that are ranked, the newest, and up to STEP more: a rank among many costs seconds
STEP = 20  # older ones are left out so many at once, since the model of their luck is then found anew
PAIRS = 100  # of both schedules, the newest, that say what the full one adds: each has a slope with every other

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """What a recipe's short schedule gave: figures by name, some with `NAME_low` and `NAME_high`."""

    number: int
    recipe: Recipe
    figures: Figures


class Rung:
    """The results of one sweep's short schedules. `records`: of its trials so far."""

    def __init__(self, study: Study, metrics: Metrics, records: Sequence[TrialRecord] = ()):
        self._study, self._metrics, self._settings = study, metrics, study.early_stopping
        self._directions = metrics.directions(study.objectives)
        quality = {each for own in metrics.quality for each in (own, f"{own}_drop")}
        names = dict.fromkeys([*study.objectives, *(limit.metric for limit in study.limits)])
        self._trained = {name: name in quality for name in names}  # whether training decides it
        self._results: dict[str, Result] = {}  # by the recipe's digest
        self._pairs: list[tuple[Figures, Figures]] = []  # what both schedules of a recipe gave
        self._lines: dict[str, tuple[int, float, float]] = {}  # name -> (of so many pairs, slope, offset)
        self._models: dict[str, Surrogate] = {}
        for record in records:
            self.learn(record)

    def learn(self, record: TrialRecord) -> None:
        """Take note of a trial that has ended."""
        figures = {k.removeprefix(SHORT): v for k, v in record.metrics.items() if k.startswith(SHORT)}
        if not figures or record.duplicate_of is not None:
            return
        self.add(record.number, Recipe.from_dict(record.recipe), figures)
        if record.state == "complete":
            self._pairs.append((figures, record.metrics))

    def add(self, number: int, recipe: Recipe, figures: Figures) -> None:
        """The result of a recipe, once."""
        self._results.setdefault(recipe.digest(), Result(number, recipe, figures))

    def known(self, recipe: Recipe) -> Figures | None:
        """What the recipe's short schedule gave before; None where it was not tried."""
        found = self._results.get(recipe.digest())
        return None if found is None else found.figures

    def of_interest(self, measured: Figures) -> dict[str, float]:
        """Of everything measured what results are ranked by, with the ends of intervals."""
        wanted = [f"{name}{end}" for name in self._trained for end in ("", "_low", "_high")]
        return {name: measured[name] for name in wanted if name in measured}

    def verdict(self, recipe: Recipe) -> Stopped | None:
        """Why the recipe, whose result is known, is not trained in full; None when it deserves that."""
        digest = recipe.digest()
        others = [result for key, result in self._results.items() if key != digest]
        ranked = [*others[max(0, len(others) - MOST) // STEP * STEP :], self._results[digest]]
        if len(ranked) < FEWEST:
            return None
        low, high = self._ends(ranked)
        kept = np.array([not self._broken(each.figures) for each in ranked])
        given, own = (low, high, self._directions), len(ranked) - 1
        if rungs.promotes(*given, own, share=self._settings.promoted, feasible=kept):
            return None
        figures = ranked[own].figures
        metrics = {f"{EXPECTED}{name}": self.expected(name, figures) for name in self._study.objectives}
        broken = {str(c): c.violation(figures[c.metric]) for c in self._study.limits if not self._trained[c.metric]}
        return Stopped(
            self._said(ranked, pareto.displaces(*given)[:, own]),
            {name: value for name, value in metrics.items() if value is not None},
            {limit: amount for limit, amount in broken.items() if amount > 0},
        )

    def expected(self, name: str, figures: Figures) -> float | None:
        """What the full schedule would give; None while too few recipes were trained by both to know.

        By the robust line through the newest of those.
        """
        if not self._trained[name]:
            return figures[name]
        if len(self._pairs) < FEWEST:
            return None
        count, slope, offset = self._lines.get(name, (0, 1.0, 0.0))
        if count != len(self._pairs):
            short, full = (np.array([pair[side][name] for pair in self._pairs[-PAIRS:]]) for side in (0, 1))
            slope, offset = _line(short, full)
            self._lines[name] = len(self._pairs), slope, offset
        return offset + slope * figures[name]

    def _broken(self, figures: Figures) -> list[str]:
        """Constraints that would be broken after the full schedule; of what is not known yet none."""
        values = [(limit, self.expected(limit.metric, figures)) for limit in self._study.limits]
        return [str(limit) for limit, value in values if value is not None and limit.violation(value) > 0]

    def _ends(self, ranked: Sequence[Result]) -> tuple[np.ndarray, np.ndarray]:
        """Of every objective the ends of its interval: of what training decides by the luck of a training."""
        columns = []
        for name in self._study.objectives:
            values = np.array([result.figures[name] for result in ranked])
            if self._trained[name]:
                model = self._models.setdefault(name, Surrogate(self._metrics[name].direction))
                half = 2 * model.fit([features(result.recipe) for result in ranked], values.tolist()).noise
                columns.append((values - half, values + half))
            else:
                ends = np.array([intervals(result.figures)[name][1:] for result in ranked])
                columns.append((ends[:, 0], ends[:, 1]))
        low, high = (np.column_stack(side) for side in zip(*columns, strict=True))
        return low, high

    def _said(self, ranked: Sequence[Result], beating: np.ndarray) -> str:
        """`25 % of its epochs gave accuracy 97.10 %, ...: not among the best 4 of 8; behind trial 3`."""
        best, figures = math.ceil(self._settings.promoted * len(ranked) - 1e-9), ranked[-1].figures
        said = [f"{self._metrics[n].phrase} {figure(self._metrics, figures, n)}" for n in self._study.objectives]
        behind = [str(result.number) for result, beats in zip(ranked, beating, strict=True) if beats][:3]
        why = f"; behind trial{'s' * (len(behind) > 1)} {', '.join(behind)}" if behind else ""
        if broken := self._broken(figures):
            why += f"; expected to break {', '.join(broken)}"
        part = f"{100 * self._settings.schedule:g} % of its epochs"
        return f"{part} gave {', '.join(said)}: not among the best {best} of {len(ranked)}{why}"


def _line(short: np.ndarray, full: np.ndarray) -> tuple[float, float]:
    """(slope, offset) from short to full by Theil (1950) and Sen (1968): the median of all slopes, between 0 and 1."""
    i, j = np.triu_indices(len(short), 1)
    apart = short[i] != short[j]
    slopes = (full[i] - full[j])[apart] / (short[i] - short[j])[apart]
    slope = float(np.clip(np.median(slopes), 0, 1)) if apart.any() else 1.0
    return slope, float(np.median(full - slope * short))
