"""Copy a point of the front: `python -m search.pick study=mnist_prune "accuracy_drop<=0.005" by=latency_ms`."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from packing.pack import CODERS, pack
from runtimes.base import LAYOUTS
from search.command import ROOT, STUDY, SWEEP, Setting, Usage, UsageError, command, needs_study
from search.front import summary as summaries
from search.front.card import card
from search.front.choice import choose, sureness
from search.front.summary import Summary
from search.front.wording import result
from search.study.constraint import Constraint
from search.tracking import registry
from search.tracking.tracking import Tracking
from search.tracking.uri import store_uri
from serving import picked
from tasks.base import TaskInfo
from tasks.mnist.task import RECORDED_WITHOUT
from trainers.base import NETWORK

HELP = Usage(
    "search.pick",
    "Copy a point of the front into a folder, with its recipe, a model card and a program that runs it, and register "
    "it in MLflow.",
    "study=NAME [METRIC<=VALUE ...] [SETTING=VALUE ...]",
    {
        "Which point": (
            STUDY,
            SWEEP,
            Setting("by", "the best in this metric; the best compromise (the knee) if left out", "", "METRIC"),
            Setting("trial", "this trial, whether or not it is on the front", "", "NUMBER"),
            Setting(
                "certain",
                "yes: a bound is met where the bad end of the 95 % interval meets it; no: where the mean does",
                "yes",
                choices=("yes", "no"),
            ),
        ),
        "What becomes of it": (
            Setting("out", "the folder; ROOT/picked/STUDY if left out", "", "FOLDER"),
            Setting("register", "as models:/STUDY@picked in MLflow's model registry", "yes", choices=("yes", "no")),
            Setting("coder", "of model.pare, the packed model; range is smaller", CODERS[0], choices=CODERS),
            ROOT,
        ),
    },
    (
        ("study=mnist_prune", "the best compromise"),
        (
            "study=mnist_prune 'accuracy_drop<=0.005' by=latency_ms",
            "the fastest of those that lose half a point",
        ),
    ),
    ("METRIC<=VALUE and METRIC>=VALUE are bounds; quote them for the shell.",),
)
ALIAS = "picked"
RUNTIMES = {".onnx": "onnxruntime", ".tflite": "litert"}


@dataclass
class Request:
    """The command line, read."""

    settings: dict[str, str]
    limits: list[Constraint] = field(default_factory=list)


def arguments(words: Sequence[str]) -> Request:
    """Raises UsageError for a word that is neither a setting nor a bound."""
    limits, rest = list[Constraint](), list[str]()
    for word in words:
        if "<=" in word or ">=" in word:
            try:
                limits.append(Constraint.parse(word))
            except ValueError as error:
                raise UsageError(str(error)) from None
        else:
            rest.append(word)
    said_of = HELP.read(rest)
    needs_study(said_of)
    if said_of["trial"] and not said_of["trial"].isdecimal():
        raise UsageError(f"trial: {said_of['trial']!r} must be a number, as the report shows it")
    return Request(said_of, limits)


def pick(asked: Request) -> str:
    """Carry out the command; returns what to tell the user."""
    said_of = asked.settings
    root = Path(said_of["root"])
    found = summaries.read(root, said_of["study"], said_of["sweep"] or None)
    row = choose(found, asked.limits, said_of["by"], said_of["trial"], said_of["certain"] == "yes")
    out = Path(said_of["out"] or root / "picked" / found.study)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("model.*"):
        old.unlink()
    with tempfile.TemporaryDirectory() as scratch:
        fetched = registry.fetch(store_uri(root), str(row["run_id"]), Path(scratch))
        file = out / fetched.file.name
        shutil.copyfile(fetched.file, file)
        shutil.rmtree(out / NETWORK, ignore_errors=True)
        if fetched.network is not None:
            shutil.copytree(fetched.network, out / NETWORK)
    (out / "recipe.json").write_text(json.dumps(fetched.recipe, indent=2) + "\n")
    task = Tracking(root, found.study).task(found.sweep) or RECORDED_WITHOUT
    (out / "MODEL_CARD.md").write_text(card(found, row, file, task))
    lines = [f"picked trial {row['number']}: {result(found, row)}"]
    lines += [f"  {sentence}" for sentence in sureness(found, row, asked.limits)]
    packed = pack(file.read_bytes(), said_of["coder"])
    (out / "model.pare").write_bytes(packed)
    lines += [f"Folder   {out}"]
    lines.append(f"Packed   model.pare, {len(packed):,} bytes to download; {file.name} has {file.stat().st_size:,}")
    if (out / NETWORK).is_dir():
        lines.append(f"Network  {NETWORK}/, the network itself: MODEL_CARD.md says how it is loaded")
    along = _for_serving(root, found, row, file) if file.suffix in picked.SERVED else {}
    if said_of["register"] == "yes":
        about = json.loads((out / "about.json").read_text()) if along else {}
        about |= served(task, LAYOUTS[file.suffix.lstrip(".")])
        if along:
            (out / "invocations.json").write_text(json.dumps(invocation(about, out / "example.npz")) + "\n")
        note = (out / "MODEL_CARD.md").read_text()
        version = registry.register(store_uri(root), found.study, str(row["run_id"]), file, about, note, ALIAS, along)
        lines.append(f"MLflow   models:/{found.study}@{ALIAS} (version {version})")
    return "\n".join(lines)


def served(task: TaskInfo, layout: str) -> dict[str, Any]:
    """What MLflow's model needs to know: of one grey image its preprocessing, of anything else its ports by name."""
    options = (task.serving or {}).get("options", {})
    if options.get("mode") == "L" and len(task.inputs) == len(task.outputs) == 1 and len(task.classes) > 1:
        _, _, height, width = task.inputs[0].shape
        return {"layout": layout, "mean": options["mean"][0], "std": options["std"][0], "shape": [height, width]}
    plain = task.to_dict()
    return {"layout": layout, "ports": {"inputs": plain["inputs"], "outputs": plain["outputs"]}}


