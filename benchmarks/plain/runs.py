"""Both searches as processes for equal wall-clock, each alone on the machine, and what they wrote of their trials."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plain.figures import Settled
from search.executors.base import cores
from search.run import EXPERIMENTS
from search.study import compose
from search.study.config import Config

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 120.0  # for a search to end after SIGTERM
# What the plain script has no counterpart of is taken out of the space; no confirmation in either.
SPACE = "study.recipe.quantization.scheme={choices: [none, static_int8]}"
STOPPING = ("study.early_stopping.name=gain", "study.early_stopping.chance=0.1")
WITHOUT_QAT = (
    "~study.references.sparse_90_qat",
    "study.references.sparse_90_int8={pruning: {granularity: unstructured, sparsity: 0.9}, "
    "quantization: {scheme: static_int8}}",
)


@dataclass(frozen=True)
class Task:
    """What is searched. `data`: folder of its splits in the cache; `normal`: module with MEAN and STD."""

    study: str
    model: str
    data: str
    words: tuple[str, ...]


TASKS = {
    "lenet5": Task("mnist_prune", "lenet5", "mnist", (*STOPPING, *WITHOUT_QAT)),
    "lenet300": Task("mnist_prune", "lenet300", "mnist", (*STOPPING, *WITHOUT_QAT, "study.recipe.model=lenet300")),
    "resnet20": Task("cifar10_prune", "resnet20", "cifar10", STOPPING),
}


@dataclass(frozen=True)
class Setup:
    """One seed of one task. `root`: Pare's folder; `words`: what is set otherwise than in the study's file."""

    task: Task
    seed: int
    root: Path
    words: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """The words of `search.run`, without budget."""
        fixed = [f"study={self.task.study}", f"study.seed={self.seed}", f"root={self.root}", "fresh=true"]
        off = ["study.confirm.seeds=0", "tracking.layers=false", "executor.grace=0", SPACE]
        return [*fixed, *off, *self.task.words, *self.words]

    def config(self) -> Config:
        """What these words mean."""
        return compose.composed([*self.command(), "study.budget.trials=1"], EXPERIMENTS)


def prepare(setup: Setup, cache: Path, log: Path) -> dict[str, Any]:
    """Train the dense model that both searches start from; gives the baseline as the sweep has stored it.

    `cache`: where the data set may lie already. Raises RuntimeError with Pare's last words when that fails.
    """
    ours, theirs = setup.root / "cache" / "data" / setup.task.data, cache / "data" / setup.task.data
    if not ours.exists() and theirs.exists():
        shutil.copytree(theirs, ours, copy_function=os.link)
    with log.open("ab") as out:
        words = [*setup.command(), "study.budget.trials=1", "study.early_stopping.name=none"]
        done = subprocess.run([sys.executable, "-m", "search.run", *words], cwd=ROOT, stdout=out, stderr=out)
    if done.returncode:
        raise RuntimeError(f"the dense model was not made: {log.read_text()[-2000:]}")
    baseline: dict[str, Any] = newest(setup)(f"baseline pytorch/{setup.task.model}")
    return baseline


def newest(setup: Setup) -> Callable[[str], Any]:
    """What the study's newest sweep has stored under a key, its trials under `records`; nothing is changed in it."""
    import optuna

    from search.storage.database import address
    from search.storage.rooted import absolute
    from search.sweep.sweep import sweep_names

    url = address(setup.root)
    study = optuna.load_study(study_name=sweep_names(setup.task.study, url)[-1], storage=url)

    records = [trial.user_attrs["record"] for trial in study.get_trials(deepcopy=False) if "record" in trial.user_attrs]
    texts = {**study.user_attrs, "records": json.dumps([json.loads(record) for record in records])}

    def read(key: str) -> Any:
        return absolute(json.loads(texts[key]), setup.root)

    return read


