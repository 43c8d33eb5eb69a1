"""Look at a study before it is searched: `python -m search.doctor study=mine`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from search import terminal
from search.command import Setting, Usage, command, writable
from search.errors import SweepError, reason
from search.executors.inline import InlineExecutor
from search.executors.local import LocalExecutor
from search.study import compose
from search.study.config import Config, ConfigError

USAGE = Usage(
    "search.doctor",
    "Try every step of a study on a small part of its data, in a minute or two: model, data, metric, export, what can "
    "be compressed, latency and size of the usual recipes without training, what a sweep would cost.",
    "study=NAME [format=table|json] [KEY=VALUE ...]",
    {
        "What to look at": (
            Setting("study", "the study, as in experiments/study or below --config-dir"),
            Setting("format", "table: for people; json: for programs", "table", "", ("table", "json")),
        ),
    },
    (
        ("study=mnist_prune", "what a search of MNIST would do"),
        ("--config-dir . study=mine", "a study of your own, in ./study/mine.yaml"),
    ),
    ("Every setting of python -m search.run may be given. Exit code 1: a step failed, as it would in a search.",),
)
LONG_S = 3600.0  # a sweep beyond that is told how to get shorter
SLOW = 1.0  # a latency ratio above this is slower than the dense file


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0, 1 when a step failed, 2 for a mistake in it."""
    return command("search.doctor", USAGE, argv, _carry_out)


def _carry_out(words: list[str]) -> int:
    from search.run import EXPERIMENTS

    form = next((word.partition("=")[2] for word in words if word.startswith("format=")), "table")
    USAGE.read([f"format={form}"])
    rest = [word for word in words if not word.startswith("format=")]
    try:
        if not any(word.startswith("study=") for word in rest):
            raise ConfigError(["study: missing; write study=NAME"])
        config = compose.composed(rest, EXPERIMENTS)
    except ConfigError as error:
        for problem in error.problems:
            print(f"search.doctor: {problem}", file=sys.stderr)
        print("See python -m search.doctor --help", file=sys.stderr)
        return 2
    config = config.model_copy(update={"root": writable(config.root)})
    found = examined(config, quiet=form == "json")
    if form == "json":
        print(json.dumps(found, indent=1, default=float))
    else:
        print("\n".join(lines(config, found)))
    return 1 if found["problems"] else 0


def examined(config: Config, quiet: bool = False) -> dict[str, Any]:
    """What a worker process found, as plain values: see `search.trial.examine.Findings`."""
    from search.trial import examine

    folder = config.root / "doctor" / config.study.name
    shutil.rmtree(folder, ignore_errors=True)
    log = config.root / "logs" / f"doctor-{config.study.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    inline = config.executor.name == "inline"
    one = config.executor.model_copy(update={"workers": 1, "name": "local"})
    worker = InlineExecutor() if inline else LocalExecutor(one, log)
    try:
        future = worker.submit(0, config.study.space.trainers()[0], examine.examine, config, folder)
        _watch(future, worker, quiet)
        if error := future.exception():
            raise SweepError(reason(error)) from error
        return asdict(future.result())
    finally:
        worker.close()
        shutil.rmtree(folder, ignore_errors=True)


def _watch(future: Any, worker: Any, quiet: bool) -> None:
    """Say what is looked at while it runs: on a terminal alone."""
    from concurrent.futures import wait

    shown = sys.stderr.isatty() and not quiet
    while not future.done():
        wait([future], timeout=0.3)
        for _, stage, fraction in worker.events():
            if shown:
                print(f"\r{stage[:60]} {100 * fraction:3.0f} %".ljust(78), end="", file=sys.stderr, flush=True)
    if shown:
        print("\r" + " " * 78, end="\r", file=sys.stderr)


def lines(config: Config, found: dict[str, Any]) -> list[str]:
    """The findings as people read them."""
    made = [f"Doctor: study {config.study.name}, looked at in {found['seconds']:.0f} s"]
    for part in (_model, _data, _quality, _recipes, _cost):
        made += part(found)
    if found["problems"]:
        made += ["", "PROBLEMS: the search would stop here"]
        for problem in found["problems"]:
            place = f" ({problem['place']})" if problem.get("place") else ""
            made.append(f"  {problem['step']}: {problem['message']}{place}")
        made += ["Fix this, then run the doctor again."]
        return made
    return [*made, "", *_advice(config, found)]


