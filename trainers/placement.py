"""Which layers stay float: the choice from what each gains and costs as an integer one, and its memory. No framework.

What is decided by time would be decided otherwise in the next second; so it is decided once and kept.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import digest_of

NOISE = 1.03  # a file is called slower than another from this ratio on


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


def remembered(folder: Path | None, key: Mapping[str, Any], decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `decide` gave for this key when it was first asked, kept in `folder` as JSON; None: always asked."""
    if folder is None:
        return decide()
    file = folder / f"{digest_of(dict(key))}.json"
    if file.exists():
        kept: dict[str, Any] = json.loads(file.read_text())["decision"]
        return kept
    made = decide()
    folder.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=folder, suffix=".part")
    with os.fdopen(handle, "w") as text:
        text.write(json.dumps({"key": dict(key), "decision": made}, indent=1) + "\n")
    try:
        os.link(partial, file)  # the first of several workers decides for all
    except FileExistsError:
        made = json.loads(file.read_text())["decision"]
    finally:
        os.unlink(partial)
    return made


def within(
    costs: Mapping[str, float], drop_of: Callable[[tuple[str, ...]], float], max_drop: float
) -> Iterator[tuple[tuple[str, ...], float]]:
    """(layers that stay float, what is lost then), better and better, until the loss is at most `max_drop`.

    `costs`: layer -> what it costs alone, by which the layers go back to float, twice as many in each step. `drop_of`:
    what is really lost with those layers float. The last yielded holds, or has every layer float.
    """
    order = sorted(costs, key=lambda name: (-costs[name], name))
    count = 0
    while True:
        kept = tuple(order[:count])
        lost = drop_of(kept)
        yield kept, lost
        if lost <= max_drop or count >= len(order):
            return
        count = min(len(order), max(1, 2 * count))


def fastest(seconds: Sequence[float]) -> int:
    """Which of several versions to take: the first of those that are as fast as the fastest, within the noise."""
    best = min(seconds)
    return next(index for index, each in enumerate(seconds) if each <= NOISE * best)
