"""Pure figures of a comparison: what a search has announced, hypervolume over time, ratios with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.front import pareto

DIRECTIONS = ("maximize", "minimize", "minimize")  # accuracy, latency ratio, size ratio


@dataclass(frozen=True)
class Settled:
    """A trial that got a decision, `at` seconds after the command was given.

    `state`: trained, stopped, copied or failed. `values`: what the search itself measured: accuracy, latency in ms and
    bytes; of a trained one only. `file`: what it exported.
    """

    at: float
    state: str
    values: tuple[float, float, float] | None = None
    file: str = ""


def counted(trials: Sequence[Settled]) -> dict[str, int]:
    """How many trials of each state; `settled`: trained, or stopped with a reason."""
    found = {state: sum(t.state == state for t in trials) for state in ("trained", "stopped", "copied", "failed")}
    return {"settled": found["trained"] + found["stopped"], **found}


def announced(trials: Sequence[Settled], least: float) -> list[int]:
    """Indices of the trials that stood on the search's own front when they ended, by its own figures.

    `least`: the accuracy that the study asks for; what is below it is on no front.
    """
    found: list[int] = []
    members = np.empty((0, 3))
    for index in sorted(range(len(trials)), key=lambda i: trials[i].at):
        values = trials[index].values
        if values is None or values[0] < least:
            continue
        point = np.array([-values[0], values[1], values[2]])
        if not (members <= point).all(axis=1).any():
            members = np.vstack([members[~(point <= members).all(axis=1)], point])
            found.append(index)
    return found


def last_front(trials: Sequence[Settled], least: float) -> list[int]:
    """Indices of the trials on the search's own front at its end."""
    usable = [i for i, t in enumerate(trials) if t.values is not None and t.values[0] >= least]
    values = np.array([trials[i].values for i in usable]).reshape(len(usable), 3)
    return [i for i, kept in zip(usable, pareto.front(values, DIRECTIONS), strict=True) if kept]


def share(points: Sequence[Sequence[float]], least: float) -> float:
    """Hypervolume of (accuracy, latency ratio, size ratio) as a share of the box from `least`, 1, 1 to 1, 0, 0."""
    table = np.array(points, dtype=float).reshape(len(points), 3)
    return pareto.hypervolume(table, DIRECTIONS, (least, 1.0, 1.0)) / (1.0 - least)


def curve(times: Sequence[float], points: Sequence[Sequence[float]], least: float) -> list[tuple[float, float]]:
    """(seconds, share of the box) after each point, in order of time; the share never falls."""
    order = sorted(range(len(times)), key=lambda i: times[i])
    return [(times[last], share([points[i] for i in order[: place + 1]], least)) for place, last in enumerate(order)]


def time_to(reached: Sequence[tuple[float, float]], level: float) -> float:
    """Seconds until the curve is at `level`; infinite when it never is."""
    return next((at for at, volume in reached if volume >= level * (1 - 1e-12)), math.inf)


def median_interval(values: Sequence[float]) -> tuple[float, float, float, float]:
    """(median, low, high, coverage): the narrowest pair of order statistics that holds the median with 95 %.

    Distribution-free (the sign test); with fewer than six values no pair does, and all of them give less: 93.75 % of
    five, 75 % of three. Infinite values count as large.
    """
    ordered, n = sorted(values), len(values)
    if not n:
        raise ValueError("values: none were given")
    middle = ordered[n // 2] if n % 2 or math.isinf(ordered[n // 2]) else (ordered[n // 2 - 1] + ordered[n // 2]) / 2
    for cut in range((n - 1) // 2, -1, -1):
        coverage = 1 - 2 * sum(math.comb(n, k) for k in range(cut + 1)) / 2**n
        if coverage >= 0.95 or cut == 0:
            break
    return middle, ordered[cut], ordered[n - 1 - cut], max(0.0, coverage)


def wilson(accuracy: float, samples: int) -> tuple[float, float]:
    """95 % interval of an accuracy on so many samples (Wilson, JASA 22, 1927)."""
    z, n = 1.96, samples
    middle = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def compared(plain: dict[str, Any], pare: dict[str, Any], minutes: float) -> dict[str, float]:
    """One seed's figures. Of each search: `counts`, `curve` on validation, `test_share` of its last front.

    `time_ratio`: Pare's wall-clock until the plain script's final hypervolume, over the plain script's own.
    """
    level = plain["curve"][-1][1] if plain["curve"] else 0.0
    own, ours = time_to(plain["curve"], level), time_to(pare["curve"], level)
    hours = minutes / 60
    return {
        "plain_settled_per_hour": plain["counts"]["settled"] / hours,
        "pare_settled_per_hour": pare["counts"]["settled"] / hours,
        "plain_trained_per_hour": plain["counts"]["trained"] / hours,
        "pare_trained_per_hour": pare["counts"]["trained"] / hours,
        "settled_ratio": pare["counts"]["settled"] / max(1, plain["counts"]["settled"]),
        "trained_ratio": pare["counts"]["trained"] / max(1, plain["counts"]["trained"]),
        "plain_seconds": own,
        "pare_seconds": ours,
        "time_ratio": ours / own if own < math.inf else math.nan,
        "plain_volume": level,
        "pare_volume": pare["curve"][-1][1] if pare["curve"] else 0.0,
        "plain_test_volume": plain["test_share"],
        "pare_test_volume": pare["test_share"],
        "test_volume_difference": pare["test_share"] - plain["test_share"],
    }
