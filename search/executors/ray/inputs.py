"""What every host that carries out trials of a study reads: fetched by the driver, so that no other host need."""

from __future__ import annotations

import json
from pathlib import Path

from search.study.config import Config
from tasks import cache
from tasks.mnist import data
from trainers.base import DenseSpec

SPLITS = ("train", "validation")  # the test split travels when it is judged on, not before


def inputs(config: Config) -> list[Path]:
    """Folders of the cache: the data set's splits, fetched if they are not there, and the study's dense models as far
    as they were trained before. Raises DataError as `tasks.mnist.data.load`.
    """
    home = config.root / "cache" / "data" / config.study.data.name
    if not all(cache.get(home / split) for split in SPLITS) or not (home / "test").is_dir():
        own = config.study.data.folder
        folder = Path(own).expanduser() if own else None
        data.load(config.study.data.name, config.root / "cache", folder=folder)
    dense = sorted((config.root / "cache" / "dense").glob("[!.]*"))
    return [*(home / split for split in SPLITS), *(folder for folder in dense if _of_study(folder, config))]


def _of_study(folder: Path, config: Config) -> bool:
    """Whether the folder holds, intact, a dense model that this study would train."""
    if not cache.get(folder):
        return False
    key = json.loads((folder / cache.KEY).read_text())
    return any(spec.to_dict().items() <= key.items() for spec in _specs(config))


def _specs(config: Config) -> list[DenseSpec]:
    space = config.study.space
    names = [f"{trainer}/{model}" for trainer in space.trainers() for model in space.models()]
    names += [str(teacher) for teacher in space.teachers() if teacher != "baseline"]
    return [config.study.dense_spec(*name.split("/")) for name in names]
