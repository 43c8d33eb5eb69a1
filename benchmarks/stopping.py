"""What stopping saves and what it loses, on recorded trials in many orders: share of training time and of hypervolume.

    python -m benchmarks.stopping [file=benchmarks/recorded_mnist_prune.json] [trials=40] [orders=20] [syne=FOLDER]

The trials are those of `benchmarks.record`, each with its accuracy, size and CPU time for the whole schedule and for a
complete one over a quarter epoch; without a file random ones of the planted surface, with times and quarter epochs as
16 recorded trials have them. In each order they arrive one by one:

- before training: size (and latency, by the planted rule) is known; a trial whose expected gain is below a share of the
  hypervolume so far, and which is unlikely to be on the front, is not trained. The first five always are.
- rungs: every trial is trained for a quarter epoch, and again for the whole schedule when it is promoted; at once: that
  happens when its result arrives, or never (`early_stopping: rungs`).
- MO-ASHA: Syne Tune's own scheduler in the place of our promotion, given the same results (`syne`: where it is
  installed, apart from our environment).

Wrongly stopped: of the members of the front of all trials, those that were not trained, and those of them that no
trained trial equals within the luck of a training.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import planted
from search.front import pareto
from search.sampling import gain, rungs
from search.sampling.candidates import drawn
from search.sampling.encoding import features
from search.sampling.surrogate import Surrogate
from search.sweep import rung
from trainers.recipe import Recipe

FIRST = 5


@dataclass(frozen=True)
class Trials:
    """Recorded trials: objectives with the first to be maximized, float [n, m], and seconds, float [n]."""

    points: list[dict[str, float | str]]
    full: np.ndarray
    quarter: np.ndarray
    seconds: np.ndarray
    quarter_seconds: np.ndarray
    directions: list[str]
    reference: list[float]
    luck: float

    def volume(self, rows: list[int]) -> float:
        """Hypervolume of those trials, wholly trained."""
        return pareto.hypervolume(self.full[rows], self.directions, self.reference)


def read(path: Path) -> Trials:
    known = json.loads(path.read_text())
    recipes = [Recipe.from_dict(trial["recipe"]) for trial in known["trials"]]
    latencies = [planted.surface(recipe)["latency_ms"] for recipe in recipes]
    timed = known["study"] == "mnist_prune"

    def values(stage: str) -> np.ndarray:
        rows = [[trial[stage]["accuracy"], trial["full"]["size_bytes"]] for trial in known["trials"]]
        return np.array([[*row, latency][: 3 if timed else 2] for row, latency in zip(rows, latencies, strict=True)])

    dense = known["dense"]
    reference = [dense["accuracy"] - 0.02, 1.1 * dense["size_bytes"], 1.1 * planted.DENSE["latency_ms"]]
    points, full = [features(recipe) for recipe in recipes], values("full")
    luck = Surrogate().fit(points, full[:, 0].tolist()).noise
    spent, short = (
        np.array([trial[stage]["cpu_seconds"] for trial in known["trials"]]) for stage in ("full", "quarter")
    )
    directions = ["maximize", "minimize", "minimize"][: full.shape[1]]
    return Trials(points, full, values("quarter"), spent, short, directions, reference[: full.shape[1]], luck)


def plant(count: int) -> Trials:
    """Random trials of `mnist_prune` on the planted surface."""
    space, rng = planted.config(Path("unused"), count, 1).study.space, np.random.default_rng(0)
    recipes = [drawn(space, rng).recipe for _ in range(count)]
    found = [planted.surface(recipe) for recipe in recipes]
    full = np.array([[each["accuracy"], each["size_bytes"], each["latency_ms"]] for each in found])
    quarter = full.copy()
    quarter[:, 0] -= 2 * np.maximum([each["accuracy_drop"] for each in found], 0) + 0.002 + rng.normal(0, 5e-4, count)
    seconds = np.array(
        [1.0 + 9 * recipe.trains + 4 * (recipe.pruning.granularity != "channel") * recipe.trains for recipe in recipes]
    ) + np.array([7.0 * recipe.quantization.trained for recipe in recipes])
    dense = planted.DENSE
    reference = [dense["accuracy"] - 0.02, 1.1 * dense["size_bytes"], 1.1 * dense["latency_ms"]]
    directions = ["maximize", "minimize", "minimize"]
    short = 1.0 + (seconds - 1.0) / 6
    return Trials([features(r) for r in recipes], full, quarter, seconds, short, directions, reference, 4e-4)


Trained = tuple[list[int], float]  # the rows that were wholly trained, and the seconds that were spent in all


def before_training(trials: Trials, order: np.ndarray, share: float, chance: float) -> tuple[list[int], list[int]]:
    """(trained, stopped): stopped is what gains less than `share` and is on the front with less than `chance`."""
    trained, stopped, model = list[int](), list[int](), Surrogate()
    for row in map(int, order):
        if len(trained) >= FIRST:
            model.fit([trials.points[i] for i in trained], trials.full[trained, 0].tolist())
            mean, std = model.predict([trials.points[row]], luck=True)
            candidate, doubt = trials.full[row].copy(), np.zeros(trials.full.shape[1])
            candidate[0], doubt[0] = mean[0], std[0]
            against = trials.full[trained], trials.directions, trials.reference, candidate, doubt
            if gain.gain_share(*against)[0] < share and gain.front_probability(*against)[0] <= chance:
                stopped.append(row)
                continue
        trained.append(row)
    return trained, stopped


def stop(share: float, chance: float = 1.0) -> Callable[[Trials, np.ndarray], Trained]:
    def run(trials: Trials, order: np.ndarray) -> Trained:
        trained, _ = before_training(trials, order, share, chance)
        return trained, float(trials.seconds[trained].sum())

    return run


def climb(share: float, first: Callable[[Trials, np.ndarray], list[int]] | None = None) -> Callable[..., Trained]:
    """Rungs: a quarter epoch, then the whole schedule for the best `share`; what `first` stops is not tried at all."""

    def run(trials: Trials, order: np.ndarray) -> Trained:
        seen, promoted = list[int](), list[int]()
        half = np.zeros(trials.full.shape[1])
        half[0] = 2 * trials.luck
        rows = first(trials, order) if first else [int(i) for i in order]
        for row in rows:
            seen.append(row)
            values, done = trials.quarter[seen], np.array([i in promoted for i in seen])
            now = rungs.promotable(values - half, values + half, trials.directions, promoted=done, share=share)
            promoted += [seen[i] for i in now]
        return promoted, float(trials.quarter_seconds[seen].sum() + trials.seconds[promoted].sum())

    return run


def at_once(share: float, first: Callable[[Trials, np.ndarray], list[int]] | None = None) -> Callable[..., Trained]:
    """Rungs as `early_stopping: rungs` has them: decided when a result arrives, none waits to be promoted later."""

    def run(trials: Trials, order: np.ndarray) -> Trained:
        seen, promoted = list[int](), list[int]()
        half = np.zeros(trials.full.shape[1])
        half[0] = 2 * trials.luck
        for row in first(trials, order) if first else [int(i) for i in order]:
            seen.append(row)
            low, high = trials.quarter[seen] - half, trials.quarter[seen] + half
            few = len(seen) < rung.FEWEST
            if few or rungs.promotes(low, high, trials.directions, len(seen) - 1, share=share):
                promoted.append(row)
        return promoted, float(trials.quarter_seconds[seen].sum() + trials.seconds[promoted].sum())

    return run


def moasha(factor: float) -> Callable[[Trials, np.ndarray], Trained]:
    """Syne Tune's MO-ASHA with the same two rungs."""
    from syne_tune.backend.trial_status import Trial
    from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

    def run(trials: Trials, order: np.ndarray) -> Trained:
        names = [f"cost_{j}" for j in range(trials.full.shape[1])]
        scheduler = MOASHA({}, names, time_attr="rung", max_t=2, grace_period=1, reduction_factor=factor, random_seed=0)
        promoted = []
        for row in map(int, order):
            trial: Any = Trial(row, {}, None)
            scheduler.on_trial_add(trial)
            costs = pareto.costs(trials.quarter[row][None], trials.directions)[0]
            said = scheduler.on_trial_result(trial, {"rung": 1, **dict(zip(names, costs, strict=True))})
            if str(said).upper().endswith("CONTINUE"):
                promoted.append(row)
        return promoted, float(trials.quarter_seconds.sum() + trials.seconds[promoted].sum())

    return run


