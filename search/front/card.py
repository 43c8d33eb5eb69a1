"""The model card of a picked file: what it is, how it is used, what was measured of it, on which data, where."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from runtimes.base import LAYOUTS
from search.front.summary import Summary
from search.front.wording import said
from tasks.base import Port, TaskInfo
from trainers.base import NETWORK

_UNSTATED = (
    "not stated; ask where the data come from before you pass the model on (`task.license` in the study states it)"
)
# What of the recorded place people need -> how the card says it.
_PLACE = {
    "cpu": "CPU",
    "gpu": "GPU",
    "cores": "cores",
    "governor": "frequency governor",
    "runtime": "runtime",
    "runtime_version": "runtime's version",
}


def card(found: Summary, row: pd.Series, file: Path, task: TaskInfo) -> str:
    """The card in Markdown; nothing in it is empty."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    lines = [
        f"# {found.study}: {row['words']}",
        "",
        f"`{file.name}` · {file.stat().st_size:,} bytes · trial {row['number']} of sweep {found.sweep}",
        "",
        f"sha256 `{digest}`",
        "",
        "## Use",
        "",
        *usage(task, file),
        "",
        "`python infer.py IMAGES.npy` runs it with NumPy and the runtime alone; without a file it checks itself."
        if task.serving and task.serving["kind"] == "image"
        else "`python infer.py INPUTS.npz` runs it with NumPy and the runtime alone; without a file it checks itself.",
        "",
        *(_network(task, row) if (file.parent / NETWORK).is_dir() else ()),
        "## Figures",
        "",
        *_figures(found, row),
        "",
        "## Data",
        "",
        *_data(row, task),
        "",
        "## How it was made",
        "",
        *_made(found, row),
        "",
        "## Measured on",
        "",
        *_measured(found, row),
    ]
    return "\n".join(lines) + "\n"


def usage(task: TaskInfo, file: Path) -> list[str]:
    """What the file takes and gives, and what a request goes through before, as lines of Markdown."""
    last = LAYOUTS[file.suffix.lstrip(".")] == "NHWC"

    def said_of(port: Port) -> str:
        shape = [port.shape[i] for i in (0, 2, 3, 1)] if last and port.layout == "NCHW" else list(port.shape)
        return f"`{port.name}` {port.dtype} [{', '.join('N' if axis == 'batch' else str(axis) for axis in shape)}]"

    lines = [f"Input: {', '.join(map(said_of, task.inputs))}. Output: {', '.join(map(said_of, task.outputs))}."]
    options = (task.serving or {}).get("options", {})
    if (task.serving or {}).get("kind") == "image":
        what = "grey" if options.get("mode") == "L" else options.get("mode", "RGB")
        mean, std = (", ".join(f"{each:g}" for each in options[key]) for key in ("mean", "std"))
        lines.append(f"Pixels: {what}, as (x / 255 - mean) / std with mean {mean} and std {std}, per channel.")
    elif task.serving:
        lines.append(f"Requests are prepared as {task.serving['kind']}: `about.json` beside the file says how.")
    if task.classes:
        shown = ", ".join(task.classes[:20]) + (", …" if len(task.classes) > 20 else "")
        lines.append(f"Classes: {shown}.")
    return lines


def _network(task: TaskInfo, row: pd.Series) -> Iterator[str]:
    """How the network itself is loaded, where its trainer wrote it beside the file."""
    scheme = row.get("quantization.scheme")
    yield "## The network itself"
    yield ""
    yield f"`{NETWORK}/` holds the pruned network as torch knows it, to be trained further or exported again"
    yield "(before its numbers became those of the file):" if scheme not in ("none", None) else "(float32):"
    yield "`program.pt2` runs without its author's code and without Pare, `weights.safetensors` holds its weights by"
    yield "name, `widths.json` the sizes that pruning left of each module."
    yield ""
    yield "```python"
    yield "import numpy as np, torch"
    yield ""
    yield f'network = torch.export.load("{NETWORK}/program.pt2").module()'
    yield 'with np.load("example.npz") as example:'
    yield f"    inputs = [torch.from_numpy(example[name]) for name in {[f'i.{port.name}' for port in task.inputs]}]"
    yield "outputs = network(*inputs)"
    yield "```"
    yield ""
    yield "With the author's code at hand, `trainers.pytorch.saved.restore` gives a freshly built network these widths"
    yield "and weights."
    yield ""


def _figures(found: Summary, row: pd.Series) -> Iterator[str]:
    metrics, known = found.metrics, [n for n in found.metrics.shown() if pd.notna(row.get(n))]
    own = [name for name in known if pd.notna(row.get(f"file/{name}"))]
    if row.get("confirmed"):
        yield "Recipe: means of fresh trainings with their 95 % intervals; latency beside the dense fp32 file in the"
        yield "same run. This file: the training whose quality is the median of those."
    else:
        yield "As the search found them, on the validation split: optimistic, since the luckiest trials are chosen."
    heads = ["", "Recipe", "This file"] if own else ["", "This file"]
    yield ""
    yield f"| {' | '.join(heads)} |"
    yield "|" + " --- |" * len(heads)
    for name in known:
        cells = [metrics[name].title, said(metrics, row, name)]
        cells += [metrics[name].text(row[f"file/{name}"]) if name in own else "–"] if own else []
        yield f"| {' | '.join(cells)} |"


def _data(row: pd.Series, task: TaskInfo) -> Iterator[str]:
    counts = ", ".join(f"{count:,} {split}" for split, count in task.counts.items())
    digest = row.get("data_digest") or task.data_digest
    yield f"- Data set: {task.name}{f' ({counts} samples)' if counts else ''}"
    if digest:
        yield f"- Digest of training and validation as they were used: `{digest}`"
    yield f"- Licence: {task.license or _UNSTATED}"


def _made(found: Summary, row: pd.Series) -> Iterator[str]:
    commit = row.get("git_commit") or found.about["tags"].get("pare.git_commit")
    code = f", made by commit `{commit}` of Pare" if commit else ""
    yield f"`recipe.json` is the whole recipe{code}."
    yield ""
    versions = {str(k).removeprefix("version."): v for k, v in row.items() if str(k).startswith("version.")}
    yield from (f"- {name} {version}" for name, version in sorted(versions.items()) if pd.notna(version) and version)


def _measured(found: Summary, row: pd.Series) -> Iterator[str]:
    batch = _first(found.about["settings"].get("latency.batch"), 1)
    threads = _first(row.get("environment.threads") or found.about["settings"].get("latency.threads"), 1)
    samples = "one sample" if batch == 1 else f"{batch} samples"
    cores = "one thread" if threads == 1 else f"{threads} threads"
    yield f"- Latency: of {samples} per call on {cores}; `infer.py` and the served model use as many threads"
    target = found.about["settings"].get("target")
    if target and target != "latency":
        yield f"- target: {target}"
    for key, words in _PLACE.items():
        value = row.get(f"environment.{key}")
        if pd.notna(value) and str(value) not in ("", "[]", "unknown"):
            yield f"- {words}: {_plain(value)}"
    if str(row.get("environment.noisy") or "").strip("[]"):
        yield "- The machine was noisy: the intervals of the latency are wide"


def _plain(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _first(value: Any, default: int) -> int:
    """The first of the numbers that were recorded, as a number or as the text of a list."""
    try:
        found = ast.literal_eval(str(value))
    except (ValueError, SyntaxError):
        return default
    first = found[0] if isinstance(found, list | tuple) and found else found
    return int(first) if isinstance(first, int | float) else default
