"""Fine-tuned networks on disk: recipes that differ only in what follows the fine-tuning share one training.

What is read back is bit by bit what training again would give, the state of torch's random numbers too, so a recipe's
file does not depend on whether another one came before it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks import cache
from tasks.base import digest_of
from trainers.base import Dense, Job, Teacher
from trainers.pytorch.checkpoint import State, network_state, restore_network
from trainers.pytorch.layers import plain_layers
from trainers.recipe import FineTuning, Quantization, Recipe

MOST_BYTES = 2_000_000_000  # of all networks below one root; those used longest ago go first
FILE = "network.pt"
TAKEN = "the fine-tuned network is that of an equal training before"


class Finetuned:
    """Where the network of one recipe's fine-tuning is kept. `key`: everything that made it."""

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self._root, self._key = folder, dict(key)
        self._folder = cache.entry(folder.parent, folder.name, self._key)

    def load(self) -> State | None:
        """What was saved; None without, or when it is damaged or removed meanwhile."""
        try:
            if not cache.get(self._folder):
                return None
            os.utime(self._folder)  # used now
            state: State = torch.load(self._folder / FILE, map_location="cpu", weights_only=True)
        except OSError:
            return None
        return state

    def save(self, state: State) -> str:
        """Keep the state, and remove what was used longest ago; returns why it was not kept, "" if it was.

        A training does not end because of a full disk, and a network that would fill the cache alone is not kept.
        """
        if sum(each.nbytes for each in state["network"]["weights"].values()) > MOST_BYTES // 4:
            return ""
        try:
            cache.fill(self._folder, lambda into: torch.save(state, into / FILE), self._key)
            cache.trim(self._root, MOST_BYTES)
        except (OSError, RuntimeError) as error:  # cache.CacheError and torch's own are RuntimeErrors
            return f"the fine-tuned network was not kept: {str(error).splitlines()[0]}"
        return ""


def finetuned(
    recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job, device: torch.device, versions: Mapping[str, str]
) -> Finetuned | None:
    """Where this recipe's fine-tuned network is kept; None where the job keeps none or there is no fine-tuning."""
    taught = recipe.distillation.kind != "none"
    if job.networks is None or not recipe.trains or (taught and (teacher is None or teacher.dense is None)):
        return None
    tuning = replace(recipe.finetuning, qat_epochs=FineTuning().qat_epochs, qat_learning_rate=0.0)
    network = replace(recipe, quantization=Quantization(), finetuning=tuning).canonical()
    key = {
        "recipe": network.essence(),
        "dense": asdict(dense.spec),
        "weights": _sums(dense.folder),
        "teacher": [asdict(teacher.dense.spec), _sums(teacher.dense.folder)]
        if taught and teacher is not None and teacher.dense is not None
        else None,
        "versions": dict(versions),
        "code": _code(),
        "device": [str(device), torch.backends.cpu.get_cpu_capability(), job.threads],
    }
    return Finetuned(job.networks, key)


def state_of(
    model: nn.Module, masks: Mapping[str, torch.Tensor], pruned: float, curves: list[dict[str, float]], notes: list[str]
) -> State:
    """The network and what is known of its training, with the state of the random numbers that follow."""
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return {
        "network": network_state(model),
        "masks": {name: mask.detach().cpu() for name, mask in masks.items()},
        "pruned": pruned,
        "curves": curves,
        "notes": notes,
        "random": [torch.get_rng_state(), *cuda],
    }


def restore(model: nn.Module, state: State, plain: bool) -> None:
    """Give the freshly built network what `state_of` kept, in place. `plain`: whether pruning had made it plain."""
    if plain:
        plain_layers(model)
    restore_network(model, state["network"])
    general, *cuda = state["random"]
    torch.set_rng_state(general)
    if cuda:
        torch.cuda.set_rng_state(cuda[0])


def _sums(folder: Path) -> str:
    """Of the weights that a training starts from or learns from: two trainings of one spec may differ in bits."""
    weights = folder / "weights.safetensors"
    return cache.sha256_of(weights if weights.is_file() else folder / "record.json")


@functools.cache
def _code() -> str:
    """Of the source that decides what comes out."""
    here = Path(__file__).parent
    return digest_of([file.read_text() for file in (*sorted(here.glob("*.py")), here.parent / "recipe.py")])
