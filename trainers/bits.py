"""How many bits each layer's weights get when all of them together have a budget: a pure function of plain numbers."""

from __future__ import annotations

from collections.abc import Mapping

FLOAT = 32
CHOICES = (FLOAT, 8, 4, 3, 2)  # of a layer, from most to least; FLOAT: it stays as it is


def allocated(sizes: Mapping[str, int], losses: Mapping[str, Mapping[int, float]], mean: float) -> dict[str, int]:
    """Layer -> its bits: one of CHOICES, so that a weight takes at most `mean` bits on average.

    `sizes`: layer -> weights. `losses`: layer -> bits -> the network's loss with that layer alone in so many. Greedy:
    the next step down that costs the least loss for each bit it saves, which may skip a choice that is worse than a
    smaller one. With every layer at the least bits it ends, whatever the mean.
    """
    bits = dict.fromkeys(sizes, FLOAT)
    budget = mean * sum(sizes.values())
    while sum(bits[name] * size for name, size in sizes.items()) > budget:
        steps = [
            ((losses[name][fewer] - losses[name][now]) / ((now - fewer) * sizes[name]), -(now - fewer), name, fewer)
            for name, now in bits.items()
            for fewer in CHOICES
            if fewer < now
        ]
        if not steps:
            break
        *_, name, fewer = min(steps)
        bits[name] = fewer
    return bits
