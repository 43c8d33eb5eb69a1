"""Recipes to choose from: drawn from a study's space, at random or near what is good already."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.sampling.encoding import features_of_canonical
from search.study.space import Choice, Range, Space
from trainers.recipe import Recipe

_NEAR = 0.1  # of a range: how far a number moves
_MOVES = 0.3  # how often a parameter of a neighbour is another


@dataclass(frozen=True)
class Candidate:
    """A point of the space: `params` as Optuna names them, the recipe they make, and its features."""

    params: Mapping[str, Any]
    recipe: Recipe
    features: Mapping[str, float | str]


def drawn(space: Space, rng: np.random.Generator, fixed: Mapping[str, Any] | None = None) -> Candidate:
    """A random point of the space. `fixed`: parameters that are given already."""
    fixed = fixed or {}
    return _made(space, lambda name, entry: fixed[name] if name in fixed else _random(entry, rng))


def neighbour(space: Space, rng: np.random.Generator, params: Mapping[str, Any]) -> Candidate:
    """A point near that one: most parameters as they are, some moved or drawn again."""

    def pick(name: str, entry: Choice | Range) -> Any:
        if name not in params or (rng.random() < _MOVES and isinstance(entry, Choice)):
            return _random(entry, rng)
        return _moved(entry, params[name], rng) if rng.random() < _MOVES else params[name]

    return _made(space, pick)


def given(space: Space, params: Mapping[str, Any]) -> Candidate | None:
    """The point that a trial's parameters are; None where some are missing."""
    try:
        return _made(space, lambda name, entry: params[name])
    except KeyError:
        return None


def _made(space: Space, pick: Callable[[str, Choice | Range], Any]) -> Candidate:
    params: dict[str, Any] = {}

    def kept(name: str, entry: Choice | Range) -> Any:
        params[name] = pick(name, entry)
        return params[name]

    recipe = space.made(kept)
    return Candidate(params, recipe, features_of_canonical(recipe))


def _random(entry: Choice | Range, rng: np.random.Generator) -> Any:
    if isinstance(entry, Choice):
        return entry.values[int(rng.integers(len(entry.values)))]
    return _at(entry, float(rng.random()))


def _moved(entry: Choice | Range, value: Any, rng: np.random.Generator) -> Any:
    if isinstance(entry, Choice) or entry.low == entry.high:
        return value
    scale = math.log if entry.log else float
    share = (scale(value) - scale(entry.low)) / (scale(entry.high) - scale(entry.low))
    return _at(entry, float(np.clip(share + _NEAR * rng.standard_normal(), 0.0, 1.0)))


def _at(entry: Range, share: float) -> float | int:
    """The value at that share of the range, on its grid."""
    if entry.log:
        value = math.exp(math.log(entry.low) + share * (math.log(entry.high) - math.log(entry.low)))
    else:
        value = entry.low + share * (entry.high - entry.low)
    step = entry.step or (1.0 if entry.whole else None)
    if step:
        value = entry.low + step * math.floor((value - entry.low) / step + 0.5)
        value = round(min(value, entry.low + step * math.floor((entry.high - entry.low) / step + 1e-9)), 12)
    value = min(max(value, entry.low), entry.high)
    return round(value) if entry.whole else value
