"""Many workers without having them: how far asynchronous ask and tell is from linear, and what asking ahead costs.

    python -m benchmarks.asynchronous [plot=docs/asynchronous.png] [trials=150] [seeds=5] [cost=60]

A fake clock and no training. Trial times are drawn from those of a real sweep (`smoke_seconds.json` says which); the
driver serves one worker at a time and takes `cost` milliseconds per trial (`benchmarks.platform` measures it).

- Throughput: workers that ask as they finish, against batches that wait for their slowest trial.
- What the sampler loses: with 64 workers it must propose 64 recipes before it knows what the first one gave. Our
  sampler and space of `mnist_prune` on the planted surface; the hypervolume at equal numbers of trials, per seed.
"""

from __future__ import annotations

import heapq
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import optuna

from benchmarks import planted
from search.front import pareto
from search.sampling.samplers import samplers
from search.study import config
from search.study.metrics import Metrics

WORKERS = (1, 2, 4, 8, 16, 32, 64)
ASKED = (1, 8, 64)  # workers that the sampler's loss is looked at with
SECONDS = np.array(json.loads((Path(__file__).parent / "smoke_seconds.json").read_text())["seconds"])


def throughput(workers: int, cost: float, rng: np.random.Generator, trials: int = 4000) -> float:
    """Trials per second of workers that are served one by one, in `cost` seconds each, as they finish."""
    ready = [(0.0, worker) for worker in range(workers)]  # (when it wants the driver, worker)
    free = 0.0
    for _ in range(trials):
        wants, worker = heapq.heappop(ready)
        free = max(free, wants) + cost
        heapq.heappush(ready, (free + float(rng.choice(SECONDS)), worker))
    return trials / max(when for when, _ in ready)


def in_batches(workers: int, cost: float, rng: np.random.Generator, batches: int = 200) -> float:
    """The same when every batch of trials waits for its slowest."""
    spent = sum(cost * workers + float(rng.choice(SECONDS, workers).max()) for _ in range(batches))
    return workers * batches / spent


def searched(sampler: config.Sampler, workers: int, trials: int, seed: int, where: config.Study) -> np.ndarray:
    """float [trials]: share of the box up to the reference point that the first 1, 2, ... finished trials dominate."""
    rng = np.random.default_rng(seed)
    directions = Metrics().directions(where.objectives)
    study = optuna.create_study(
        directions=directions, sampler=samplers(where.model_copy(update={"sampler": sampler}), seed)
    )
    running: list[tuple[float, int, optuna.trial.Trial, dict[str, float]]] = []
    now, asked = 0.0, 0
    values: list[list[float]] = []
    while len(values) < trials:
        while len(running) < workers and asked < trials:
            trial = study.ask()
            metrics = planted.surface(where.space.suggest(trial))
            heapq.heappush(running, (now + float(rng.choice(SECONDS)), trial.number, trial, metrics))
            asked += 1
        now, _, trial, metrics = heapq.heappop(running)
        violations = {str(limit): limit.violation(metrics[limit.metric]) for limit in where.limits}
        for name, amount in violations.items():
            trial.set_constraint(name, amount)
        study.tell(trial, [metrics[name] for name in where.objectives])
        feasible = all(amount <= 0 for amount in violations.values())
        values.append([metrics[name] if feasible else np.nan for name in where.objectives])
    reference = {
        "accuracy": planted.DENSE["accuracy"] - 0.02,
        "latency_ms": 1.1 * planted.DENSE["latency_ms"],
        "size_bytes": 1.1 * planted.DENSE["size_bytes"],
    }
    box = 0.02 * reference["latency_ms"] * reference["size_bytes"]
    return pareto.hypervolume_curve(np.array(values), directions, [reference[n] for n in where.objectives]) / box


def plot(path: Path, rates: dict[str, list[float]], curves: dict[str, np.ndarray], cost: float) -> None:
    """Throughput by workers; hypervolume by trials, mean and range over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(WORKERS, np.array(WORKERS) / SECONDS.mean(), color="#999999", linestyle=":", label="linear")
    for (name, rate), colour in zip(rates.items(), ("#0072b2", "#d55e00"), strict=True):
        left.plot(WORKERS, rate, color=colour, marker="o", markersize=4, label=name)
    left.set(xscale="log", yscale="log", xlabel="workers", ylabel="trials per second")
    left.set_xticks(WORKERS, [str(n) for n in WORKERS])
    left.set_title(
        f"Throughput, {1000 * cost:.0f} ms of driver per trial, {SECONDS.mean():.0f} s of worker", loc="left"
    )
    colours = ("#0072b2", "#e69f00", "#d55e00", "#999999")
    for (name, runs), colour in zip(curves.items(), colours, strict=True):
        trials = np.arange(1, runs.shape[1] + 1)
        right.fill_between(trials, runs.min(axis=0), runs.max(axis=0), color=colour, alpha=0.12, linewidth=0)
        right.plot(trials, runs.mean(axis=0), color=colour, label=name)
    low = min(float(runs.mean(axis=0)[9]) for runs in curves.values())
    right.set(xlabel="finished trials", ylabel="hypervolume, share of the box", ylim=(low, None))
    right.set_title("What asking ahead costs the sampler", loc="left")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    said = dict(word.partition("=")[::2] for word in sys.argv[1:])
    trials, seeds, cost = int(said.get("trials", 150)), int(said.get("seeds", 5)), float(said.get("cost", 60)) / 1000
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    rng = np.random.default_rng(0)
    rates = {"as they finish (ours)": [throughput(n, cost, rng) for n in WORKERS]}
    rates["in batches"] = [in_batches(n, cost, rng) for n in WORKERS]
    print(f"trial times: {len(SECONDS)} real ones, mean {SECONDS.mean():.1f} s; the driver takes {1000 * cost:.0f} ms")
    print("workers   trials/s   of linear   in batches")
    for i, n in enumerate(WORKERS):
        linear = n / SECONDS.mean()
        shares = [100 * rate[i] / linear for rate in rates.values()]
        print(f"{n:>7}{rates['as they finish (ours)'][i]:>11.2f}{shares[0]:>10.1f} %{shares[1]:>10.1f} %")
    print(f"the driver alone could serve {1 / cost:.0f} trials per second: {SECONDS.mean() / cost:.0f} such workers")
    where = planted.config(Path("unused"), trials, 1).study
    curves: dict[str, np.ndarray] = {}
    for name, sampler, workers in [
        *((f"{n} worker{'s' * (n > 1)}", where.sampler, n) for n in ASKED),
        ("random", config.Sampler(name="random"), 1),
    ]:
        curves[name] = np.stack([searched(sampler, workers, trials, seed, where) for seed in range(seeds)])
        ends = {n: curves[name][:, n - 1] for n in (trials // 3, trials)}
        base = {n: curves[f"{ASKED[0]} worker"][:, n - 1].mean() for n in ends}
        print(
            f"{name:>11}: "
            + "; ".join(
                f"after {n} trials {end.mean():.4f} ± {end.std(ddof=1):.4f} ({100 * (end.mean() / base[n] - 1):+.1f} %)"
                for n, end in ends.items()
            ),
            flush=True,
        )
    if path := said.get("plot"):
        plot(Path(path), rates, curves, cost)
        print(f"plot: {path}")


if __name__ == "__main__":
    main()
