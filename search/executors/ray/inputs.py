"""What every host that carries out trials of a study reads: made by the driver's host, so that no other need."""

from __future__ import annotations

import json
from pathlib import Path

from search.errors import SettingsError
from search.study.config import Config
from tasks import cache
from tasks.base import TaskInfo
from trainers.base import DenseSpec

SPLITS = ("train", "validation")  # the test split travels when it is judged on, not before


def inputs(config: Config, info: TaskInfo | None) -> list[Path]:
    """Folders of the cache: the task's splits, the user's code, and the study's dense models as far as they were
    trained before. Raises SettingsError where a split lies in no folder that can be sent.
    """
    assert info is not None, "a cluster's driver asks for the task first"
    home = config.root / "cache"
    if missing := [split for split in SPLITS if split in info.counts and split not in info.places]:
        raise SettingsError(
            f"executor: the {' and the '.join(missing)} split of the task {info.name} is read from its source in every "
            "epoch and cannot be sent to a cluster; give data that is the same in every reading, or use executor=local"
        )
    places = [home / info.places[split] for split in SPLITS if split in info.places]
    code = [config.folder] if config.folder.is_relative_to(config.root) else []
    dense = sorted((home / "dense").glob("[!.]*"))
    return [*places, *code, *(folder for folder in dense if _of_study(folder, config))]


def _of_study(folder: Path, config: Config) -> bool:
    """Whether the folder holds, intact, a dense model that this study would train."""
    if not cache.get(folder):
        return False
    key = json.loads((folder / cache.KEY).read_text())
    return any({**spec.to_dict(), "task": key.get("task")}.items() <= key.items() for spec in _specs(config))


def _specs(config: Config) -> list[DenseSpec]:
    space = config.study.space
    names = [f"{trainer}/{model}" for trainer in space.trainers() for model in space.models()]
    names += [str(teacher) for teacher in space.teachers() if teacher != "baseline"]
    return [config.study.dense_spec(*name.split("/")) for name in names]