def pare(setup: Setup, minutes: float, log: Path) -> tuple[list[Settled], float]:
    """Pare's trials of so many minutes from its command on, and the CPU-seconds of all its processes.

    Nothing is known of costs but what it finds out.
    """
    for kept in ("costs", "placement"):
        shutil.rmtree(setup.root / "cache" / kept, ignore_errors=True)
    words = [*setup.command(), "study.budget.trials=100000"]
    began, cpu = _timed([[sys.executable, "-m", "search.run", *words]], minutes, log)
    found = []
    for record in newest(setup)("records"):
        state = {"complete": "trained"}.get(record["state"], record["state"])
        values, file = None, ""
        if state == "trained":
            values = tuple(record["metrics"][name] for name in ("accuracy", "latency_ms", "size_bytes"))
            state, file = ("copied" if record["duplicate_of"] is not None else state), record["artifact"]
        found.append(Settled(record["end_ms"] / 1000 - began, state, values, file))
    return _within(found, minutes), cpu


def plain(
    setup: Setup, baseline: dict[str, Any], minutes: float, into: Path, log: Path, precision: str = "float32"
) -> tuple[list[Settled], float]:
    """The same of the plain script, one process per core."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    file = into / "settings.json"
    file.write_text(json.dumps({**settings(setup, baseline, into), "precision": precision}, indent=1))
    script = [sys.executable, "-m", "benchmarks.plain.script", str(file)]
    began, cpu = _timed([[*script, str(worker)] for worker in range(cores())], minutes, log)
    lines = [json.loads(line) for log in into.glob("trials-*.jsonl") for line in log.read_text().splitlines()]
    found = [
        Settled(line["at"] - began, line["state"], tuple(line["values"]) if line["values"] else None, line["file"])
        for line in lines
    ]
    return _within(found, minutes), cpu


def settings(setup: Setup, baseline: dict[str, Any], into: Path) -> dict[str, Any]:
    """What the plain script is told: the study's own space, references and data, the same dense weights."""
    from tasks.cifar10 import task as cifar10
    from tasks.mnist import data as mnist

    study = setup.config().study
    normal = {"mnist": ([mnist.MEAN], [mnist.STD]), "cifar10": (list(cifar10.MEAN), list(cifar10.STD))}
    mean, std = normal[setup.task.data]
    return {
        "model": setup.task.model,
        "seed": setup.seed,
        "into": str(into),
        "data": str(setup.root / "cache" / "data" / setup.task.data),
        "dense": str(next(Path(baseline["dense_folder"]).glob("*.safetensors"))),
        "recipe": study.recipe,
        "references": [known for each in study.references.values() if (known := reference(each)) is not None],
        "train_size": study.task.train_size,
        "validation_size": study.task.validation_size,
        "augment": setup.task.data == "cifar10",
        "mean": mean,
        "std": std,
    }


def reference(partial: dict[str, Any]) -> dict[str, Any] | None:
    """A study's reference as parameters of the plain script; None where it has no such scheme."""
    pruning, scheme = partial.get("pruning", {}), partial.get("quantization", {}).get("scheme", "none")
    if scheme not in ("none", "static_int8"):
        return None
    granularity = pruning.get("granularity", "none")
    found = {"granularity": granularity, "scheme": scheme, "kind": "none"}
    return found if granularity == "none" else {**found, f"sparsity_{granularity}": pruning["sparsity"]}


def _timed(commands: Sequence[Sequence[str]], minutes: float, log: Path) -> tuple[float, float]:
    """Run them side by side for so long, then end them; raises RuntimeError if one fails.

    Gives when they were started, and the CPU-seconds of them and of what they started.

    A process that ends by itself before its time with exit code 0 has nothing more to do.
    """
    with log.open("ab") as out:
        began, before = time.time(), os.times()
        running = [subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out) for command in commands]
        try:
            while time.time() - began < 60 * minutes and any(each.poll() is None for each in running):
                if any(each.poll() for each in running):
                    break
                time.sleep(0.1)
            failed = [each for each in running if each.poll()]
        finally:
            _end(running)
    if failed:
        raise RuntimeError(f"{' '.join(failed[0].args)} failed: {log.read_text()[-2000:]}")  # type: ignore[arg-type]
    after = os.times()
    return began, sum(after[2:4]) - sum(before[2:4])


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for each in running:
        if each.poll() is None:
            each.terminate()
    for each in running:
        try:
            each.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            each.kill()
            each.wait()


def _within(trials: list[Settled], minutes: float) -> list[Settled]:
    in_time: Callable[[Settled], bool] = lambda trial: 0 <= trial.at <= 60 * minutes  # noqa: E731
    return sorted(filter(in_time, trials), key=lambda trial: trial.at)
