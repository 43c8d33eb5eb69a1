"""A sweep: one Optuna study on disk, created or resumed. Asks for recipes, is told what they gave.

The driver is the only writer. A trial's record is stored before Optuna is told, so a driver killed between the two
loses nothing; a trial that was being evaluated when the driver died is failed as interrupted and enqueued again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from search.errors import SettingsError
from search.sampling.known_costs import EXPECTED, PRIOR, Costs, Interval, nothing_known
from search.sampling.samplers import samplers
from search.storage import database as storages
from search.storage.database import Hold
from search.storage.rooted import absolute, relative
from search.storage.single_writer import SingleWriter
from search.study import config
from search.study.agree import changed_settings
from search.study.metrics import KEY, Metrics
from search.sweep import warm_start
from search.sweep.warm_start import Prior
from search.trial.record import SHORT, TrialRecord
from trainers.recipe import Recipe

# Keys of the user attributes a trial carries.
RECORD, REFERENCE, RESUMED, INTERRUPTED = "record", "reference", "resumed_from", "interrupted"
PREFERRED = "preferred"  # of one of the first trials, with preferred values: which of them
PROMOTED = "promoted"  # of a trial that its short schedule promoted: what that gave, and its seconds
ENDS = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class PendingTrial:
    """A trial to evaluate: its number in the sweep, its recipe, and the name of the reference it is, if any.

    `short`: what the short schedule gave that promoted it, in `short_seconds`.
    """

    number: int
    recipe: Recipe
    reference: str | None
    trial: Trial
    start_ms: int
    short: Mapping[str, float] | None = None
    short_seconds: float = 0.0

    @property
    def title(self) -> str:
        """What people see of it while it runs."""
        return f"trial {self.number}: {self.recipe.describe()}"


class Sweep:
    """One sweep of a study."""

    def __init__(
        self,
        name: str,
        study: optuna.Study,
        settings: config.Study,
        metrics: Metrics,
        store: SingleWriter,
        hold: Hold,
        root: Path | None = None,
    ):
        self.name = name
        self.metrics = metrics
        self.study = study
        self._database = store
        self._settings = settings
        self._hold = hold
        self._turn = threading.RLock()  # the heartbeat's thread writes too, and SQLite has one writer
        self._root = root
        self._out: set[int] = set()  # asked and not told
        self._records: dict[int, TrialRecord] = {}
        self._priors: Sequence[Prior] = ()
        self.space = settings.space
        self._limits = settings.limits
        self._costs: Costs = nothing_known
        self.directions = metrics.directions(settings.objectives)

    @staticmethod
    def open(
        settings: config.Study,
        storage: str,
        fresh: bool = False,
        *,
        named: str | None = None,
        hold: Hold | None = None,
        recorded: Callable[[Sequence[str]], Sequence[str]] = tuple,
        metrics: Metrics | None = None,
        root: Path | None = None,
    ) -> Sweep:
        """The sweep `named` or the study's newest one, or a new one if there is none or `fresh`.

        A new one is never named as one that `recorded` gives of those known; for an older one it is not asked.
        `metrics`: the task's; those that the sweep was started with if left out. `root`: what stored paths are relative
        to; the folder of a file if left out.

        Raises SweepError when the storage cannot be read, SettingsError when that sweep does not exist or was
        started otherwise.
        """
        _quiet_optuna()
        with storages.telling(storage):
            store = SingleWriter(storages.opened(storage))
            names = sweep_names(settings.name, store)
            if named and named not in names:
                raise SettingsError(
                    f"sweep: {settings.name} has no sweep {named!r}; choose from {', '.join(names) or 'none yet'}"
                )
            # Another storage may have given a sweep of this name to the same record.
            name = named or (names[-1] if names and not fresh else _next(settings.name, {*names, *recorded(names)}))
            priors = warm_start.priors(settings, name, store)
            study = optuna.create_study(
                storage=store,
                study_name=name,
                directions=(metrics or Metrics()).directions(settings.objectives),
                load_if_exists=True,
            )
            metrics = metrics or Metrics.from_json(study.user_attrs.get(KEY))
        sweep = Sweep(name, study, settings, metrics, store, hold or Hold(), root or storages.folder(storage))
        sweep._priors = priors
        sweep._agree()
        sweep._recover()
        # A resumed sampler must not repeat the random numbers of the first start.
        study.sampler = samplers(
            settings, settings.seed + 1000 * len(study.get_trials(deepcopy=False)), sweep._looked_up
        )
        return sweep

    def _agree(self) -> None:
        """A sweep means one thing: refuse to resume it with another space, data or objectives."""
        stored = self.study.user_attrs.get("settings")
        if stored is None:
            self.study.set_user_attr("settings", self._settings.model_dump(mode="json"))
            self.study.set_user_attr(KEY, self.metrics.to_json())
            self.study.set_metric_names(self._settings.objectives)  # as optuna-dashboard shows them
        elif changed := [*changed_settings(stored, self._settings), *self._redefined()]:
            raise SettingsError(
                f"sweep {self.name} was started with other settings:\n" + "\n".join(changed) + "\n"
                "Start a new sweep with fresh=true, or put the settings back to resume this one"
            )
        enqueued = {t.user_attrs.get(REFERENCE) for t in self._trials()}
        for name, partial in self._settings.references.items():
            if name not in enqueued:
                self.study.enqueue_trial(self.space.reference(partial), user_attrs={REFERENCE: name})
        self._prefer()

    def _prefer(self) -> None:
        """Enqueue the first trials with the study's preferred values; a sampler proposes the rest of each."""
        preferred, settings = self._settings.preferred, self._settings
        first = min(settings.sampler.startup_trials, settings.budget.trials) - len(settings.references)
        there = {t.user_attrs.get(PREFERRED) for t in self._trials()}
        for turn in range(max(first, 1)) if preferred else ():
            if turn not in there:
                rng = random.Random(f"{settings.seed} {turn}")
                params = self.space.preferring(preferred, rng.choice)
                self.study.enqueue_trial(params, user_attrs={PREFERRED: turn})

    def warm(self, latencies: Mapping[str, float]) -> dict[str, int]:
        """Tell the sampler of the trials of `study.warm_start`, once; how many of each sweep it has been told of.

        `latencies`: of the dense models in ms, by name. Raises SettingsError for a sweep of other data.
        """
        before = self._trials()
        with self._turn:
            for trial in warm_start.told(self._priors, self._settings, self.get("task"), latencies, before):
                self._hold.call(functools.partial(self.study.add_trial, trial))
        sweeps = [t.user_attrs[PRIOR].rpartition("/")[0] for t in self._trials() if PRIOR in t.user_attrs]
        return dict(Counter(sweeps))

    def _redefined(self) -> list[str]:
        """What the task now says otherwise of its metrics."""
        was = Metrics.from_json(self.study.user_attrs.get(KEY)).directions_by_name()
        now = self.metrics.directions_by_name()
        return [
            f"  metric {name}: was {was.get(name, 'not there')}, now {now.get(name, 'not there')}"
            for name in sorted({*was, *now})
            if was.get(name) != now.get(name)
        ]

    def _recover(self) -> None:
        """Settle the trials that a killed driver, or an ask that the server cut off, left running."""
        resumed = {t.user_attrs.get(RESUMED) for t in self._trials()}
        for trial in self._trials(TrialState.RUNNING):
            if trial.number in self._out:
                continue
            if RECORD in trial.user_attrs:
                self._tell(trial.number, self._read(trial))
                continue
            if trial.number not in resumed:
                attrs = {RESUMED: trial.number} | {key: trial.user_attrs.get(key) for key in (REFERENCE, PROMOTED)}
                self.study.enqueue_trial(trial.params, user_attrs={k: v for k, v in attrs.items() if v is not None})
            Trial(self.study, trial._trial_id).set_user_attr(INTERRUPTED, True)
            self.study.tell(trial.number, state=TrialState.FAIL)

    def knows(self, costs: Costs) -> None:
        """What is known of recipes before they are trained, for samplers that use it."""
        self._costs = costs

    def _looked_up(self, recipes: Sequence[Recipe]) -> Sequence[Mapping[str, Interval]]:
        return self._costs(recipes)

    def ask(self) -> PendingTrial:
        """The next trial: references and interrupted ones first, then what the sampler proposes."""
        with self._turn:
            asked = self._hold.call(self._ask, self._recover)
            self._out.add(asked.number)
        return asked

    def _ask(self) -> PendingTrial:
        with warnings.catch_warnings(), self._database.at_once():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = self.study.ask()
            recipe = self.space.suggest(trial)
        attrs = trial.user_attrs
        short = attrs.get(PROMOTED, {"figures": None, "seconds": 0.0})
        now = int(time.time() * 1000)
        return PendingTrial(trial.number, recipe, attrs.get(REFERENCE), trial, now, short["figures"], short["seconds"])

    def promoted(self, asked: PendingTrial, figures: Mapping[str, float], seconds: float) -> PendingTrial:
        """The trial with what its short schedule gave, stored so that a killed driver need not train that again."""
        with self._turn:
            kept = {"figures": dict(figures), "seconds": seconds}
            self._hold.call(lambda: asked.trial.set_user_attr(PROMOTED, kept))
        return replace(asked, short=figures, short_seconds=seconds)

    def tell(self, asked: PendingTrial, record: TrialRecord) -> None:
        """Store the record, then tell Optuna."""
        with self._turn:
            self._hold.call(lambda: self._store(asked, record))
            self._out.discard(asked.number)

    def _store(self, asked: PendingTrial, record: TrialRecord) -> None:
        if self._database.get_trial(asked.trial._trial_id).state.is_finished():
            return  # by the attempt before this one, whose answer the server could not give
        with self._database.at_once():
            violations = self.violations(record.metrics) if record.state == "complete" else record.violations
            for limit, amount in violations.items():
                asked.trial.set_constraint(limit, amount)
            if expected := self._expected(record):
                asked.trial.set_user_attr(EXPECTED, expected)
            asked.trial.set_user_attr(RECORD, json.dumps(relative(asdict(record), self._root), sort_keys=True))
            self._tell(asked.number, record)

    def _tell(self, number: int, record: TrialRecord) -> None:
        if record.state == "complete":
            self.study.tell(number, [record.metrics[name] for name in self._settings.objectives])
        elif record.state == "stopped":
            self.study.tell(number, state=TrialState.PRUNED)  # TPE ranks it below every trial that was trained
        else:
            self.study.tell(number, state=TrialState.FAIL)

    def _expected(self, record: TrialRecord) -> dict[str, float]:
        """What a sampler's model may learn from a stopped trial: the objectives as its short schedule lets expect.

        Of one that was not trained at all nothing: what was expected of it is such a model's own guess.
        """
        names, short = self._settings.objectives, any(name.startswith(SHORT) for name in record.metrics)
        found = {name: record.metrics[f"expected/{name}"] for name in names if f"expected/{name}" in record.metrics}
        return found if short and record.state == "stopped" and len(found) == len(names) else {}

    def unusable(self, metrics: dict[str, float]) -> str:
        """Why the metrics cannot be told to Optuna, in words; "" if they can."""
        needed = dict.fromkeys([*self._settings.objectives, *(limit.metric for limit in self._limits)])
        return self.metrics.unusable(metrics, needed)

    def violations(self, metrics: dict[str, float]) -> dict[str, float]:
        """constraint -> how far the metrics are beyond it; <= 0 is feasible."""
        return {str(limit): limit.violation(metrics[limit.metric]) for limit in self._limits}

    def records(self) -> list[TrialRecord]:
        """Every finished trial, in order of number; interrupted ones are not finished."""
        with self._turn:
            ended = self._hold.call(lambda: self._trials(*ENDS))
        finished = [t for t in ended if RECORD in t.user_attrs]
        for trial in finished:
            if trial.number not in self._records:  # what is finished never changes
                self._records[trial.number] = self._read(trial)
        return [self._records[trial.number] for trial in finished]

    def _read(self, trial: FrozenTrial) -> TrialRecord:
        return TrialRecord.from_json(json.dumps(absolute(json.loads(trial.user_attrs[RECORD]), self._root)))

    def get(self, key: str) -> Any:
        """A value stored with the sweep by `put`; None if there is none."""
        with self._turn:
            found = self._hold.call(lambda: self.study.user_attrs.get(key))
        return None if found is None else absolute(json.loads(found), self._root)

    def put(self, key: str, value: Any) -> None:
        """Store a plain value with the sweep."""
        with self._turn:
            self._hold.call(lambda: self.study.set_user_attr(key, json.dumps(relative(value, self._root))))

    def note(self, key: str, value: Any) -> None:
        """As `put`, but let go when the storage does not answer: for what is only looked at."""
        with self._turn, contextlib.suppress(optuna.exceptions.StorageInternalError):
            self.study.set_user_attr(key, json.dumps(value))

    def _trials(self, *states: TrialState) -> Sequence[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)


def sweep_names(study: str, storage: Any) -> list[str]:
    """Names of the study's sweeps, oldest first: `mnist_prune-001`, ...; `storage`: a URL or Optuna's storage."""
    names = optuna.get_all_study_names(storage)
    own = [n for n in names if n.rpartition("-")[0] == study and n.rpartition("-")[2].isdigit()]
    return sorted(own, key=_number)


def _next(study: str, taken: Collection[str]) -> str:
    return f"{study}-{max(map(_number, taken), default=0) + 1:03d}"


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


def _quiet_optuna() -> None:
    """Optuna's log lines repeat what the progress display says."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
