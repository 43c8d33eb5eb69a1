"""How much each unit of a network loses when a share of all channels goes: pure functions over plain numbers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainers.base import narrowed

ALLOCATIONS = ("uniform", "global", "sensitivity")


@dataclass(frozen=True)
class Size:
    """A unit's width before pruning, and what widths are multiples of."""

    dense: int
    step: int

    def rounded(self, width: float) -> int:
        """The width that the unit may have nearest to `width`: dense, or a multiple of the step, at least one."""
        if self.dense <= self.step or width >= self.dense:
            return self.dense
        return min(self.dense, max(self.step, self.step * round(width / self.step)))


def uniform(sizes: Mapping[str, Size], sparsity: float) -> dict[str, int]:
    """The same share from every unit."""
    return {name: narrowed(size.dense, sparsity, size.step) for name, size in sizes.items()}


def across(sizes: Mapping[str, Size], scores: Mapping[str, Sequence[float]], sparsity: float) -> dict[str, int]:
    """The least important channels wherever they are; scores count relative to the mean of their unit.

    `scores`: one for each channel that the unit still has.
    """
    relative = sorted(
        (score / (sum(values) / len(values) or 1.0), name) for name, values in scores.items() for score in values
    )
    dense = sum(size.dense for size in sizes.values())
    surplus = len(relative) - round((1.0 - sparsity) * dense)
    widths = {name: len(values) for name, values in scores.items()}
    for _, name in relative[: max(0, surplus)]:
        widths[name] -= 1
    return {name: min(len(scores[name]), size.rounded(widths[name])) for name, size in sizes.items()}


def by_sensitivity(
    sizes: Mapping[str, Size], losses: Mapping[str, Mapping[int, float]], sparsity: float
) -> dict[str, int]:
    """Steps of channels where they cost the least loss each, until `sparsity` of all channels is gone.

    `losses`: unit -> width -> the network's loss with that unit alone narrowed to it, the dense width included. Between
    measured widths the loss is taken from the lower convex hull, so that the cheapest steps first are the best choice.
    """
    widths = {name: size.dense for name, size in sizes.items()}
    steps = sorted((rise, -width, name) for name, size in sizes.items() for width, rise in _rises(size, losses[name]))
    surplus = sparsity * sum(widths.values())
    for _, _, name in steps:
        step = sizes[name].step
        if surplus < step / 2:
            break
        widths[name] -= step
        surplus -= step
    return {name: size.rounded(widths[name]) for name, size in sizes.items()}


def _rises(size: Size, losses: Mapping[int, float]) -> list[tuple[int, float]]:
    """For each step down from the dense width: the width it leaves, and the loss per channel that it costs."""
    hull = lower_hull(sorted((size.dense - width, loss) for width, loss in losses.items()))
    found = []
    for removed in range(size.step, size.dense - size.step + 1, size.step):
        # Beyond the narrowest measured width the last slope goes on.
        (x0, y0), (x1, y1) = next(
            (pair for pair in itertools.pairwise(hull) if removed <= pair[1][0]), (hull[-2], hull[-1])
        )
        found.append((size.dense - removed, (y1 - y0) / (x1 - x0)))
    return found


def lower_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lower convex hull of points sorted by x (Andrew's monotone chain): slopes rise from left to right."""
    hull: list[tuple[float, float]] = []
    for x, y in points:
        while len(hull) >= 2:
            (x0, y0), (x1, y1) = hull[-2:]
            if (x1 - x0) * (y - y0) > (y1 - y0) * (x - x0):
                break
            hull.pop()
        hull.append((x, y))
    return hull
