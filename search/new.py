"""A first study of your own model: `python -m search.new photos --model timm:resnet18 --data imagefolder:photos`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trainers.base
from runtimes.base import FORMATS
from search.command import RefusedError, Setting, Usage, UsageError, command
from search.study import starter
from search.study.starter import Kind, Starter
from tasks.address import Address, read
from tasks.base import ACCURACY, TaskError, TaskSpec
from tasks.load import metrics_of, problems, trainers_of

_TASK = {
    "model": Setting(
        "model", "timm:NAME, torchvision:NAME, hf:FOLDER, FILE.py[:NAME], FILE.keras or FILE.onnx", "", "…"
    ),
    "data": Setting("data", "imagefolder:PATH, csv:PATH, npz:PATH, datasets:PATH or FILE.py[:NAME]", "", "…"),
    "weights": Setting("weights", "safetensors or a state dict; pretrained: the library's own", "", "FILE"),
    "metric": Setting("metric", "such as accuracy, f1, miou, mse, ndcg; what a LightningModule logs; FILE.py:NAME"),
    "direction": Setting("direction", "of a metric of your own", "", "", ("maximize", "minimize")),
    "loss": Setting("loss", "cross_entropy, mse, l1, bce or FILE.py:NAME; the targets decide if left out"),
    "text": Setting("text", "the column with the text", "", "COLUMN"),
    "label": Setting("label", "the column or array with the target", "", "COLUMN"),
    "train": Setting("train", "the training split's file, folder or name, where the source does not say"),
    "validation": Setting("validation", "the validation split's; made from train if there is none"),
    "test": Setting("test", "the test split's; made from validation if there is none"),
    "size": Setting("size", "side of the model's input image; its own if left out", "", "PIXELS"),
    "length": Setting("length", "most tokens of a text; the data's 0.99 quantile if left out", "", "TOKENS"),
}
USAGE = Usage(
    "search.new",
    "Write DIR/study/NAME.yaml, a first study of a model of your own, with a search space for its kind. A FILE.py that "
    "is not there yet is written too, as an example to change. Nothing is overwritten.",
    "NAME [--SETTING VALUE | SETTING=VALUE ...]",
    {
        "What is compressed": tuple(_TASK.values()),
        "The study": (
            Setting("runtime", "what runs the compressed file; the usual one of the trainer if left out", "", "",
                    tuple(FORMATS)),
            Setting("dir", "the folder of the study; search.run takes it as --config-dir", ".", "DIR"),
        ),
    },
    (
        ("photos --model timm:resnet18 --data imagefolder:photos", "a classifier of images, a folder per class"),
        ("reviews --model hf:./bert --data csv:reviews.csv --text text --label label", "a classifier of texts"),
        ("mine", "a plain file mine.py with model, data, loss and metric, to be filled in"),
    ),
)  # fmt: skip
# Vision transformers by the beginnings of their names in timm and torchvision.
TRANSFORMERS = ("vit", "deit", "swin", "beit", "cait", "xcit", "eva", "mvit", "maxvit", "pvt", "levit", "twins", "tnt")
RUNTIMES = {"pytorch": "onnxruntime", "onnx": "onnxruntime", "tensorflow": "litert"}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0, 2 for a mistake in it, 1 for what cannot be written."""
    return command("search.new", USAGE, argv, _carry_out)


def _carry_out(words: list[str]) -> int:
    print(write(*arguments(words)))
    return 0


def arguments(words: Sequence[str]) -> tuple[str, dict[str, str]]:
    """(NAME, settings) of the command line; raises UsageError."""
    plain, waiting = [], ""
    for word in words:
        if waiting:
            plain.append(f"{waiting}={word}")
            waiting = ""
        elif word.startswith("--") and "=" not in word:
            waiting = word.removeprefix("--")
        else:
            plain.append(word.removeprefix("--"))
    if waiting:
        raise UsageError(f"--{waiting}: needs a value; write --{waiting} ...")
    names = [word for word in plain if "=" not in word]
    if len(names) != 1:
        found = f"{', '.join(names)} are {len(names)}" if names else "missing"
        raise UsageError(
            f"NAME: {found}; write one name for the study, such as python -m search.new photos --model ..."
        )
    if not re.fullmatch(r"[A-Za-z0-9_-]+", names[0]):
        raise UsageError(f"NAME: {names[0]!r} is not valid; use letters, digits, - and _")
    return names[0], USAGE.read([word for word in plain if "=" in word])


