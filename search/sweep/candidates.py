"""Which trials are confirmed, how often each is trained again, and about how long that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from search.front import pareto
from search.study.config import Confirm
from search.study.metrics import Metrics
from search.trial.record import TrialRecord
from trainers.recipe import Recipe

_NOT_TRAINING = ("measure", "wait_for_quiet", "platform")  # stages of a trial that a training again has not


def candidates(
    records: Sequence[TrialRecord], objectives: Sequence[str], settings: Confirm, metrics: Metrics
) -> list[TrialRecord]:
    """The front of the feasible trials and its nearest neighbours, as many as `settings` says, by number.

    A neighbour lies just behind the front by the sum of its distances to the nearest front point, each scaled by
    the front's extent: one that may have had bad luck. Without a feasible trial: those that miss the constraints
    least, since confirmed values decide.
    """
    measured = _distinct([r for r in records if r.state == "complete"])
    usable = [r for r in measured if r.feasible]
    if not usable:
        return _nearly_feasible(measured, min(1 + settings.neighbours, settings.candidates or len(measured)))
    values = np.array([[r.metrics[name] for name in objectives] for r in usable])
    costs = pareto.costs(values, metrics.directions(objectives))
    on_front = pareto.front(costs, ["minimize"] * len(objectives))
    extent = np.ptp(costs[on_front], axis=0)
    scaled = costs / np.where(extent > 0, extent, 1.0)
    behind = np.maximum(scaled[:, None] - scaled[on_front][None], 0.0).sum(axis=2).min(axis=1)
    most = settings.candidates or int(on_front.sum()) + settings.neighbours
    first = _spread(np.flatnonzero(on_front), scaled, most)
    rest = [i for i in np.argsort(behind, kind="stable") if not on_front[i]]
    chosen = [*first, *rest][:most]
    return [usable[i] for i in sorted(chosen)]


def _nearly_feasible(measured: list[TrialRecord], most: int) -> list[TrialRecord]:
    """`most` of them, those that miss the constraints least, by number."""
    chosen, left = list[TrialRecord](), list(measured)
    while left and len(chosen) < most:
        index = pareto.nearest_feasible(np.array([list(r.violations.values()) for r in left]))
        if index is None:
            break
        chosen.append(left.pop(index))
    return sorted(chosen, key=lambda r: r.number)


def _distinct(records: list[TrialRecord]) -> list[TrialRecord]:
    seen: dict[str, TrialRecord] = {}
    for record in records:
        seen.setdefault(Recipe.from_dict(record.recipe).digest(), record)
    return list(seen.values())


def _spread(members: np.ndarray, scaled: np.ndarray, most: int) -> list[int]:
    """`most` of the front's members: the best in each objective, the knee, then always the one farthest from those."""
    points = scaled[members]
    chosen = list(dict.fromkeys(int(i) for i in points.argmin(axis=0)))
    knee = pareto.knee(points, ["minimize"] * points.shape[1])
    if knee is not None and knee not in chosen:
        chosen.append(knee)
    while len(chosen) < min(most, len(points)):
        away = np.linalg.norm(points[:, None] - points[chosen][None], axis=2).min(axis=1)
        away[chosen] = -1.0
        chosen.append(int(away.argmax()))
    return [int(members[i]) for i in chosen[:most]]


def reseeded(record: TrialRecord, seed: int) -> Recipe:
    """The trial's recipe with another seed."""
    return replace(Recipe.from_dict(record.recipe), seed=seed)


def seeds_for(chosen: Sequence[TrialRecord], settings: Confirm) -> int:
    """Fresh trainings per candidate: one more than two where the spread is pooled over fewer than three candidates.

    Half the 95 % interval, in standard deviations: 3 seeds alone 2.48; 2 seeds of 3 candidates 2.25, of 6 1.73.
    """
    scattering = sum(Recipe.from_dict(record.recipe).seeded for record in chosen)
    return 3 if settings.seeds == 2 and scattering < 3 else settings.seeds


def repeats(record: TrialRecord, settings: Confirm, seeds: int) -> list[Recipe]:
    """The recipes that confirm the trial: with every fresh seed, or with one where no seed changes the file."""
    count = seeds if Recipe.from_dict(record.recipe).seeded else 1
    return [reseeded(record, settings.first_seed + repeat) for repeat in range(count)]


def seconds(record: TrialRecord) -> float:
    """About how long one training of the trial's recipe takes; 0 for one that copied another's result."""
    return sum(spent for stage, spent in record.stages.items() if stage not in _NOT_TRAINING)
