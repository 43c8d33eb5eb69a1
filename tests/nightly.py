"""Nightly sweeps of a planted objective, searched by the real sampler and confirmed by the real rules, in memory."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd

from benchmarks import planted
from search.front import pareto
from search.front.interval import mean_interval
from search.front.summary import Summary
from search.sampling.samplers import samplers
from search.study.metrics import Metrics
from trainers.recipe import Recipe

AXES = ["accuracy", "latency_ms", "size_bytes"]
METRICS = Metrics()
DIRECTIONS = METRICS.directions(AXES)
SEEDS = 3


def measured(recipe: Recipe, luck: np.random.Generator, shift: float, slow: float) -> dict[str, float]:
    """One training's figures: `shift` points of accuracy lost, `slow` times the latency."""
    found = planted.surface(replace(recipe, seed=int(luck.integers(2**31))))
    pace = slow * float(luck.normal(1, 0.01))
    for name in ("latency_ratio", "latency_ms"):
        found[name] *= pace
        found |= {f"{name}_low": found[name] * 0.97, f"{name}_high": found[name] * 1.03}
    found["accuracy"] -= shift
    found["accuracy_drop"] += shift
    return found


def sweep(seed: int, trials: int = 18, shift: float = 0.0, slow: float = 1.0, seeds: int = SEEDS) -> Summary:
    """One night: the study `mnist_prune`, `trials` of it, its front confirmed with `seeds` fresh trainings."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = planted.config(Path("unused"), trials, 1, sampler={"name": "tpe"}).study  # cheap: many nights are searched
    luck = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = optuna.create_study(directions=DIRECTIONS, sampler=samplers(study, seed))
        for partial in study.references.values():
            search.enqueue_trial(study.space.reference(partial))
        rows = []
        for number in range(trials):
            trial = search.ask()
            recipe = study.space.suggest(trial)
            row: dict[str, Any] = measured(recipe, luck, shift, slow)
            violations = [limit.violation(row[limit.metric]) for limit in study.limits]
            for limit, amount in zip(study.limits, violations, strict=True):
                trial.set_constraint(str(limit), amount)
            search.tell(trial, [row[name] for name in AXES])
            reference = list(study.references)[number] if number < len(study.references) else ""
            feasible = all(amount <= 0 for amount in violations)
            rows.append({**recipe.flat(), **row, "number": number, "reference": reference, "feasible": feasible})
    trials_of = pd.DataFrame(rows).assign(
        state="complete", confirmed="", duplicate_of=-1, on_front=False, unconfirmed=False, knee=False
    )
    raw = pareto.front(np.where(trials_of[["feasible"]], trials_of[AXES], np.nan), DIRECTIONS)
    trials_of["on_front"] = raw
    if seeds:
        confirm(trials_of, raw, luck, shift, slow, seeds)
    about = {"reference": [planted.DENSE["accuracy"] - 0.02, 0.12, 1.75e6], "settings": {"seed": "0"}, "tags": {}}
    return Summary(
        "mnist_prune", f"mnist_prune-{seed:03d}", about, METRICS, AXES, trials_of, pd.DataFrame(), True, None
    )


def confirm(
    rows: pd.DataFrame, members: np.ndarray, luck: np.random.Generator, shift: float, slow: float, seeds: int
) -> None:
    """Put means of fresh trainings with their intervals in the place of what the search had found."""
    ends = {}
    for index in np.flatnonzero(members):
        recipe = Recipe.from_dict(_nested(rows.iloc[index]))
        again = [measured(recipe, luck, shift, slow) for _ in range(seeds)]
        for name in [name for name in again[0] if not name.endswith(("_low", "_high"))]:
            rows.loc[index, f"search/{name}"] = rows.loc[index, name]  # type: ignore[index]
            mean, low, high = mean_interval([one[name] for one in again], 1e-4 * ("accuracy" in name))
            low, high = (min(low, 0.98 * mean), max(high, 1.02 * mean)) if "latency" in name else (low, high)
            rows.loc[index, [name, f"{name}_low", f"{name}_high"]] = mean, low, high
        ends[index] = [rows.loc[index, [f"{n}_low", f"{n}_high"]].to_numpy(float) for n in AXES]
    table = np.array(list(ends.values()))
    kept = pareto.noise_front(table[:, :, 0], table[:, :, 1], DIRECTIONS)
    rows["on_front"] = False
    for index, on_front in zip(ends, kept, strict=True):
        rows.loc[index, "confirmed"] = "front" if on_front else "dominated"
        rows.loc[index, "on_front"] = bool(on_front)


def _nested(row: pd.Series) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in Recipe(model="").flat():
        section, _, key = name.rpartition(".")
        value = row[name].item() if hasattr(row[name], "item") else row[name]
        (found.setdefault(section, {}) if section else found)[key] = value
    return found
