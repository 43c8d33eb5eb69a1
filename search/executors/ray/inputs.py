"""What every host that carries out trials of a study reads: made by the driver's host, so that no other need."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from search.errors import SettingsError
from search.study.config import Config
from tasks import cache
from tasks.base import TaskInfo, code_digest
from tasks.load import user_files
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


def with_code(config: Config) -> Config:
    """The configuration with the user's files in a folder of the cache, which travels; raises SettingsError for a file
    outside the study's folder.
    """
    files = user_files(config.task)
    if not files:
        return config
    if outside := [file for file in files if not file.is_relative_to(config.folder)]:
        raise SettingsError(
            f"study.task: {outside[0]} lies outside {config.folder} and cannot be sent to a cluster; put it below that "
            "folder and name it by its relative path"
        )
    key = {"files": [file.relative_to(config.folder).as_posix() for file in files], "digest": code_digest(files)}
    folder = cache.entry(config.root / "cache", "code", key)

    def copy(into: Path) -> None:
        for file in files:
            place = into / file.relative_to(config.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)

    cache.fill(folder, copy, key)
    return config.at(folder)


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
