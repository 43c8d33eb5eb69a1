"""Ratio of two latencies with a 95 % confidence interval, from paired blocks of timings. Pure NumPy."""

from __future__ import annotations

import numpy as np

TRIM = 0.2
RESAMPLES = 1000
# Standard deviation of the log ratio between processes, which no block of one process can show: where code and
# heap lie. Measured by python -m benchmarks.aa_latency, A/B (experiments/LOG.md, 2026-11-23).
BETWEEN_PROCESSES = 0.006
# How much slower than the fastest of its last 20 measurements a file is on a calm host.
PACE = 1.05


def quiet_blocks(times: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Which blocks ran undisturbed: bool [blocks] from times [blocks, files], any unit.

    A neighbour on the same physical core slows a virtual machine by 20 to 50 % for seconds, one on the same cache
    by some per cent, and not every model alike, so the ratio in such a phase is another one. A block counts when
    each file ran close to its own fastest tenth (within 3 %, or 10 % at most where even the fast ones scatter)
    and within 10 % of `known` [files], what it took on this host before (NaN where unknown). The rule treats all
    files alike, so it favours none.
    """
    fast, fairly = np.quantile(times, [0.1, 0.3], axis=0)
    limit = fast * np.clip((fairly / fast) ** 3, 1.03, 1.1)
    if known is not None:
        limit = np.fmin(limit, 1.1 * known)
    return np.asarray((times <= limit).all(axis=1))


def least_disturbed(times: np.ndarray, count: int) -> np.ndarray:
    """The `count` blocks whose slower file came closest to its own fastest tenth: bool [blocks]."""
    slowness = (times / np.quantile(times, 0.1, axis=0)).max(axis=1)
    chosen = np.zeros(len(times), dtype=bool)
    chosen[np.argsort(slowness, kind="stable")[:count]] = True
    return chosen


def ratio_interval(
    times: np.ndarray, rng: np.random.Generator, between: float = BETWEEN_PROCESSES
) -> tuple[float, float, float]:
    """Candidate over baseline from times [blocks, 2] -> (ratio, low, high), at least 5 blocks.

    The estimate is the 20 % trimmed mean of the blocks' log ratios; the interval is the symmetric studentised
    bootstrap over blocks with Yuen's winsorised standard error (Wilcox, Introduction to Robust Estimation and
    Hypothesis Testing, section 4.4.4), which keeps its coverage with a dozen heavy-tailed blocks; the variance
    `between` processes is added.
    """
    logs = np.log(times[:, 0]) - np.log(times[:, 1])
    centre, error = _trimmed(logs)
    drawn = logs[rng.integers(0, len(logs), (RESAMPLES, len(logs)))]
    centres, errors = _trimmed(drawn)
    # A resample of few distinct blocks can have an error of almost zero; a floor keeps the quotient finite.
    quotients = np.abs(centres - centre) / np.maximum(errors, 0.05 * error + 1e-12)
    half = float(np.hypot(np.quantile(quotients, 0.95) * error, 1.96 * between))
    return float(np.exp(centre)), float(np.exp(centre - half)), float(np.exp(centre + half))


def slow_phase(taken: np.ndarray, known: float) -> float:
    """How far the log ratio may be off in a slow phase of the host that outlasts the measurement; 0 on a calm host.

    `taken` [blocks]: the baseline's times; `known`: what it took on this host before, NaN if never. A neighbour that
    fills the shared cache slows the larger file most, and every block alike, so the blocks agree on a wrong ratio. It
    was off by the log of the baseline's own slowdown, less some 7 % (experiments/LOG.md, 2026-11-25).
    """
    slower = float(np.log(np.median(taken) / known / PACE))
    return max(0.0, slower) if np.isfinite(slower) else 0.0


def _trimmed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Trimmed mean and its standard error along the last axis."""
    ordered, count = np.sort(values, axis=-1), values.shape[-1]
    cut = int(TRIM * count)
    centre = ordered[..., cut : count - cut].mean(-1)
    winsorised = np.clip(ordered, ordered[..., cut, None], ordered[..., count - cut - 1, None])
    return centre, winsorised.std(-1, ddof=1) / ((1 - 2 * TRIM) * np.sqrt(count))
