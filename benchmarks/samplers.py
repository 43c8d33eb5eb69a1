"""What each sampler finds in so many trials: share of hypervolume on a planted and on a recorded surface.

    python -m benchmarks.samplers [surface=planted|recorded|size] [seeds=6] [trials=150] [samplers=A,B] [workers=1]
                                  [warm=TRIALS]

Three objectives, `accuracy_drop <= 0.02`, the study's references first. Planted: `benchmarks/planted.py`. Recorded: a
Gaussian process through the accuracies and sizes of real trials (`benchmarks/recorded_mnist_prune.json`, made by
`benchmarks.record`), each draw with the luck of a training; latency by the planted rule, since it follows from the
architecture. Size: `mnist_size`, two objectives, planted. The hypervolume counts what a recipe gives in the mean, not
how lucky its training was; its share is of the box up to the reference point. `known`: the costs are looked up. `warm`:
so many trials of an earlier random search are told before (`study.warm_start`).
"""

from __future__ import annotations

import functools
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import optuna

from benchmarks import planted
from search.front import pareto
from search.sampling.candidates import drawn
from search.sampling.encoding import features
from search.sampling.known_costs import Costs, Interval, nothing_known
from search.sampling.samplers import samplers
from search.sampling.surrogate import Surrogate
from search.study import config
from search.study.metrics import Metrics
from search.sweep.warm_start import Prior, told
from search.trial.record import TrialRecord
from trainers.recipe import Recipe

RECORDED = Path(__file__).parent / "recorded_mnist_prune.json"
MARKS = (6, 10, 18, 25, 50, 100, 150)
COSTS = ("latency_ms", "size_bytes")
LUCK = 0.0004  # standard deviation of a planted accuracy, as `planted.surface` has it
# name -> (sampler in the study, whether the costs are known to it)
SAMPLERS = {
    "random": ("random", False),
    "nsga2": ("nsga2", False),
    "tpe": ("tpe", False),
    "tpe_grouped": ("tpe_grouped", False),
    "gp": ("gp", False),
    "ehvi": ("ehvi", False),
    "ehvi known": ("ehvi", True),
    "auto": ("auto", False),
    "auto known": ("auto", True),
}

Surface = Callable[
    [Recipe], tuple[dict[str, float], dict[str, float]]
]  # recipe -> (in the mean, as one trial gives it)


@functools.cache
def smooth(recipe: Recipe) -> tuple[dict[str, float], dict[str, float]]:
    """The planted surface without and with a trial's luck."""
    found = planted.surface(recipe)
    luck = float(np.random.default_rng(int(recipe.digest(), 16)).normal(0, LUCK))
    mean = found | {"accuracy": found["accuracy"] + luck, "accuracy_drop": found["accuracy_drop"] - luck}
    return mean, found


class Recorded:
    """Real accuracies and sizes, between the recorded recipes as a Gaussian process has them."""

    def __init__(self, path: Path = RECORDED, stage: str = "full"):
        known = json.loads(path.read_text())
        self.dense = known["dense"] | {"latency_ms": planted.DENSE["latency_ms"]}
        recipes = [Recipe.from_dict(trial["recipe"]) for trial in known["trials"]]
        figures = [trial[stage] for trial in known["trials"]]
        points = [features(recipe) for recipe in recipes]
        self._accuracy = Surrogate("maximize").fit(points, [each["accuracy"] for each in figures])
        self._size = Surrogate("minimize").fit(points, [float(np.log(each["size_bytes"])) for each in figures])
        self.luck = self._accuracy.noise
        self.cached = functools.cache(self._at)

    def __call__(self, recipe: Recipe) -> tuple[dict[str, float], dict[str, float]]:
        """As `Surface` says."""
        return self.cached(recipe)

    def _at(self, recipe: Recipe) -> tuple[dict[str, float], dict[str, float]]:
        point = [features(recipe)]
        accuracy, size = float(self._accuracy.predict(point)[0][0]), float(np.exp(self._size.predict(point)[0][0]))
        mean = planted.surface(recipe) | {"size_bytes": size}
        mean |= {"accuracy": accuracy, "accuracy_drop": self.dense["accuracy"] - accuracy}
        luck = float(np.random.default_rng(int(recipe.digest(), 16)).normal(0, self.luck))
        return mean, mean | {"accuracy": accuracy + luck, "accuracy_drop": mean["accuracy_drop"] - luck}


def looked_up(surface: Surface) -> Costs:
    """Latency and size of the surface as the engine's cost store gives them: 1 % and 0.2 % about the value."""

    def costs(recipes: Sequence[Recipe]) -> Sequence[Mapping[str, Interval]]:
        found = []
        for recipe in recipes:
            mean = surface(recipe)[0]
            latency, size = (mean[name] for name in COSTS)
            found.append(
                {
                    "latency_ms": (latency, 0.99 * latency, 1.01 * latency),
                    "size_bytes": (size, 0.998 * size, 1.002 * size),
                }
            )
        return found

    return costs


