"""Several measurements of one architecture as one, with the interval that they have together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from runtimes.latency import Comparison, LatencyResult

# Half-width of the log ratio that no number of repeats goes below: files of one architecture differ by that
# (experiments/LOG.md, "Cost first").
NARROW = 0.009


def pooled(results: Sequence[LatencyResult]) -> LatencyResult:
    """Their ratios' mean, each weighted by how narrow its interval is; timings are those of the narrowest.

    Raises ValueError without a result, or when they were not measured alike.
    """
    if not results:
        raise ValueError("results: there is none to pool")
    kinds = {tuple((each.batch, each.threads) for each in result.comparisons) for result in results}
    if len(kinds) > 1:
        raise ValueError(f"results: measured at other batch sizes and threads: {sorted(kinds)}")
    columns = zip(*(result.comparisons for result in results), strict=True)
    narrowest = min(results, key=lambda result: half_width(result.comparisons[0]))
    return LatencyResult(tuple(map(_pooled, columns)), narrowest.environment)


def half_width(comparison: Comparison) -> float:
    """Half the 95 % interval of the log ratio: about half its width as a share of the ratio."""
    return (math.log(comparison.ratio_high) - math.log(comparison.ratio_low)) / 2


def _pooled(found: tuple[Comparison, ...]) -> Comparison:
    if len(found) == 1:
        return found[0]
    weights = [1.0 / max(half_width(each), NARROW) ** 2 for each in found]
    total = sum(weights)
    centre = sum(w * math.log(each.ratio) for w, each in zip(weights, found, strict=True)) / total
    half = max(NARROW, math.sqrt(_inflation(found, weights, centre) / total))
    return replace(
        min(found, key=half_width),
        ratio=math.exp(centre),
        ratio_low=math.exp(centre - half),
        ratio_high=math.exp(centre + half),
        blocks=sum(each.blocks for each in found),
        undisturbed=sum(each.undisturbed for each in found),
        seconds=sum(each.seconds for each in found),
        noisy=min(found, key=half_width).noisy if all(each.noisy for each in found) else None,
    )


def _inflation(found: Sequence[Comparison], weights: Sequence[float], centre: float) -> float:
    """How much more the measurements differ than their intervals say, as a factor of the variance; at least 1.

    Birge's ratio (Phys. Rev. 40, 1932): without it, repeats that disagree would give a narrow interval.
    """
    misses = sum(w * (math.log(each.ratio) - centre) ** 2 for w, each in zip(weights, found, strict=True))
    return max(1.0, misses * 1.96**2 / (len(found) - 1))
