"""Optuna's database with one writer, the driver: read from memory; an ask or a tell is written in one transaction.

Optuna's own storage asks the database again before every suggestion, since others might have written: some ninety
statements and twenty commits per trial. There is one driver per study, so what it has written is what there is.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from typing_extensions import override


class SingleWriter(BaseStorage):
    """`database` with the trials of one study in memory. Nothing else may write that study's trials."""

    def __init__(self, database: RDBStorage):
        self._database = database
        self._study: int | None = None
        self._trials: dict[int, FrozenTrial] = {}  # by trial id, in order of number
        self._kinds: dict[str, BaseDistribution] = {}  # by parameter
        self._held: dict[Any, list[dict[str, Any]]] | None = None  # by table: new rows, written at a transaction's end

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What is written inside is stored by one transaction: all of it, or nothing when it raises."""
        session = self._database.scoped_session
        with self._database.engine.connect() as connection:
            session.remove()
            session.configure(bind=connection, join_transaction_mode="rollback_only")
            self._held = {}
            try:
                with connection.begin():
                    yield
                    for table, rows in self._held.items():
                        connection.execute(sqlalchemy.insert(table), rows)
            except BaseException:
                self._study = None  # what memory says is not what was stored
                raise
            finally:
                self._held = None
                session.remove()
                session.configure(bind=self._database.engine, join_transaction_mode="conditional_savepoint")

    def _of(self, study_id: int) -> dict[int, FrozenTrial]:
        if self._study != study_id:
            found = self._database.get_all_trials(study_id, deepcopy=False)
            self._trials = {t._trial_id: t for t in sorted(found, key=lambda t: t.number)}
            self._kinds = {name: kind for t in self._trials.values() for name, kind in t.distributions.items()}
            self._study = study_id
        return self._trials

    def _hold(self, table: Any, trial_id: int, rows: Sequence[dict[str, Any]], new: bool) -> bool:
        """Whether the rows are held until the transaction ends: those that no row of a running trial stands for yet.

        Optuna writes them one by one, and asks for the trial and for the row before each.
        """
        trial = self._trials.get(trial_id) if self._study is not None else None
        if self._held is None or trial is None or trial.state != TrialState.RUNNING or not new:
            return False
        self._held.setdefault(table, []).extend({"trial_id": trial_id, **row} for row in rows)
        return True

    def _hold_attr(self, table: Any, kind: str, trial_id: int, key: str, value: Any) -> bool:
        new = trial_id in self._trials and key not in getattr(self._trials[trial_id], kind)
        return self._hold(table, trial_id, [{"key": key, "value_json": json.dumps(value)}], new)

    def _change(self, trial_id: int, change: Callable[[FrozenTrial], None]) -> None:
        """Put a changed copy in the trial's place: what was handed out before stays as it was."""
        if self._study is not None and trial_id in self._trials:
            changed = copy.copy(self._trials[trial_id])
            for name in ("user_attrs", "system_attrs", "intermediate_values"):
                setattr(changed, name, dict(getattr(changed, name)))
            change(changed)
            self._trials[trial_id] = changed

    # Trials: written to the database, then to memory; read from memory.

    @override
    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trials = self._of(study_id)
        created = self._database._create_new_trial(study_id, template_trial)  # as public, but says what it made
        trials[created._trial_id] = created
        return int(created._trial_id)

    @override
    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        known = self._kinds.get(param_name)  # else it looks for a trial that has the parameter
        if known is not None:
            check_distribution_compatibility(known, distribution)
        row = {"param_name": param_name, "param_value": param_value_internal}
        row["distribution_json"] = distribution_to_json(distribution)
        if not self._hold(models.TrialParamModel, trial_id, [row], known is not None):
            self._database._set_trial_param(trial_id, param_name, param_value_internal, distribution, known)
        self._kinds[param_name] = distribution

        def change(trial: FrozenTrial) -> None:
            trial.params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}
            trial.distributions = {**trial.distributions, param_name: distribution}

        self._change(trial_id, change)

    @override
    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        stored = [models.TrialValueModel.value_to_stored_repr(value) for value in values or ()]
        rows = [{"objective": i, "value": value, "value_type": kind} for i, (value, kind) in enumerate(stored)]
        held = bool(rows) and self._hold(models.TrialValueModel, trial_id, rows, True)
        done: bool = self._database.set_trial_state_values(trial_id, state, None if held else values)

        def change(trial: FrozenTrial) -> None:
            trial.state = state
            if values is not None:
                trial.values = list(values)
            if state == TrialState.RUNNING:
                trial.datetime_start = datetime.now()
            if state.is_finished():
                trial.datetime_complete = datetime.now()

        if done:
            self._change(trial_id, change)
        return done

    @override
    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._database.set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._change(trial_id, lambda trial: trial.intermediate_values.__setitem__(step, intermediate_value))

    @override
    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if not self._hold_attr(models.TrialUserAttributeModel, "user_attrs", trial_id, key, value):
            self._database.set_trial_user_attr(trial_id, key, value)
        self._change(trial_id, lambda trial: trial.user_attrs.__setitem__(key, value))

    @override
    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if not self._hold_attr(models.TrialSystemAttributeModel, "system_attrs", trial_id, key, value):
            self._database.set_trial_system_attr(trial_id, key, value)
        self._change(trial_id, lambda trial: trial.system_attrs.__setitem__(key, value))

    @override
    def get_trial(self, trial_id: int) -> FrozenTrial:
        known = self._trials.get(trial_id) if self._study is not None else None
        return known if known is not None else self._database.get_trial(trial_id)

    @override
    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        found = [t for t in self._of(study_id).values() if states is None or t.state in states]
        return copy.deepcopy(found) if deepcopy else found

    @override
    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        for trial_id, trial in reversed(self._of(study_id).items()):
            if trial.number == trial_number:
                return trial_id
        raise KeyError(f"study {study_id} has no trial number {trial_number}")

    # Studies: the database's own.

    @override
    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        study_id: int = self._database.create_new_study(directions, study_name)
        return study_id

    @override
    def delete_study(self, study_id: int) -> None:
        self._database.delete_study(study_id)
        self._study = None

    @override
    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._database.set_study_user_attr(study_id, key, value)

    @override
    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._database.set_study_system_attr(study_id, key, value)

    @override
    def get_study_id_from_name(self, study_name: str) -> int:
        study_id: int = self._database.get_study_id_from_name(study_name)
        return study_id

    @override
    def get_study_name_from_id(self, study_id: int) -> str:
        return str(self._database.get_study_name_from_id(study_id))

    @override
    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return list(self._database.get_study_directions(study_id))

    @override
    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return dict(self._database.get_study_user_attrs(study_id))

    @override
    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return dict(self._database.get_study_system_attrs(study_id))

    @override
    def get_all_studies(self) -> list[FrozenStudy]:
        return list(self._database.get_all_studies())
