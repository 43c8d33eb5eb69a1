"""Which operators of an ONNX file are integer: within the loss that the recipe allows, and never slower than float."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import onnx

from tasks.base import Arrays
from trainers.base import Job, TrainingError
from trainers.onnx import run
from trainers.onnx.static import SETS, StaticInt8
from trainers.onnx.weights import weight_only_int8
from trainers.placement import NOISE, fastest, remembered, within
from trainers.recipe import Recipe

MOST_LAYERS = 80  # of which each is tried alone; of larger files the ones at both ends first
FLOAT_ARITHMETIC = "float arithmetic, weights int8"


def placed(
    recipe: Recipe, job: Job, file: Path, samples: Sequence[Arrays], keep: Collection[str]
) -> tuple[onnx.ModelProto, list[str]]:
    """(the float `file` with integer operators, what was decided, in words)."""
    key = {
        "file": _content(file),
        "max_drop": recipe.quantization.max_drop,
        "target": job.timer.target if job.timer else "",
        "keep": sorted(keep),
    }
    with StaticInt8(file, samples, keep) as static:
        decided = remembered(job.decisions, key, lambda: _decide(recipe, job, file, static))
        notes = list(decided["notes"])
        if decided["kind"] == FLOAT_ARITHMETIC:
            return _stored(file), notes
        return static.made(decided["kind"], decided["keep_float"]), notes


def _decide(recipe: Recipe, job: Job, file: Path, static: StaticInt8) -> dict[str, Any]:
    """The first set of operators that loses no more than it may; another one where that is slower than float."""
    max_drop, choices, models = recipe.quantization.max_drop, list[dict[str, Any]](), list[onnx.ModelProto]()
    for kind, model in static.candidates():
        kept: tuple[str, ...] = ()
        if max_drop:
            kept, model, lost = _accurate(job, static, kind, model, max_drop)
            if lost > max_drop or len(kept) == len(static.layers(SETS[kind])):
                continue
        notes = [f"static int8: {kind}"] if kind != next(iter(SETS)) else []
        notes += [f"stays float, within max_drop {max_drop:g}: {', '.join(kept)}"] if kept else []
        choices.append({"kind": kind, "keep_float": list(kept), "notes": notes})
        models.append(model)
        if job.timer is None:
            break
    if not choices:
        reason = f"integers change more than max_drop {max_drop:g} of the answers whatever stays float"
        return {"kind": FLOAT_ARITHMETIC, "keep_float": [], "notes": [f"{FLOAT_ARITHMETIC}: {reason}"]}
    if job.timer is None:
        return choices[0]
    return _fast(job, file, choices, models)


def _accurate(
    job: Job, static: StaticInt8, kind: str, whole: onnx.ModelProto, max_drop: float
) -> tuple[tuple[str, ...], onnx.ModelProto, float]:
    """(layers that stay float, the file, the share of answers that change)."""
    made: dict[tuple[str, ...], onnx.ModelProto] = {(): whole}

    def lost(kept: tuple[str, ...]) -> float:
        if kept not in made:
            made[kept] = static.made(kind, kept)
        return 1.0 - job.task.agreement(run.outputs(made[kept], static.samples), static.exact)

    if (drop := lost(())) <= max_drop:
        return (), whole, drop
    layers = static.layers(SETS[kind])
    weighted = [name for name in layers if name in static.layers()]
    if len(weighted) > MOST_LAYERS:
        weighted = [*weighted[: MOST_LAYERS // 2], *weighted[-MOST_LAYERS // 2 :]]
    costs = {}
    for name in weighted:
        job.pause()
        costs[name] = static.error(static.made(kind, [other for other in layers if other != name]))
    *_, (kept, drop) = within(costs, lost, max_drop)
    return kept, made[kept], drop


def _fast(job: Job, file: Path, choices: list[dict[str, Any]], models: list[onnx.ModelProto]) -> dict[str, Any]:
    """The choice that is no slower than float."""
    assert job.timer is not None
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{index}.onnx") for index in range(len(models))]
        for model, place in zip(models, files, strict=True):
            onnx.save(model, place)
        seconds = job.timer([*files, file])
    taken = fastest(seconds)
    ratio = f"{seconds[0] / seconds[-1]:.2f} times the time of float"
    if taken == len(models):
        note = f"{FLOAT_ARITHMETIC}: integer operators take {ratio} on {job.timer.target}"
        return {"kind": FLOAT_ARITHMETIC, "keep_float": [], "notes": [note]}
    if taken:
        choices[taken]["notes"].append(f"because {choices[0]['kind']} take {ratio} on {job.timer.target}")
    return choices[taken]


def not_slower(job: Job, file: Path, change: Callable[[Path], None]) -> list[str]:
    """Change the float `file` in place; where that makes it slower, store its weights as int8 instead, and say so."""
    with tempfile.TemporaryDirectory() as folder:
        before, made = Path(folder, "float.onnx"), Path(folder, "made.onnx")
        shutil.copy(file, before)
        change(file)
        shutil.copy(file, made)
        if job.timer is None:
            return []
        timer, name = job.timer, change.__name__
        key = {"file": _content(before), "change": name, "target": timer.target}
        decided = remembered(job.decisions, key, lambda: {"seconds": timer([made, before])})
        ratio = decided["seconds"][0] / decided["seconds"][1]
        if ratio <= NOISE:
            return []
        shutil.copy(before, file)
        weight_only_int8(file)
        return [f"{FLOAT_ARITHMETIC}: {name} takes {ratio:.2f} times the time of float on {timer.target}"]


def _stored(file: Path) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(shutil.copy(file, Path(folder, "stored.onnx")))
        weight_only_int8(copied)
        return onnx.load(copied)


def _content(file: Path) -> str:
    """Of the graph and weights without what the file says of itself, so that equal networks share a decision."""
    model = onnx.load(file)
    del model.metadata_props[:]
    try:
        return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    except ValueError as problem:  # protobuf's limit of two gigabytes
        raise TrainingError(f"{file.name}: too large for one file: {problem}") from None
