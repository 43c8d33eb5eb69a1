"""A sweep as recorded, read once for table, plots and page: its trials, their front, the knee, the hypervolume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from search.front import pareto
from search.study.metrics import Metrics
from search.tracking.tracking import Tracking, studies
from search.tracking.uri import TrackingError, store_uri


@dataclass(frozen=True)
class Summary:
    """`trials`: Tracking.trials, with the columns `on_front` and `knee` (bool) judged from the values themselves.

    Where a trial was confirmed its metrics are the confirmed means with `NAME_low` and `NAME_high`, what the search
    had found is in `search/NAME`, and the task's `test_NAME` are there; the front is then the confirmed one, and the
    column `unconfirmed` (bool) tells the members of the search's front that confirmation left out and did not beat.

    `metrics`: what the names mean, as recorded with the sweep. `objectives`: metric names, the first is drawn upwards.
    `hypervolume`: columns number, end_ms, hypervolume; up to the reference point that the sweep recorded, or else the
    worst value of each objective (`recorded` is then False: such volumes cannot be compared between sweeps).
    `nearest`: number of the trial that misses the constraints least, when none meets them. `earlier`: name and
    hypervolume of the sweep before, if it had the same objectives and a reference is recorded.
    """

    study: str
    sweep: str
    about: dict[str, Any]
    metrics: Metrics
    objectives: list[str]
    trials: pd.DataFrame
    hypervolume: pd.DataFrame
    recorded: bool
    nearest: int | None
    earlier: tuple[str, pd.DataFrame] | None = None

    @property
    def front(self) -> pd.DataFrame:
        """The front's rows, the best in the first objective first."""
        return self._sorted(self.trials[self.trials["on_front"]])

    @property
    def unconfirmed(self) -> pd.DataFrame:
        """The rows of the search's front that confirmation left out, the best in the first objective first."""
        return self._sorted(self.trials[self.trials["unconfirmed"]])

    def _sorted(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows.sort_values(self.objectives[0], ascending=self.metrics.minimized(self.objectives[0]))

    @property
    def complete(self) -> pd.DataFrame:
        """The rows of the trials that were measured."""
        return self.trials[self.trials["state"] == "complete"]

    @property
    def knee(self) -> pd.Series | None:
        """The knee's row."""
        found = self.trials[self.trials["knee"]]
        return None if found.empty else found.iloc[0]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(x, y) of the charts: each further objective against the first."""
        return [(name, self.objectives[0]) for name in self.objectives[1:]] or [("number", self.objectives[0])]

    @property
    def confirmed(self) -> pd.DataFrame:
        """The rows whose recipes were trained again with fresh seeds."""
        return self.trials[self.trials["confirmed"].isin(("front", "dominated"))]

    def promised(self, names: list[str]) -> np.ndarray:
        """float64 [trials, names] as the search found them; NaN for those that count for nothing."""
        return _judged(_promised(self.trials), names)

    def counts(self) -> dict[str, int]:
        """Trials by what came of them; a trial is counted once under complete, infeasible, stopped or failed."""
        measured = self.complete
        return {
            "trials": len(self.trials),
            "front": int(self.trials["on_front"].sum()),
            "complete": len(measured),
            "infeasible": int((~measured["feasible"].astype(bool)).sum()),
            "stopped": int((self.trials["state"] == "stopped").sum()),
            "failed": int((self.trials["state"] == "failed").sum()),
        }


def read(root: Path, study: str, sweep: str | None = None) -> Summary:
    """The recorded sweep (the newest by default); raises TrackingError naming what is recorded if there is none."""
    tracking = existing(root, study)
    sweeps = tracking.sweeps()
    if not sweeps:
        raise TrackingError(f"study: nothing of {study!r} is recorded yet; run `python -m search.run study={study}`")
    return summarize(tracking, sweep or sweeps[-1])


def existing(root: Path, study: str) -> Tracking:
    """The study's record, which must be there already: reading creates neither store nor experiment."""
    uri = store_uri(root)
    is_file = uri.startswith("sqlite:///")
    known = studies(root) if not is_file or Path(uri.removeprefix("sqlite:///")).exists() else {}
    if study not in known:
        have = ", ".join(known) or "nothing yet"
        raise TrackingError(f"study: {study!r} is not recorded in {uri}; recorded is: {have}")
    return Tracking(root, study)


def summarize(tracking: Tracking, sweep: str) -> Summary:
    """What `tracking` holds of the sweep, judged again: a sweep under way has a front too."""
    about, trials = tracking.about(sweep), tracking.trials(sweep)
    for name in ("state", "words", "reason", "not_faster", "reference", "confirmed"):
        trials[name] = trials.get(name, pd.Series(dtype=str))
    trials["feasible"] = trials.get("feasible", pd.Series(dtype=bool)).astype(bool)
    metrics: Metrics = about["metrics"]
    objectives = about["objectives"] or [n for n in (*metrics.quality, "latency_ms", "size_bytes") if n in trials]
    trials = trials.assign(**{name: np.nan for name in objectives if name not in trials})
    directions = metrics.directions(objectives)
    promised = _promised(trials)
    judged = _judged(promised, objectives)
    curve = _curve(promised, objectives, directions, about["reference"] or _worst(judged, directions))
    earlier = _earlier(tracking, sweep, objectives, directions, about["reference"], promised)
    raw = pareto.front(judged, directions)
    trials = _confirmed(trials)
    again = trials["confirmed"].isin(("front", "dominated")).to_numpy()
    member = (trials["confirmed"] == "front").to_numpy() if again.any() else raw
    left_out = raw & (trials["confirmed"] == "").to_numpy() if again.any() else np.zeros(len(trials), dtype=bool)
    values = trials[objectives].to_numpy(dtype=float)
    trials["on_front"] = member
    trials["unconfirmed"] = _unbeaten(left_out, member, values, directions)
    trials["knee"] = trials.index == pareto.knee(np.where(member[:, None], values, np.nan), directions)
    nearest = None if member.any() else _nearest(trials[again] if again.any() else trials)
    recorded = about["reference"] is not None
    return Summary(tracking.study, sweep, about, metrics, objectives, trials, curve, recorded, nearest, earlier)


def _unbeaten(rows: np.ndarray, members: np.ndarray, values: np.ndarray, directions: list[str]) -> np.ndarray:
    """bool [trials]: those of `rows` that no member dominates."""
    costs = pareto.costs(values, directions)
    beaten = np.array([bool((costs[members] <= own).all(axis=1).any()) for own in costs], dtype=bool)
    return np.asarray(rows & ~beaten, dtype=bool)


def _judged(trials: pd.DataFrame, objectives: list[str]) -> np.ndarray:
    """float64 [trials, objectives] as the search found them; NaN for those that count for nothing."""
    usable = (trials["state"] == "complete") & trials["feasible"].astype(bool)
    return np.where(usable.to_numpy()[:, None], trials[objectives].to_numpy(dtype=float), np.nan)


def _curve(trials: pd.DataFrame, objectives: list[str], directions: list[str], reference: list[float]) -> pd.DataFrame:
    """Columns number, end_ms, hypervolume: what the trials up to each one dominate."""
    curve = pd.DataFrame({"number": trials["number"], "end_ms": trials.get("end_ms", pd.Series(dtype=float))})
    curve["hypervolume"] = pareto.hypervolume_curve(_judged(trials, objectives), directions, reference)
    # A run that a killed driver left half logged has no end yet: its point follows when it is completed.
    return curve.dropna()


def _earlier(
    tracking: Tracking,
    sweep: str,
    objectives: list[str],
    directions: list[str],
    reference: list[float] | None,
    trials: pd.DataFrame,
) -> tuple[str, pd.DataFrame] | None:
    """Name and curve of the sweep before, to this sweep's reference point and in its baselines' milliseconds."""
    before = tracking.sweeps()
    before = before[: before.index(sweep)]
    if not before or reference is None:
        return None
    about = tracking.about(before[-1])
    if about["objectives"] != objectives or about["metrics"].directions(objectives) != directions:
        return None
    old = _promised(tracking.trials(before[-1]))
    if any(name not in old for name in (*objectives, "state", "feasible")):
        return None
    if "latency_ms" in objectives:
        # The machine was another, or in another mood: the ratio to the dense file holds.
        own = trials.assign(dense=trials["latency_ms"] / trials["latency_ratio"]).groupby(["trainer", "model"])["dense"]
        dense = old[["trainer", "model"]].apply(tuple, axis=1).map(own.median().to_dict())
        old = old.assign(latency_ms=old["latency_ratio"] * dense)
    return before[-1], _curve(old, objectives, directions, reference)


def _promised(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials with what the search had found of each, whatever confirmation said later."""
    was = {str(n): str(n).removeprefix("search/") for n in trials.filter(regex="^search/")}
    return trials.assign(**{own: trials[name].fillna(trials.get(own, np.nan)) for name, own in was.items()})


def _confirmed(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials; of those that were confirmed, feasible is what the confirmed figures say."""
    again = (trials["confirmed"] != "").to_numpy()
    missed = _violations(trials)
    return trials.assign(feasible=np.where(again, (missed <= 0).all(axis=1), trials["feasible"]).astype(bool))


def shrinkage(summary: Summary) -> dict[str, tuple[float, float]]:
    """Objective -> (the search's mean, the confirmed mean) over the confirmed trials: what luck had added."""
    rows = summary.confirmed
    pairs = {name: (rows.get(f"search/{name}"), rows[name]) for name in summary.objectives}
    return {
        n: (float(was.mean()), float(now.mean())) for n, (was, now) in pairs.items() if was is not None and len(rows)
    }


def _worst(values: np.ndarray, directions: list[str]) -> list[float]:
    known = values[np.isfinite(values).all(axis=1)]
    if not len(known):
        return [0.0] * len(directions)
    return [float(known[:, j].max() if d == "minimize" else known[:, j].min()) for j, d in enumerate(directions)]


def _nearest(trials: pd.DataFrame) -> int | None:
    measured = trials[trials["state"] == "complete"]
    missed = _violations(measured)
    row = pareto.nearest_feasible(missed)
    return None if row is None or not missed.size else int(measured.iloc[row]["number"])


def _violations(trials: pd.DataFrame) -> np.ndarray:
    """float64 [trials, constraints]: how far each is beyond each constraint, kept where <= 0."""
    values: np.ndarray = trials[limits(trials)].to_numpy(dtype=float)
    return values


def limits(trials: pd.DataFrame) -> list[str]:
    """The columns that say how far trials are beyond a constraint: `violation/METRIC at most VALUE`."""
    return [n for n in map(str, trials) if n.startswith("violation/") and not n.endswith(("_low", "_high"))]


def interval(row: pd.Series, name: str) -> tuple[float, float] | None:
    """(low, high) of the row's metric where it was measured with an interval."""
    low, high = row.get(f"{name}_low", np.nan), row.get(f"{name}_high", np.nan)
    return None if pd.isna(low) or pd.isna(high) else (float(low), float(high))
