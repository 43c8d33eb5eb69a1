"""What earlier sweeps of the same storage measured, told to a sweep's sampler: `study.warm_start`.

They are finished trials in Optuna's study without a record, and a record is what makes a trial a result of the sweep.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from search.errors import SettingsError
from search.sampling.known_costs import PRIOR
from search.study.config import Study
from search.study.space import Choice, Range, Space, SpaceError
from search.trial.record import TrialRecord
from trainers.recipe import Recipe, flatten

# Settings that decide what a trial's figures mean: those of an earlier sweep must be the same.
_DECIDE = ("task.", "dense.", "dense_of", "runtime", "latency.batch", "latency.threads", "coder")
_FREE = ("task.folder", "task.source")


@dataclass(frozen=True)
class Prior:
    """A trial of an earlier sweep as a point of this study's space. `task`: what the earlier one's task was."""

    sweep: str
    record: TrialRecord
    params: Mapping[str, Any]
    task: Mapping[str, Any]

    @property
    def key(self) -> str:
        """SWEEP/NUMBER, as it is marked."""
        return f"{self.sweep}/{self.record.number}"


def priors(settings: Study, own: str, storage: BaseStorage) -> list[Prior]:
    """The trained trials of the sweeps that the study names, of those in its space.

    Raises SettingsError with every sweep that cannot be used: it is not there, a setting differs that decides what its
    figures mean, or none of its trials lies in this study's space.
    """
    found, problems = list[Prior](), list[str]()
    known = [study.study_name for study in storage.get_all_studies()] if settings.warm_start else []
    for index, name in enumerate(settings.warm_start):
        where = f"study.warm_start[{index}]"
        if name not in known or name == own:
            others = ", ".join(sorted(set(known) - {own})) or "none yet"
            what = "is this sweep itself" if name == own else "no such sweep here"
            problems.append(f"{where}: {name!r}: {what}; choose from {others}")
            continue
        study = optuna.load_study(study_name=name, storage=storage)
        if differing := list(_differing(study.user_attrs.get("settings") or {}, settings)):
            problems += [f"{where}: {name} cannot be used, {each}" for each in differing]
            continue
        usable, reason = _inside(name, study, settings.space)
        found += usable
        if not usable:
            problems.append(f"{where}: {name} cannot be used, {reason}")
    if problems:
        raise SettingsError("\n".join(problems))
    return found


def _differing(stored: Mapping[str, Any], settings: Study) -> Iterator[str]:
    """Each setting that decides what figures mean and is another one there; one added since had its default."""
    old, new = flatten(stored), flatten(settings.model_dump(mode="json"))
    for key in sorted(new):
        if key.startswith(_DECIDE) and key not in _FREE and key in old and old[key] != new[key]:
            yield f"{key} differs: {old[key]!r} there, {new[key]!r} here"


def _inside(name: str, study: optuna.Study, space: Space) -> tuple[list[Prior], str]:
    """Those trained trials whose recipe is a point of the space; and why the first of the others is none."""
    found, reason = list[Prior](), "none of its trials was trained"
    task = json.loads(study.user_attrs.get("task", "{}"))
    for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        if "record" not in trial.user_attrs:  # told to it by an earlier one
            continue
        record = TrialRecord.from_json(trial.user_attrs["record"])
        if record.duplicate_of is not None:
            continue
        try:
            found.append(Prior(name, record, space.params_of(Recipe.from_dict(record.recipe)), task))
        except SpaceError as error:
            reason = f"none of its trials lies in this study's space: {error.problems[0]}"
    return found, reason


def told(
    given: Sequence[Prior],
    settings: Study,
    task: Mapping[str, Any],
    latencies: Mapping[str, float],
    before: Sequence[FrozenTrial],
) -> list[FrozenTrial]:
    """The priors as Optuna's trials, without those told `before`.

    `task`: this sweep's, as plain data; `latencies`: of its dense models in ms by name, since a machine's speed drifts
    and ratios do not. Raises SettingsError for a sweep of other data or code. A trial whose figures do not have all
    objectives and constraints is left out.
    """
    known = {trial.user_attrs.get(PRIOR) for trial in before}
    for prior in given:
        for field in ("data_digest", "code_digest"):
            if prior.task.get(field) != task.get(field):
                raise SettingsError(
                    f"study.warm_start: {prior.sweep} cannot be used, the task's {field} differs: "
                    f"{prior.task.get(field)!r} there, {task.get(field)!r} here; leave it out"
                )
    trials = [_trial(prior, settings, latencies) for prior in given if prior.key not in known]
    return [trial for trial in trials if trial is not None]


def _trial(prior: Prior, settings: Study, latencies: Mapping[str, float]) -> FrozenTrial | None:
    record = prior.record
    metrics = dict(record.metrics)
    dense = latencies.get(f"{record.recipe['trainer']}/{record.recipe['model']}")
    if dense is not None and "latency_ratio" in metrics:
        metrics["latency_ms"] = metrics["latency_ratio"] * dense
    limits = settings.limits
    if not {*settings.objectives, *(limit.metric for limit in limits)} <= metrics.keys():
        return None
    return optuna.create_trial(
        state=TrialState.COMPLETE,
        values=[metrics[name] for name in settings.objectives],
        params=dict(prior.params),
        distributions={name: _kind(entry) for name, entry in settings.space.asked(prior.params).items()},
        user_attrs={PRIOR: prior.key},
        constraints={str(limit): limit.violation(metrics[limit.metric]) for limit in limits},
    )


def _kind(entry: Choice | Range) -> BaseDistribution:
    """As `Trial.suggest_...` makes it of the entry."""
    if isinstance(entry, Choice):
        return CategoricalDistribution(entry.values)
    if entry.whole:
        return IntDistribution(int(entry.low), int(entry.high), log=entry.log, step=int(entry.step or 1))
    return FloatDistribution(entry.low, entry.high, log=entry.log, step=entry.step)
