"""Whether a study's sweep is finished, asked of the database file itself: Optuna and MLflow take a second to import.

The only file that reads Optuna's tables with SQL of its own. It answers where all is plain; whatever else it finds, the
driver looks again with Optuna.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from search.study.agree import changed_settings
from search.study.config import Config
from search.study.metrics import KEY, Metrics

_NAMES = "select study_id, study_name from studies where study_name like ? escape '!'"
_ATTRIBUTES = "select key, value_json from study_user_attributes where study_id = ?"
# What only waits changes nothing: a reference for which the budget had no room.
_OPEN = "select count(*) from trials where study_id = ? and state = 'RUNNING'"
_SETTLED = (
    "select count(*) from trials join trial_user_attributes using (trial_id) "
    "where study_id = ? and key = 'record' and state in ('COMPLETE', 'PRUNED', 'FAIL')"
)


def finished(config: Config) -> tuple[str, dict[str, Any]] | None:
    """(the sweep's name, what was stored when it ended: its `table` and `finished`), None where there is work to do."""
    file = config.root / "optuna.db"
    if config.fresh or config.storage.name != "sqlite" or not file.is_file():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=2)) as database:
            return _read(database, config)
    except (sqlite3.Error, ValueError, KeyError, TypeError):
        return None


def _read(database: sqlite3.Connection, config: Config) -> tuple[str, dict[str, Any]] | None:
    study = config.study
    like = study.name.replace("_", "!_") + "-%"
    numbers = {name: key for key, name in database.execute(_NAMES, [like]) if _is_sweep(name, study.name)}
    name = config.sweep or max(numbers, key=lambda each: int(each.rpartition("-")[2]), default="")
    if name not in numbers:
        return None
    stored = {key: json.loads(value) for key, value in database.execute(_ATTRIBUTES, [numbers[name]])}
    count = database.execute(_SETTLED, [numbers[name]]).fetchone()[0]
    still_open = database.execute(_OPEN, [numbers[name]]).fetchone()[0]
    # What a sweep keeps by `put` is JSON within the attribute's own.
    state = json.loads(stored["finished"])
    if still_open or state != [count, study.budget.trials, study.confirm.model_dump()] or not _agrees(stored, config):
        return None
    return name, {"finished": state, "table": json.loads(stored["table"])}


def _agrees(stored: Mapping[str, Any], config: Config) -> bool:
    """Whether settings and metrics are those of the sweep; a task that only a worker can describe has to be asked."""
    metrics = Metrics.of(config.task)
    if metrics is None or changed_settings(stored["settings"], config.study):
        return False
    return metrics.directions_by_name() == Metrics.from_json(stored.get(KEY)).directions_by_name()


def _is_sweep(name: str, study: str) -> bool:
    return name.rpartition("-")[0] == study and name.rpartition("-")[2].isdigit()
