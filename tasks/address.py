"""Addresses in a study's `task` section, such as `timm:resnet18` or `mine.py:Net`: what they name; none is opened."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from tasks.base import TaskError, TaskSpec

Kind = Literal[
    "timm", "torchvision", "hf", "imagefolder", "csv", "npz", "datasets", "file", "module", "keras", "onnx", "name"
]

# What each field may hold, as people write it.
MODELS = (
    "timm:NAME",
    "torchvision:NAME",
    "hf:FOLDER_OR_ID",
    "FILE.py:NAME",
    "package.module:NAME",
    "FILE.keras",
    "FILE.h5",
    "FILE.onnx",
)
DATA = (
    "imagefolder:PATH",
    "csv:PATH",
    "npz:PATH",
    "datasets:PATH_OR_NAME",
    "FILE.py:NAME",
    "package.module:NAME",
)
_PREFIXES = {
    "model": ("timm", "torchvision", "hf"),
    "data": ("imagefolder", "csv", "npz", "datasets"),
}
_VALID = {"model": MODELS, "data": DATA}
# The name in a Python file where none is written.
DEFAULT_NAMES = {"name": "", **{field: field for field in ("model", "data", "loss", "metric", "optimizer")}}
# Prefix -> the import name of its optional dependency, and the extra that installs it.
EXTRAS = {"timm": ("timm", "vision"), "hf": ("transformers", "text"), "datasets": ("datasets", "text")}


@dataclass(frozen=True)
class Address:
    """`kind`: what it names. `place`: a path, a module or a name in a library. `name`: of an object in Python code."""

    kind: Kind
    place: str
    name: str = ""

    def path(self, spec: TaskSpec) -> Path:
        """The file or folder; relative ones begin in `spec.folder`."""
        return located(spec, self.place)

    @property
    def is_code(self) -> bool:
        """Whether it names an object in Python code."""
        return self.kind in ("file", "module")


def located(spec: TaskSpec, path: str) -> Path:
    """A path of the study; relative ones begin in `spec.folder`."""
    return Path(spec.folder).expanduser().absolute() / Path(path).expanduser()


def read(field: str, text: str) -> Address:
    """The address that a field of the `task` section holds; raises TaskError naming the valid ones.

    `field`: model, data, loss, metric, optimizer or name.
    """
    if found := _code(field, text):
        return found
    prefix, colon, rest = text.partition(":")
    if colon and prefix in _PREFIXES.get(field, ()):
        if not rest:
            raise TaskError(f"task.{field}: {text!r} names nothing after the colon; write {_form(field, prefix)}")
        return Address(prefix, rest)  # type: ignore[arg-type]
    if field == "model" and (found := _model_file(text)):
        return found
    if field in ("name", "loss", "metric", "optimizer") and not colon:
        return Address("name", text)
    raise TaskError(_unknown(field, text))


def _code(field: str, text: str) -> Address | None:
    """`FILE.py[:NAME]` or `package.module:NAME`."""
    if match := re.fullmatch(r"(.+\.py)(?::([A-Za-z_]\w*))?", text):
        return Address("file", match[1], match[2] or DEFAULT_NAMES[field])
    dotted = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)" + ("*" if field == "name" else "+")
    if match := re.fullmatch(rf"({dotted}):([A-Za-z_]\w*)", text):
        return Address("module", match[1], match[2])
    return None


def _model_file(text: str) -> Address | None:
    suffix = Path(text).suffix.lower()
    if suffix == ".onnx":
        return Address("onnx", text)
    if suffix in (".keras", ".h5", ".hdf5"):
        return Address("keras", text)
    return Address("keras", text.removeprefix("savedmodel:")) if text.startswith("savedmodel:") else None


def _form(field: str, prefix: str) -> str:
    return next(form for form in _VALID[field] if form.startswith(f"{prefix}:"))


def _unknown(field: str, text: str) -> str:
    """The message for an address of no known kind, with what was perhaps meant."""
    prefix, colon, rest = text.partition(":")
    valid = _VALID.get(field, ("a name", "FILE.py:NAME", "package.module:NAME"))
    hint = ""
    every = _PREFIXES.get(field, ())
    other = next((name for name, prefixes in _PREFIXES.items() if name != field and prefix in prefixes), "")
    if colon and other:
        hint = f" (that is a kind of task.{other})"
    elif colon and (near := get_close_matches(prefix, every, 1, 0.5)):
        hint = f" (did you mean {near[0]}:{rest}?)"
    elif not colon and field == "data":
        kind = {".csv": "csv", ".tsv": "csv", ".npz": "npz"}.get(Path(text).suffix.lower(), "imagefolder")
        hint = f" (did you mean {kind}:{text}?)"
    elif not colon and field == "model":
        hint = f" (did you mean timm:{text}?)"
    return f"task.{field}: {text!r} is not an address{hint}; choose from {', '.join(valid)}"


def install(extra: str) -> str:
    """The command that installs an optional dependency."""
    return f".venv/bin/pip install -e '.[{extra}]' -c constraints.txt"


def nearest(name: str, valid: list[str] | tuple[str, ...], shown: int = 12) -> str:
    """` (did you mean X?); choose from A, B, …`: the end of a message about a name that does not exist."""
    near = get_close_matches(name, valid, 1, 0.5)
    hint = f" (did you mean {near[0]}?)" if near else ""
    more = f" and {len(valid) - shown} more" if len(valid) > shown else ""
    return f"{hint}; choose from {', '.join(map(str, valid[:shown]))}{more}" if valid else hint
