"""A model of a metric over recipes that says how unsure it is: a Gaussian process, scikit-learn's.

Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006: Matérn 5/2 with a length per column of the
encoded points, and the luck of a training as noise. Lengths are found again when a fifth more points are known.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from search.sampling.encoding import Columns

FEWEST = 4  # points, below which only their mean and spread are known
MOST = 256  # points the model is made of: the cost grows with their cube
STEP = 32  # of more points the choice is made anew after so many: lengths are searched for when it changes
_LENGTH = (0.3, 6.0)  # of columns that lie in [0, 1]
_SEARCHED = 96  # points that the lengths are found with

Point = Mapping[str, float | str]


class Surrogate:
    """Fitted to points and values, it predicts the mean and standard deviation of the metric at other points.

    A point maps names to numbers or words; `search.sampling.encoding.features` gives that of a recipe. `direction`:
    "maximize" or "minimize"; far on the bad side, where a network has lost everything, how far does not matter: a value
    worse than the median by more than `tail` robust standard deviations is drawn in, to at most two more.
    """

    def __init__(self, direction: str = "maximize", *, tail: float = 3.0):
        if direction not in ("maximize", "minimize"):
            raise ValueError(f"direction: {direction!r} is not valid; choose from maximize, minimize")
        self._sign = -1.0 if direction == "minimize" else 1.0
        self._tail = tail
        self.noise = 0.0
        self._basis: Any = None  # what the columns, units and lengths were found from
        self._process: Any = None

    def fit(
        self, points: Sequence[Point], values: Sequence[float], noise: Sequence[float] | float | None = None
    ) -> Surrogate:
        """Learn from what was measured; returns itself. Of more than `MOST` points some: the best, the newest.

        `noise`: standard deviation of each value about what its recipe gives in the mean, in the metric's unit; if
        left out it is estimated and is `self.noise` from then on. Values that are not finite are left out. Raises
        ValueError without any. The same points in the same order give the same model, whatever was fitted before.
        """
        worth = self._sign * np.asarray(values, dtype=np.float64)
        rows = np.flatnonzero(np.isfinite(worth))
        if not len(rows):
            raise ValueError("values: none is finite; fit the model when a trial has been measured")
        rows = _chosen(worth, rows)
        kept = [points[int(i)] for i in rows]
        given = None if noise is None else np.broadcast_to(np.asarray(noise, dtype=np.float64), worth.shape)[rows]
        first = _milestone(len(rows))
        basis = worth[rows[:first]].tobytes(), repr(kept[:first]), None if given is None else given[:first].tobytes()
        if basis != self._basis:
            self._found(kept[:first], worth[rows[:first]], None if given is None else given[:first])
            self._basis = basis
        target = _drawn_in((worth[rows] - self._centre) / self._scale, self._tail)
        self._mean, self._wide = float(target.mean()), float(target.std(ddof=1)) if len(target) > 1 else 1.0
        self._process, self._doubt = None, 1.0
        if self._kernel is not None:
            doubt = None if given is None else given / self._scale
            self._condition(self._columns.table(kept), target, _jitter(doubt, len(target)))
            self._doubt = _left_out(self._process)
        return self

    def expecting(self, points: Sequence[Point]) -> None:
        """Take it that these points turned out as predicted: they are under way, and others should lie elsewhere."""
        if self._process is None or not len(points):
            return
        table = self._columns.table(points)
        known, target = self._process.X_train_, self._process.y_train_
        jitter = np.concatenate([self._process.alpha, np.full(len(points), float(np.median(self._process.alpha)))])
        expected = self._process.predict(table)
        self._condition(np.vstack([known, table]), np.concatenate([target, expected]), jitter)

    def predict(self, points: Sequence[Point], *, luck: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation at each point, float64 [n] each, in the metric's unit.

        `luck`: of one training there, which scatters by `self.noise`; otherwise of what trainings there give in the
        mean.
        """
        if not len(points):
            return np.zeros(0), np.zeros(0)
        if self._process is None:
            mean, variance = np.full(len(points), self._mean), np.full(len(points), self._wide**2)
        else:
            mean, std = self._process.predict(self._columns.table(points), return_std=True)
            variance = np.maximum(std**2 - (self.noise / self._scale) ** 2, 1e-12) if self._white else std**2
        worth = self._centre + self._scale * mean
        return self._sign * worth, np.sqrt((self._doubt * self._scale) ** 2 * variance + (self.noise**2 if luck else 0))

    def _found(self, points: Sequence[Point], worth: np.ndarray, noise: np.ndarray | None) -> None:
        """Columns, units and lengths, from these points."""
        self._centre = float(np.median(worth))
        self._scale = float(np.ptp(np.percentile(worth, [25, 75])) / 1.349 or worth.std() or 1e-12)
        self._columns, self._white, self._kernel, self.noise = Columns(points), noise is None, None, 0.0
        if len(points) < FEWEST or np.ptp(worth) == 0:
            return
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor

        table = self._columns.table(points)
        target = _drawn_in((worth - self._centre) / self._scale, self._tail)
        jitter = _jitter(None if noise is None else noise / self._scale, len(target))
        some = np.unique(np.linspace(0, len(target) - 1, min(len(target), _SEARCHED)).astype(int))
        start = _kernel(table.shape[1], self._white)
        process = GaussianProcessRegressor(start, alpha=jitter[some], optimizer=_optimized)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound is an answer
            self._kernel = process.fit(table[some], target[some]).kernel_
        if self._white:
            self.noise = float(np.sqrt(self._kernel.k2.noise_level)) * self._scale

    def _condition(self, table: np.ndarray, target: np.ndarray, jitter: np.ndarray) -> None:
        from sklearn.gaussian_process import GaussianProcessRegressor

        self._process = GaussianProcessRegressor(self._kernel, alpha=jitter, optimizer=None).fit(table, target)