def write(name: str, given: dict[str, str]) -> str:
    """Carry out the command; returns what to tell the user. Raises UsageError for a mistake, with nothing written."""
    folder = Path(given["dir"]).expanduser().absolute()
    study = folder / "study" / f"{name}.yaml"
    if study.exists():
        raise UsageError(f"NAME: {_shown(study)} is there already; choose another name, or remove the file")
    if (Path(__file__).parent.parent / "experiments" / "study" / study.name).exists():
        raise UsageError(f"NAME: {name} is one of the project's own studies; choose another name")
    task = _task(name, given, folder)
    file = _file_to_write(task, folder)
    made = _starter(name, task, folder, given["runtime"], None if file is None else file.stem)
    able = trainers.base.capabilities(made.trainer)
    for path, text in ((file, starter.FILE.format(name=name)), (study, made.text(able))):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    lines = [f"Study    {_shown(study)}", *([f"Task     {_shown(file)}: an example to change"] if file else [])]
    return "\n".join(
        [
            *lines,
            f"Look     python -m search.doctor --config-dir {made.folder} study={name}",
            f"Search   python -m search.run --config-dir {made.folder} study={name}",
        ]
    )


def _shown(path: Path) -> str:
    """Relative to here where it lies below, else as it is."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _task(name: str, given: dict[str, str], folder: Path) -> dict[str, Any]:
    """The study's `task` section, its paths relative to the study's folder where they lie in it."""
    task: dict[str, Any] = {}
    for field, setting in _TASK.items():
        if not given[field]:
            continue
        if field in ("size", "length"):
            if not given[field].isdecimal():
                raise UsageError(f"{setting.name}: {given[field]!r} is not a whole number")
            task[field] = int(given[field])
        else:
            task[field] = _moved(field, given[field], folder)
    model, data = task.get("model"), task.get("data")
    if not model and not data:
        return {"name": f"{name}.py", **task}
    if model and not data and re.fullmatch(r".+\.py", model):
        return {"name": task.pop("model"), **task}  # a plain file with both
    return task


def _moved(field: str, text: str, folder: Path) -> str:
    """An address typed here, as it reads in the study's folder."""
    if field not in ("model", "data", "loss", "metric"):
        file = Path(text).expanduser()
        return _from(file, folder) if field == "weights" and text != "pretrained" else text
    try:
        address = read(field, text)
    except TaskError as error:
        raise UsageError(_plain(error.message)) from None
    local = address.kind in ("file", "imagefolder", "csv", "npz", "keras", "onnx")
    if not local and not (address.kind in ("hf", "datasets") and Path(address.place).expanduser().exists()):
        return text
    return text.replace(address.place, _from(Path(address.place).expanduser(), folder))


def _from(path: Path, folder: Path) -> str:
    whole = Path(os.path.normpath(Path.cwd() / path))
    return str(whole.relative_to(folder)) if whole.is_relative_to(folder) else str(whole)


def _plain(message: str) -> str:
    """A message of the task section in the words of this command line."""
    return message.replace("task.", "--")


def _file_to_write(task: dict[str, Any], folder: Path) -> Path | None:
    """The plain file that the study names and that is not there."""
    if set(task) - {"metric", "direction"} != {"name"}:
        return None
    file = folder / task["name"]
    return None if file.exists() else file


def _starter(name: str, task: dict[str, Any], folder: Path, runtime: str, stem: str | None) -> Starter:
    """What the study will say; raises UsageError for what cannot work."""
    here = Path(_from(folder, Path.cwd()))
    if stem is not None:
        return Starter(name, "own", "pytorch", runtime or RUNTIMES["pytorch"], task, (ACCURACY,), here)
    spec = TaskSpec.from_dict({**task, "folder": str(folder)})
    if found := problems(spec):
        raise UsageError("; ".join(f"--{problem}" for problem in found))
    known = trainers_of(spec)
    trainer = known[0] if known else "pytorch"
    if trainer not in trainers.base.names():
        raise RefusedError(f"--model: {task['model']} needs the {trainer} trainer, which is not installed")
    runtime = runtime or RUNTIMES.get(trainer, "onnxruntime")
    formats = trainers.base.capabilities(trainer).formats
    if FORMATS[runtime] not in formats:
        able = [each for each, form in FORMATS.items() if form in formats]
        raise UsageError(f"runtime: {runtime} does not load what the {trainer} trainer writes; choose from {able}")
    return Starter(name, _kind(spec, trainer), trainer, runtime, task, metrics_of(spec), here)


def _kind(spec: TaskSpec, trainer: str) -> Kind:
    if trainer in ("tensorflow", "onnx"):
        return "keras" if trainer == "tensorflow" else "onnx"
    address: Address | None = read("model", spec.model) if spec.model else None
    if address is None or address.kind not in ("timm", "torchvision", "hf"):
        return "own"
    name = address.place.rpartition("/")[2]
    return "transformer" if address.kind == "hf" or name.startswith(TRANSFORMERS) else "convolutional"


if __name__ == "__main__":
    sys.exit(main())
