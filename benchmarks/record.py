"""Real trials of a study, to be searched again and again by `benchmarks.samplers`: accuracy and size, no latency.

    python -m benchmarks.record to=benchmarks/recorded.json [study=mnist_prune] [trials=90] [seed=100] [root=mlruns]

Recipes are the study's references and then random ones. Each is trained twice: with the study's epochs and with a
complete schedule over a quarter epoch, the rung before it. What is there already is gone on with. Latency is left out:
it depends on the architecture alone, and a busy machine cannot time it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna

from benchmarks import planted
from search.study.config import Config
from search.trial import objective
from search.trial.results import Baseline
from trainers.recipe import Recipe

QUARTER = 0.25  # epochs of the short schedule


def _silent(stage: str, share: float) -> None:
    pass


def measured(config: Config, recipe: Recipe, baseline: Baseline, folder: Path) -> dict[str, Any]:
    """accuracy, size_bytes and the CPU time, in seconds, of one training."""
    began, cpu = time.perf_counter(), time.process_time()
    built = objective.build(config, recipe, baseline, baseline, folder, _silent)
    figures = built.figures(baseline, _metrics(baseline))
    spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    return {name: figures[name] for name in ("accuracy", "accuracy_drop", "size_bytes")} | spent


def _metrics(baseline: Baseline) -> Any:
    from search.study.metrics import Metrics

    return Metrics.from_info(baseline.task)


def recipes(config: Config, trials: int, seed: int) -> list[Recipe]:
    """The study's references and random recipes of its space, without repetition."""
    space = config.study.space
    study = optuna.create_study(directions=["minimize"], sampler=optuna.samplers.RandomSampler(seed=seed))
    for partial in config.study.references.values():
        study.enqueue_trial(space.reference(partial))
    found: dict[str, Recipe] = {}
    while len(found) < trials:
        recipe = space.suggest(study.ask())
        if recipe.distillation.teacher != "baseline":  # the one dense model that is trained here
            recipe = replace(recipe, distillation=replace(recipe.distillation, teacher="baseline"))
        found.setdefault(recipe.digest(), recipe)
    return list(found.values())


def main() -> None:
    said = dict(word.partition("=")[::2] for word in sys.argv[1:])
    to, root = Path(said["to"]), Path(said.get("root", "mlruns")).absolute()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = int(said.get("seed", 100))
    named, plain = said.get("study", "mnist_prune"), ["accuracy", "latency_ms", "size_bytes"]
    config = planted.config(root, 10, 1, named, seed=seed, objectives=plain)  # nothing is packed
    known = json.loads(to.read_text())["trials"] if to.exists() else []
    with tempfile.TemporaryDirectory() as scratch:
        spec = config.study.dense_spec(config.study.space.trainers()[0], config.study.space.models()[0])
        baseline = objective._train_and_export(config, spec, Path(scratch) / "dense", 1, _silent)
        for i, recipe in enumerate(recipes(config, int(said.get("trials", 90)), seed)):
            if i < len(known):
                continue
            tuning = recipe.finetuning
            short = replace(recipe, finetuning=replace(tuning, epochs=QUARTER, qat_epochs=QUARTER)).canonical()
            full = measured(config, recipe, baseline, Path(scratch) / f"{i}")
            quarter = full if short == recipe else measured(config, short, baseline, Path(scratch) / f"{i}q")
            known.append({"recipe": recipe.to_dict(), "full": full, "quarter": quarter})
            dense = {"accuracy": baseline.metrics["accuracy"], "size_bytes": baseline.size_bytes}
            to.write_text(json.dumps({"study": config.study.name, "dense": dense, "trials": known}, indent=1) + "\n")
            print(i, recipe.describe(), f"{full['accuracy']:.4f}", f"{quarter['accuracy']:.4f}", flush=True)


if __name__ == "__main__":
    main()
