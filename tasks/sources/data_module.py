"""A LightningDataModule's loaders as splits."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import TaskError
from tasks.sources import Opening
from tasks.user_code import guarded, ticking

LOADERS = {"train": "train_dataloader", "validation": "val_dataloader", "test": "test_dataloader"}
STAGES = {"train": "fit", "validation": "fit", "test": "test"}


@dataclass(frozen=True)
class Later:
    """A split that is made when it is opened."""

    open: Callable[[], Any]


def is_data_module(data: Any) -> bool:
    """Whether it is a LightningDataModule, or a class of them."""
    lineage = inspect.getmro(data) if inspect.isclass(data) else inspect.getmro(type(data))
    return any(each.__name__ == "LightningDataModule" for each in lineage)


def module_splits(opening: Opening, data: Any, name: str, folder: Path | None) -> dict[str, Any]:
    """Split -> its loader, made when it is opened; `prepare_data` runs at once, `setup` once per stage."""
    module = data
    if inspect.isclass(data):
        with guarded("data", f"{name}()", folder):
            module = data()
    with guarded("data", f"{name}.prepare_data()", folder), ticking(opening.progress, f"{name}.prepare_data()"):
        module.prepare_data()
    done: set[str] = set()

    def loader(split: str) -> Any:
        stage = STAGES[split]
        if stage not in done:
            with guarded("data", f"{name}.setup({stage!r})", folder), ticking(opening.progress, f"{name}.setup()"):
                module.setup(stage)
            done.add(stage)
        with guarded("data", f"{name}.{LOADERS[split]}()", folder):
            made = getattr(module, LOADERS[split])()
        if isinstance(made, list | tuple | dict):
            raise TaskError(f"{name}.{LOADERS[split]}() gives {len(made)} loaders; give one", "data")
        return made

    there = [split for split, method in LOADERS.items() if _defined(module, method)]
    if "train" not in there:
        raise TaskError(f"{name}: has no train_dataloader()", "data")
    return {split: Later(functools.partial(loader, split)) for split in there}


def _defined(module: Any, method: str) -> bool:
    owner = next((each for each in type(module).__mro__ if method in vars(each)), None)
    return owner is not None and not owner.__module__.startswith(("lightning.", "pytorch_lightning."))