def policies(syne: str | None) -> Iterator[tuple[str, Callable[[Trials, np.ndarray], Trained]]]:
    for share in (0.001, 0.003):
        yield f"stop, gain < {100 * share:g} %", stop(share)
    for chance in (0.05, 0.1, 0.2):
        yield f"stop, gain < 0.3 %, front < {100 * chance:g} %", stop(0.003, chance)
    for share in (0.5, 1 / 3):
        yield f"rungs, best {100 * share:.0f} %", climb(share)
    for share in (0.75, 0.6, 0.5, 1 / 3):
        yield f"rungs at once, best {100 * share:.0f} %", at_once(share)
    yield (
        "stop 0.3 %, 10 % + at once 50 %",
        at_once(0.5, lambda trials, order: before_training(trials, order, 0.003, 0.1)[0]),
    )
    yield (
        "stop 0.3 %, 10 % + rungs 50 %",
        climb(0.5, lambda trials, order: before_training(trials, order, 0.003, 0.1)[0]),
    )
    if syne:
        sys.path.append(syne)
        for factor in (2.0, 3.0):
            yield f"MO-ASHA, eta {factor:g}", moasha(factor)


def main() -> None:
    said = dict(word.partition("=")[::2] for word in sys.argv[1:])
    orders = int(said.get("orders", 20))
    trials = read(Path(said["file"])) if "file" in said else plant(int(said.get("trials", 40)))
    everything = list(range(len(trials.full)))
    members = np.flatnonzero(pareto.front(_usable(trials), trials.directions))
    whole, spent = trials.volume(everything), float(trials.seconds.sum())
    print(
        f"{len(everything)} trials, {len(members)} on the front, luck of a training {trials.luck:.5f}, {orders} orders"
    )
    print(f"{'':<34}{'time':>8}{'volume':>9}{'lowest':>9}{'members lost':>14}{'beyond luck':>13}")
    for name, policy in policies(said.get("syne")):
        rows = []
        for seed in range(orders):
            trained, seconds = policy(trials, np.random.default_rng(seed).permutation(len(everything)))
            lost = [int(i) for i in members if i not in trained]
            surely = [i for i in lost if _missed(trials, i, trained)]
            rows.append((seconds / spent, trials.volume(trained) / whole, len(lost), len(surely)))
        time, volume, lost_, surely_ = np.array(rows).T
        print(
            f"{name:<34}{100 * time.mean():>6.0f} %{100 * volume.mean():>7.1f} %{100 * volume.min():>7.1f} %"
            f"{100 * lost_.mean() / len(members):>12.1f} %{100 * surely_.mean() / len(members):>11.1f} %",
            flush=True,
        )


def _usable(trials: Trials) -> np.ndarray:
    limit = pareto.costs(np.array([trials.reference]), trials.directions)[0]
    inside = (pareto.costs(trials.full, trials.directions) < limit).all(axis=1)
    return np.where(inside[:, None], trials.full, np.nan)


def _missed(trials: Trials, row: int, trained: list[int]) -> bool:
    """Whether the trial would add to the front even if its training had been two standard deviations less lucky."""
    worse = trials.full[row].copy()
    worse[0] -= 2 * trials.luck
    still = np.zeros(len(worse))
    return bool(gain.expected_gain(trials.full[trained], trials.directions, trials.reference, worse, still)[0] > 0)


if __name__ == "__main__":
    main()
