"""A recipe as numbers in which alike recipes lie close, so that one trial tells something of many.

Recipes that prune single weights and such that remove channels share no parameter, but both keep some share of the
weights and some width; a scheme is a number of bits. Fields that a recipe leaves without effect stand at their default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainers.recipe import Recipe

BITS = {
    "none": 32,
    "float16": 16,
    "dynamic_int8": 8,
    "static_int8": 8,
    "qat_int8": 8,
    "qat_int4": 4,
    "weights_int4": 4,
    "weights_mixed": 4,
    "weight_only_int8": 8,
    "weight_only_int4": 4,
    "weights_int3": 3,
    "weights_int2": 2,
}
_LOGARITHMIC = ("learning_rate", "temperature", "batch_size", "epochs")  # by the end of a field's name
# Said by density, width and bits instead.
_REPLACED = ("pruning.sparsity", "pruning.density", "pruning.channels", "quantization.clusters")


def features(recipe: Recipe) -> dict[str, float | str]:
    """Name -> number, or a word that is one of a few, of a canonical recipe; numbers on the scale on which they act.

    `density`: log2 of the share of weights that is kept; `width`: the share of channels; `bits`: log2 of the bits of a
    weight; rates, temperatures and epochs as logarithms; what else the recipe says by its dotted field.
    """
    return features_of_canonical(recipe.canonical())


def features_of_canonical(recipe: Recipe) -> dict[str, float | str]:
    """The same of a recipe that is canonical already: a sampler makes hundreds for each trial."""
    pruning, width = recipe.pruning, 1.0
    kept = 1.0 - pruning.sparsity
    if pruning.granularity == "channel":
        width, kept = kept, kept**2
    elif pruning.channels:
        width = 1.0 - pruning.channels
    mixed = recipe.quantization.scheme == "weights_mixed"
    bits = recipe.quantization.bits if mixed else float(BITS.get(recipe.quantization.scheme, 8))
    if recipe.quantization.clusters:
        bits = min(bits, math.log2(recipe.quantization.clusters))
    found: dict[str, float | str] = {"density": math.log2(max(kept, 1e-4)), "width": width, "bits": math.log2(bits)}
    found |= {"qat": float(recipe.quantization.trained), "model": recipe.model, "trainer": recipe.trainer}
    for section in ("pruning", "quantization", "distillation", "finetuning"):
        for field, value in vars(getattr(recipe, section)).items():
            if (name := f"{section}.{field}") not in _REPLACED:
                found[name] = _scaled(name, value)
    return found


def _scaled(name: str, value: Any) -> float | str:
    if isinstance(value, str):
        return value
    if name.endswith(_LOGARITHMIC):
        return math.log2(float(value) + 1 / 64) if "epochs" in name or not value else math.log2(float(value))
    return float(value)


class Columns:
    """Mappings of numbers and words as a table: what varies among the points it was made of, each column in [0, 1].

    A word gives one column per value, one for two values; a name that a point lacks gives the middle of its column.
    Points that were not among those may lie outside [0, 1].
    """

    def __init__(self, points: Sequence[Mapping[str, float | str]]):
        self._low: dict[str, tuple[float, float]] = {}
        self._words: dict[str, list[str]] = {}
        for name in sorted({name for point in points for name in point}):
            values = [point[name] for point in points if name in point]
            words = sorted({value for value in values if isinstance(value, str)})
            if words:
                if len(words) > 1 or len(values) < len(points):
                    self._words[name] = words
            elif (low := float(min(values))) < (high := float(max(values))):
                self._low[name] = low, high - low

    def table(self, points: Sequence[Mapping[str, float | str]]) -> np.ndarray:
        """float [n, columns]; at least one column."""
        columns = [
            [(float(point[name]) - low) / span if name in point else 0.5 for point in points]
            for name, (low, span) in self._low.items()
        ]
        for name, words in self._words.items():
            told = words[1:] if len(words) == 2 else words
            columns += [[float(point.get(name) == word) for point in points] for word in told]
        return np.array(columns).T if columns else np.zeros((len(points), 1))