def _milestone(points: int) -> int:
    """So many of the first points decide on lengths and units: found again when there are a fifth more."""
    reached = FEWEST
    while (following := max(reached + 1, int(1.2 * reached))) <= points:
        reached = following
    return min(reached, points)


def _jitter(noise: np.ndarray | None, points: int) -> np.ndarray:
    return np.full(points, 1e-8) if noise is None else noise**2 + 1e-8


def _kernel(columns: int, white: bool) -> Any:
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    smooth = ConstantKernel(1.0, (0.05, 50.0)) * Matern(np.full(columns, 1.0), [_LENGTH] * columns, nu=2.5)
    return smooth + WhiteKernel(0.05, (0.02, 1.0)) if white else smooth


def _optimized(objective: Any, start: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, float]:
    """L-BFGS-B with few steps: the likelihood is flat near its top, and an ask should cost little."""
    from scipy.optimize import minimize

    found = minimize(objective, start, method="L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": 30})
    return found.x, float(found.fun)


def _left_out(process: Any) -> float:
    """By how much the model is too sure of itself, at least 1: its error, in its own standard deviations, at points
    that are left out (Rasmussen & Williams, 5.4.2).
    """
    inverse = np.linalg.inv(process.L_ @ process.L_.T)
    z = np.ravel(process.alpha_) / np.sqrt(np.diag(inverse))
    return float(np.clip(np.sqrt(np.mean(z**2)), 1.0, 3.0))


def _chosen(worth: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of too many: the best, since there a decision is made, as many of the newest others, and up to STEP newer ones.

    The first two are those of the last whole step, so that the model's lengths stay while a step is filled.
    """
    if len(rows) <= MOST:
        return rows
    whole = MOST + (len(rows) - MOST) // STEP * STEP
    settled, newer, half = rows[:whole], rows[whole:], (MOST - STEP) // 2
    best = settled[np.argsort(-worth[settled], kind="stable")[:half]]
    newest = np.setdiff1d(settled, best)[-half:]
    return np.sort(np.concatenate([best, newest, newer]))


def _drawn_in(worth: np.ndarray, tail: float) -> np.ndarray:
    return np.where(worth < -tail, -tail - 2 * (1 - np.exp(np.minimum(worth + tail, 0.0) / 2)), worth)