def reference_point(study: config.Study, dense: Mapping[str, float]) -> list[float]:
    """As `search.sweep.recorder.reference_point` has it."""
    worst = {"accuracy": dense["accuracy"] - 0.02} | {name: 1.1 * dense[name] for name in COSTS}
    return [worst[name] for name in study.objectives]


def priors(study: config.Study, surface: Surface, count: int, seed: int) -> list[optuna.trial.FrozenTrial]:
    """Trials of a random search with another seed, as `study.warm_start` tells them."""
    rng, found = np.random.default_rng([seed, 77]), []
    for number in range(count):
        candidate = drawn(study.space, rng)
        seen = surface(candidate.recipe)[1]
        record = TrialRecord(number, "complete", 0, 0, recipe=candidate.recipe.to_dict(), metrics=seen)
        found.append(Prior("earlier", record, candidate.params, {}))
    return told(found, study, {}, {}, [])


def searched(
    study: config.Study,
    surface: Surface,
    costs: Costs,
    reference: Sequence[float],
    trials: int,
    seed: int,
    workers: int,
    warm: int = 0,
) -> tuple[np.ndarray, float]:
    """Hypervolume after 1, 2, ... trials as a share of the box, float [trials]; milliseconds of CPU per ask.

    `warm`: so many trials of an earlier random search are told before, which do not count (`study.warm_start`).
    """
    directions = Metrics().directions(study.objectives)
    search = optuna.create_study(directions=directions, sampler=samplers(study, seed, costs))
    for partial in study.references.values():
        search.enqueue_trial(study.space.reference(partial))
    for prior in priors(study, surface, warm, seed):
        search.add_trial(prior)
    values, running, spent = [], list[tuple[optuna.trial.Trial, Recipe]](), 0.0
    for asked in range(trials + workers - 1):
        if asked < trials:
            began = time.process_time()
            trial = search.ask()
            running.append((trial, study.space.suggest(trial)))
            spent += time.process_time() - began
        if len(running) == workers or asked >= trials:
            trial, recipe = running.pop(0)
            mean, seen = surface(recipe)
            violations = {str(limit): limit.violation(seen[limit.metric]) for limit in study.limits}
            for name, amount in violations.items():
                trial.set_constraint(name, amount)
            search.tell(trial, [seen[name] for name in study.objectives])
            feasible = all(limit.violation(mean[limit.metric]) <= 0 for limit in study.limits)
            values.append([mean[name] if feasible else np.nan for name in study.objectives])
    table = np.array(values)
    best = [max(1.0, planted.DENSE["accuracy"]) if name == "accuracy" else 0.0 for name in study.objectives]
    box = float(np.prod(np.abs(np.array(best) - np.array(reference))))
    return pareto.hypervolume_curve(table, directions, reference) / box, 1000 * spent / trials


def main() -> None:
    said = dict(word.partition("=")[::2] for word in sys.argv[1:])
    trials, seeds, workers = (int(said.get(*pair)) for pair in (("trials", 150), ("seeds", 6), ("workers", 1)))
    where = said.get("surface", "planted")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore")
    named = ("mnist_size", {"objectives": ["accuracy", "size_bytes"]}) if where == "size" else ("mnist_prune", {})
    study = planted.config(Path("unused"), trials, 1, named[0], **named[1]).study
    surface: Surface = Recorded(Path(said.get("file", RECORDED))) if where == "recorded" else smooth
    dense = surface.dense if isinstance(surface, Recorded) else planted.DENSE
    reference = reference_point(study, dense)
    marks = [mark for mark in MARKS if mark <= trials]
    print(f"{where}, {seeds} seeds, {workers} at once; share of the box after trials")
    print(f"{'':<14}" + "".join(f"{mark:>16}" for mark in marks) + f"{'CPU ms/ask':>12}")
    for name in said.get("samplers", ",".join(SAMPLERS)).split(","):
        sampler, known = SAMPLERS[name]
        settings = study.sampler.model_copy(
            update={"name": sampler} | {k: int(v) for k, v in said.items() if k in ("startup_trials", "model_trials")}
        )
        own = study.model_copy(update={"sampler": settings})
        costs = looked_up(surface) if known else nothing_known
        warm = int(said.get("warm", 0))
        runs = [searched(own, surface, costs, reference, trials, seed, workers, warm) for seed in range(seeds)]
        curves, spent = np.stack([run[0] for run in runs]), np.mean([run[1] for run in runs])
        cells = [f"{curves[:, m - 1].mean():.4f} ± {curves[:, m - 1].std(ddof=1):.4f}" for m in marks]
        print(f"{name:<14}" + "".join(f"{cell:>16}" for cell in cells) + f"{spent:>12.0f}", flush=True)


if __name__ == "__main__":
    main()
