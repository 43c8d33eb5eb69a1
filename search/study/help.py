"""What `python -m search.run --help` says, made of the schema itself: every setting, its choices, its default."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from search.study import config
from search.study.space import CAPABILITY
from search.terminal import entry, wrapped
from trainers.base import TRAINERS, capabilities
from trainers.recipe import Recipe

RUN = "python -m search.run"
HEADER = "Find the best compressed versions of a neural network."
EXAMPLES = (
    ("study=mnist_prune", "search, or resume where it stopped"),
    ("study=mnist_prune study.budget.trials=60", "any setting of the study, overridden"),
    ("study=mnist_size fresh=true executor.workers=1", "a new sweep, one worker process"),
    ("--multirun study=mnist_prune,mnist_size", "several studies, one after the other"),
    ("--config-dir FOLDER study=mine", "a study of your own: FOLDER/study/mine.yaml"),
    ("study=mnist_prune --help", "all settings, with the values of this study"),
)
FLAGS = (
    ("--multirun", "one run for each of several studies: study=A,B"),
    ("--config-dir FOLDER", "look for FOLDER/study/NAME.yaml too"),
    ("--cfg job", "print the whole configuration and run nothing"),
)
_COLUMN = 34
_NAMES = {int: "N", float: "NUMBER", bool: "true|false", str: "TEXT", Path: "FOLDER"}


def first_screen(folders: Sequence[Path], width: int) -> str:
    """What a bare command shows: usage, the studies, examples, where the rest is."""
    lines = [*_start(folders, width)]
    lines += ["", f"All settings, their choices and defaults: {RUN} --help"]
    return "\n".join(lines) + "\n"


def whole(folders: Sequence[Path], width: int, values: Mapping[str, Any] | None = None) -> str:
    """The help: the first screen, then every setting in groups. `values`: those of a study, in place of defaults."""
    lines = [*_start(folders, width)]
    plain = {} if values is None else values
    lines += ["", *_group("General", config.Config, "", plain, width)]
    for name, section in _sections(config.Config):
        lines += ["", *_group(name, section, f"{name}.", plain.get(name) or {}, width)]
        inner = plain.get(name) or {}
        for below, nested in _sections(section):
            lines += ["", *_group(f"{name}.{below}", nested, f"{name}.{below}.", inner.get(below) or {}, width)]
        if name == "study":
            lines += ["", *_recipe(inner.get("recipe") or {}, width)]
    lines += ["", "Flags", *(line for flag, about in FLAGS for line in entry(flag, about, width, _COLUMN))]
    return "\n".join(lines) + "\n"


def _start(folders: Sequence[Path], width: int) -> Iterator[str]:
    yield from (HEADER, "", f"  {RUN} study=NAME [SETTING=VALUE ...]", "", *_studies(folders, width), "", "Examples")
    for words, meaning in EXAMPLES:
        yield f"  {RUN} {words}"
        yield from wrapped(meaning, width, 6)


def studies(folders: Sequence[Path]) -> dict[str, str]:
    """Name -> description of every study file in the folders; of a file that cannot be read, that."""
    found = {}
    for file in sorted(file for folder in folders for file in (folder / "study").glob("*.yaml")):
        try:
            found[file.stem] = str((yaml.safe_load(file.read_text()) or {}).get("description", ""))
        except (yaml.YAMLError, AttributeError):
            found[file.stem] = f"(not valid YAML: {file})"
    return found


def _studies(folders: Sequence[Path], width: int) -> list[str]:
    found = studies(folders)
    column = max(map(len, found), default=0)
    return ["Studies", *(line for name, about in found.items() for line in entry(name, about, width, column))]


def _sections(schema: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield name, field.annotation


def _group(title: str, schema: type[BaseModel], prefix: str, values: Mapping[str, Any], width: int) -> Iterator[str]:
    about = (schema.__doc__ or "").strip().split("\n")[0]
    yield from wrapped(f"{title}: {about[:1].lower() + about[1:]}" if prefix else title, width, 0)
    nested = {name for name, _ in _sections(schema)}
    for name, field in schema.model_fields.items():
        if name in nested:
            continue
        default = values.get(name, field.get_default(call_default_factory=True))
        hidden = default is PydanticUndefined or name in ("recipe", "description")
        value = "" if hidden or default == {} else _value(default)
        about = f"{field.description or ''}{_default(value, name in values)}"
        yield from entry(f"{prefix}{name}={kind(field.annotation)}", about, width, _COLUMN)


def _default(value: str, here: bool) -> str:
    """`here`: it is the named study's, not the schema's."""
    return f"; {'here' if here else 'default'}: {value}" if value else ""


def kind(annotation: Any) -> str:
    """What may be written for a value of this type: `tpe|gp|random`, N, NUMBER, TEXT, [N, ...]."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(inner[0])
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return "|".join(dict.fromkeys(kind(part) for part in inner if part is not type(None)))
    if origin is list:
        return f"[{kind(inner[0])}, ...]"
    if origin is dict:
        return "{NAME: ...}"
    return _NAMES.get(annotation, "TEXT")


def _value(value: Any) -> str:
    """A default as the command line takes it; nothing for what is empty."""
    if value is None or value in ("", []):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_value(each)}' for key, each in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _recipe(values: Mapping[str, Any], width: int) -> Iterator[str]:
    """Every field of a recipe; what the study leaves open shows as its range or its choices."""
    yield from wrapped(
        "study.recipe: what is done to a dense model. Each is a value, or searched: {choices: [A, B]} or "
        "{low: 0.5, high: 0.9, step: 0.1} or {low: 1e-4, high: 1e-2, log: true}; a range also per granularity or "
        "trainer: {channel: {...}, unstructured: {...}}",
        width,
        0,
    )
    for name, field, hint in _recipe_fields(Recipe):
        default = field.default if field.default is not MISSING else None
        said = _value(_inside(values, name.split("."), default))
        about = f"{field.metadata.get('about', '')}{_default(said, bool(values))}"
        yield from entry(f"study.recipe.{name}={_choices(name, hint)}", about.removeprefix("; "), width, _COLUMN)


def _inside(values: Any, path: Sequence[str], default: Any) -> Any:
    for part in path:
        values = values.get(part, default) if isinstance(values, Mapping) else default
    return values


def _recipe_fields(part: Any, prefix: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    hints = get_type_hints(part)
    for each in fields(part):
        if is_dataclass(hints[each.name]):
            yield from _recipe_fields(hints[each.name], f"{prefix}{each.name}.")
        else:
            yield prefix + each.name, each, hints[each.name]


def _choices(name: str, hint: Any) -> str:
    if name == "trainer":
        return "|".join(TRAINERS)
    if name in CAPABILITY:
        able = [getattr(capabilities(trainer), CAPABILITY[name], ()) for trainer in TRAINERS]
        return "|".join(dict.fromkeys(str(value) for values in able for value in values)) or kind(hint)
    return kind(hint)
