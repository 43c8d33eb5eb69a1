"""The stage in which a network's weights settle on few integers, one step for each tensor; activations stay float."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
from torch import nn

from packing.graph.smaller import smaller
from trainers.pytorch import grid
from trainers.pytorch.masks import HeldMasks, Masks, maskable


def parameters_of(model: nn.Module) -> list[str]:
    """Names of the matrices and kernels that masks reach, recurrent layers' apart, and of the biases beside them."""
    found = []
    for name in maskable(model):
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):  # they keep their weights in lists of their own
            bias = attribute.replace("weight", "bias")
            found += [name] + [f"{owner}.{bias}"] * (getattr(module, bias, None) is not None)
    return found


def settle(model: nn.Module, levels: int | Mapping[str, int], masks: Masks, fit: Callable[[HeldMasks], None]) -> None:
    """Put weights and biases on grids, train with `fit` under the masks, and leave the values on the grids in `model`.

    `levels`: the largest integer of every grid, or of each weight's own, by name; a weight that has none stays float,
    and its bias too. `masks`: by parameter name. A weight that rounds to zero stays so in the file.
    """
    names, grids = list[str](), dict[str, grid.Grid]()
    for name in parameters_of(model):
        owner, _, attribute = name.rpartition(".")
        weight = f"{owner}.{attribute.replace('bias', 'weight')}"
        own = levels if isinstance(levels, int) else levels.get(weight, 0)
        if own:
            names.append(name)
            grids |= grid.attach(model, own, [name])
    try:
        fit(HeldMasks(model, {inner(name) if name in grids else name: mask for name, mask in masks.items()}))
    finally:
        grid.detach(model, names)


def inner(name: str) -> str:
    """Where the parameter `name` lies while it is on a grid."""
    owner, _, attribute = name.rpartition(".")
    return f"{owner}.parametrizations.{attribute}.original"


def shrink(file: Path) -> None:
    """Replace the ONNX file by a smaller one that computes the same; what it said of itself goes into NAME.json.

    Units that are dead go; constants stay where they would move a bias off its grid. Normalizations that were folded
    into weights on a grid are taken out again, which rounds their steps to 11 bits.
    """
    made, about = smaller(onnx.load(file), fold=False, steps=True)
    file.write_bytes(made.SerializeToString())
    file.with_suffix(".json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
