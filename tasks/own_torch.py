"""`FILE.py` with a PyTorch model of one's own. Only workers import this."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks import weights
from tasks.address import located
from tasks.base import Task, TaskError, TaskSpec
from tasks.bench import Bench, instance
from tasks.images import ImageOptions
from tasks.sources import Wants
from tasks.torch_half import TorchHalf


@dataclass
class OwnSubject:
    """Models that the user's functions make. See `tasks.torch_program.Subject`."""

    spec: TaskSpec
    name: str
    factories: Mapping[str, Callable[[], Any]]
    folder: Path | None
    trained: bool | None = None
    heads: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def build(self, model: str = "") -> nn.Module:
        """See Subject; the weights are of the first model."""
        chosen = model or self.name
        made = self._made(chosen)
        if isinstance(made, nn.Module) and self.spec.weights and chosen == self.name:
            weights.fit(made, located(self.spec, self.spec.weights))
        return made

    def _made(self, name: str) -> nn.Module:
        made: nn.Module = instance(self.factories[name], name, self.folder)
        lazy = [n for n, each in made.named_parameters() if nn.parameter.is_lazy(each)] if _is_module(made) else []
        if lazy:
            layer = lazy[0].rpartition(".")[0] or "it"
            raise TaskError(f"{name}: layer {layer} has no sizes yet (a Lazy layer); give it its sizes", "model")
        return made

    def pretrained(self, model: str = "") -> bool:
        """See Subject: with weights of the study, or where two calls of the function give equal ones."""
        chosen = model or self.name
        if self.spec.weights and chosen == self.name:
            return True
        return chosen in self._loaded

    @functools.cached_property
    def _loaded(self) -> set[str]:
        """Models that come with weights: as TRAINED of the file says, else those that two seeds make alike."""
        said = self.trained
        return set(self.factories if said else ()) if said is not None else set(filter(self._same, self.factories))

    def _same(self, name: str) -> bool:
        states = []
        for seed in (0, 1):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                states.append(self._made(name).state_dict())
        weighted = [key for key, value in states[0].items() if value.is_floating_point() and value.dim() > 1]
        alike = bool(weighted) and all(torch.equal(states[0][key], states[1][key]) for key in weighted)
        if alike:
            self.notes.append(
                f"{name}: the same weights whenever it is made, so it is taken as trained; TRAINED = False in the file "
                "says that it is not"
            )
        return alike


def _is_module(made: object) -> bool:
    return isinstance(made, nn.Module)


def own_task(bench: Bench, factories: Mapping[str, Callable[[], Any]], folder: Path | None) -> Task:
    """A task of the user's own PyTorch model, with data of theirs or of a known kind."""
    name = next(iter(factories))
    subject = OwnSubject(bench.spec, name, factories, folder, bench.parts.trained)
    splits = bench.open(Wants(image=image_options(bench)))
    if bench.spec.size is not None and splits.source.facts.get("image") is None:
        raise TaskError("task.size: the data holds no image files or raw pixels that could be resized; leave it out")
    targets = splits.open("train").take(np.arange(1))[1]
    half = TorchHalf(bench.spec, subject, bench.parts, subject.notes, has_targets=targets is not None)
    half.models = tuple(factories)
    half.notes = subject.notes
    _ = [subject.pretrained(model) for model in half.models]  # notes say what is taken as trained
    return bench.task(name, half, splits)


def image_options(bench: Bench) -> ImageOptions | None:
    """How image files become inputs of a model of one's own: PREPROCESS of the file over ImageNet's usual values.

    None where the data is no image folder and the file says nothing of images.
    """
    said = dict(bench.parts.image or {})
    if bench.data.kind != "imagefolder" and not said:
        return None
    known = set(ImageOptions().to_dict())
    if strange := sorted(set(said) - known):
        raise TaskError(f"PREPROCESS: has no {', '.join(strange)}; choose from {', '.join(sorted(known))}", "data")
    size = said.pop("size", None) or bench.spec.size
    if size is None:
        raise TaskError("task.size: missing; a model of your own does not say which size of image it takes", "data")
    side = (size, size) if isinstance(size, int) else tuple(size)
    said.setdefault("resize", min(side))
    lists: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    return ImageOptions(size=side, **lists)
