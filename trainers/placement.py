"""Which layers stay float: the choice from what each gains and costs as an integer one. Pure functions, no
framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """`keep_float`: layers that stay float, in order. `gain`: seconds saved by the others; `drop`: what they cost."""

    keep_float: tuple[str, ...]
    gain: float
    drop: float


def choose(gains: Mapping[str, float], drops: Mapping[str, float], max_drop: float) -> Placement:
    """Make integer what saves the most time for the quality that it costs, while the sum of costs stays in `max_drop`.

    `gains`: layer -> seconds that it saves as an integer layer, negative where it is slower; what is not above 0 stays
    float. `drops`: layer -> the metric lost with that layer alone in integers, in the direction in which more is worse;
    below 0 (noise) it counts as 0. Costs are added up, which is an estimate: the whole is measured afterwards, and
    asked for again with a smaller `max_drop` where it was too hopeful. Greedy by gain over cost: within the largest
    single gain of the best choice (Dantzig, 1957).
    """
    if missing := [name for name in gains if name not in drops]:
        raise ValueError(f"placement: no drop is known for {', '.join(missing)}")
    useful = [name for name in gains if gains[name] > 0]
    useful.sort(key=lambda name: (max(0.0, drops[name]) / gains[name], -gains[name], name))
    integer: set[str] = set()
    spent = 0.0
    for name in useful:
        cost = max(0.0, drops[name])
        if spent + cost <= max_drop:
            integer.add(name)
            spent += cost
    kept = tuple(name for name in gains if name not in integer)
    return Placement(kept, sum(gains[name] for name in integer), spent)