def invocation(about: dict[str, Any], example: Path) -> dict[str, Any]:
    """One request to MLflow's model server, as JSON: a grey image, or the inputs of the file's example by name."""
    if "shape" in about:
        height, width = about["shape"]
        image = 255 * (np.add.outer(np.arange(height), np.arange(width)) % 2)
        return {"inputs": [image.tolist()]}
    with np.load(example) as stored:
        given = {name[2:]: stored[name] for name in stored.files if name.startswith("i.")}
    last, ports = about["layout"] == "NHWC", {port["name"]: port for port in about["ports"]["inputs"]}
    for name, array in given.items():
        if last and ports.get(name, {}).get("layout") == "NCHW":
            given[name] = np.moveaxis(array, -1, 1)
    return {"inputs": {name: array.tolist() for name, array in given.items()}}


def _for_serving(root: Path, found: Summary, row: pd.Series, file: Path) -> dict[str, Path]:
    """Write beside the file what search.serve and other servers need; the artifacts of the registered model."""
    tracking = Tracking(root, found.study)
    runtime = row.get("environment.runtime")
    made = picked.make(
        file,
        found.study,
        str(runtime) if isinstance(runtime, str) else RUNTIMES[file.suffix],
        threads=int(threads) if pd.notna(threads := row.get("environment.threads")) and threads else 1,
        task=tracking.task(found.sweep),
        files=tracking.serving_files(found.sweep),
        latency_ms=_latencies(row),
    )
    picked.write(made, file.parent, store_uri(root), ALIAS)
    return {"example": file.parent / "example.npz", "files": file.parent / "files"}


def _latencies(row: pd.Series) -> dict[str, float]:
    """Batch size -> median milliseconds, as measured."""
    found = {"1": row.get("latency_p50_ms")}
    for name in map(str, row.index):
        if match := re.fullmatch(r"latency_p50_ms/batch(\d+)_threads\d+", name):
            found[match[1]] = row[name]
    return {batch: float(ms) for batch, ms in found.items() if pd.notna(ms)}


def _carry_out(words: list[str]) -> int:
    print(pick(arguments(words)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0, 2 for a mistake in it, 1 for a record that cannot be read or a folder not written."""
    return command("search.pick", HELP, argv, _carry_out)


if __name__ == "__main__":
    sys.exit(main())