def _model(found: dict[str, Any]) -> list[str]:
    model = found["model"]
    if not model:
        return []
    state = "trained weights" if model["trained"] else "no trained weights: the sweep trains it first"
    return [
        "",
        f"Model    {model['name']}: {model['parameters']:,} parameters, {state}",
        f"  in     {'; '.join(model['inputs'])}",
        f"  out    {'; '.join(model['outputs'])}",
        f"  with   trainer {model['trainer']}, runtime {model['runtime']}",
    ]


def _data(found: dict[str, Any]) -> list[str]:
    data = found["data"]
    if not data:
        return []
    counts = ", ".join(f"{split} {count:,}" for split, count in data["counts"].items())
    made = ["", f"Data     {counts}; digest {data['digest']}"]
    for split, balance in data.get("classes", {}).items():
        values = list(balance["counts"].values())
        rare = f"; rare: {', '.join(balance['rare'][:5])}" if balance["rare"] else ""
        made.append(f"  {split}: {len(values)} classes, {min(values)} to {max(values)} samples each{rare}")
    if "duplicates" in data:
        made.append(f"  {data['duplicates']} samples are in train and validation both (the test split stays closed)")
    return [*made, *(f"  note: {note}" for note in data["notes"])]


def _quality(found: dict[str, Any]) -> list[str]:
    if not found["quality"]:
        return []
    first = found["recipes"][0]
    figures = ", ".join(f"{name} {value:.4f}" for name, value in found["quality"]["metrics"].items())
    trained = found["model"]["trained"]
    means = "of the exported file" if trained else "of the exported file, hardly trained, so it means nothing yet"
    return [
        "",
        f"Metric   {figures} {means}, on {found['quality']['rows']} validation samples",
        f"  the file agrees with the model in the framework: {100 * first.get('agreement', 0):.1f} %",
    ]


def _recipes(found: dict[str, Any]) -> list[str]:
    if not found["recipes"]:
        return []
    made = ["", "Without training (latency and size are those of the architecture)"]
    told = set[str]()
    made.append(f"  {'':<31}{'latency':>12}{'of dense':>10}{'size':>12}{'agreement':>11}")
    for row in found["recipes"]:
        if "problem" in row:
            made.append(f"  {row['name']:<31}cannot: {row['problem']}"[: 4 * terminal.text_width()])
            continue
        ratio = f"{100 * row['latency_ratio']:.0f} %" if "latency_ratio" in row else "-"
        timed = f"{row['latency_ms']:.4f} ms" if "latency_ms" in row else "-"
        size = f"{row['size_bytes'] / 1000:,.1f} kB"
        made.append(f"  {row['name']:<31}{timed:>12}{ratio:>10}{size:>12}{100 * row['agreement']:>9.1f} %")
        made += [f"    {note}" for note in row.get("notes", ()) if note not in told]
        told.update(row.get("notes", ()))
    return made


def _cost(found: dict[str, Any]) -> list[str]:
    cost = found["cost"]
    if "sweep_s" not in cost:
        return ["", f"Cost     {cost['fixed_s']:.0f} s per recipe; nothing is trained"] if "fixed_s" in cost else []
    dense = f"dense training {_time(cost['dense_s'])}, " if cost["dense_s"] else ""
    return [
        "",
        f"Cost     an epoch {_time(cost['epoch_s'])}, a trial {_time(cost['trial_s'])}: {dense}"
        f"{cost['trials']} trials {_time(cost['sweep_s'])}, confirming {_time(cost['confirm_s'])} (2 workers)",
        f"  memory of a worker so far {cost['peak_bytes'] / 1e9:.1f} GB",
    ]


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _advice(config: Config, found: dict[str, Any]) -> list[str]:
    made, cost = list[str](), found["cost"]
    slower = [row["name"] for row in found["recipes"][1:] if row.get("latency_ratio", 0) > SLOW]
    if slower:
        made.append(f"Not faster here than the dense file: {', '.join(slower)}.")
    if cost.get("sweep_s", 0) + cost.get("dense_s", 0) > LONG_S:
        made.append(
            "To be done sooner: fewer study.budget.trials, study.recipe.finetuning.epochs=1, a smaller "
            "study.task.train_size, or a GPU."
        )
    return [*made, f"Next: python -m search.run study={config.study.name}{_own(config)}"]


def _own(config: Config) -> str:
    folder = config.folder
    return (
        f" --config-dir {folder}"
        if (folder / "study" / f"{config.study.name}.yaml").is_file()
        and (folder / "study").resolve() != (Path(__file__).parent.parent / "experiments" / "study").resolve()
        else ""
    )


if __name__ == "__main__":
    sys.exit(main())
