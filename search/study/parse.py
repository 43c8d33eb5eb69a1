"""The `recipe` section of a study file -> Space. Every mistake is reported, each with field, value, rule and remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from search.study.space import CAPABILITY, DEFAULTS, Branches, Choice, Range, Space, SpaceError, nest
from trainers.base import TRAINERS
from trainers.recipe import GRANULARITIES, Recipe, RecipeError

# The field whose sampled value selects among alternatives, and the keys alternatives may have.
_SELECTORS = (("pruning.granularity", GRANULARITIES), ("trainer", TRAINERS))


Models = Mapping[str, tuple[str, ...]]


def parse(recipe: Any, where: str = "study.recipe", models: Models | None = None) -> Space:
    """The `recipe` section of a study -> Space; raises SpaceError with every mistake, each naming its field.

    `models`: trainer -> the task's models that it can compress; None where only a worker can tell. A task with one
    model needs no `recipe.model`.
    """
    if not isinstance(recipe, Mapping):
        raise SpaceError([f"{where}: must be a mapping of recipe fields, not {recipe!r}"])
    problems: list[str] = []
    entries: dict[str, Any] = dict(DEFAULTS)
    for field, raw in _leaves(recipe, where, problems):
        entries[field] = _entry(field, raw, f"{where}.{field}", problems)
    if "model" not in recipe:
        known = list(dict.fromkeys(name for names in (models or {}).values() for name in names))
        if len(known) == 1:
            entries["model"] = known[0]
        else:
            valid = f"choose from {', '.join(known)}" if known else "name one of the task's models"
            problems.append(f"{where}.model: missing; {valid}")
    # A field with a mistake keeps its default, so what is checked here is the rest.
    space = Space(entries, models)
    problems += _impossible(space, where)
    if problems:
        raise SpaceError(problems)
    return space


def _leaves(recipe: Mapping[str, Any], where: str, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """(dotted field, raw value) of every known field; unknown names become problems."""
    sections = {name.split(".")[0] for name in DEFAULTS if "." in name}
    for key, value in recipe.items():
        if key in sections and isinstance(value, Mapping):
            for inner, raw in value.items():
                if f"{key}.{inner}" in DEFAULTS:
                    yield f"{key}.{inner}", raw
                else:
                    valid = [name.split(".")[1] for name in DEFAULTS if name.startswith(f"{key}.")]
                    problems.append(unknown(f"{where}.{key}.{inner}", str(inner), valid))
        elif key in DEFAULTS:
            yield str(key), value
        elif key in sections:
            problems.append(f"{where}.{key}: must be a mapping, not {value!r}")
        else:
            valid = [name for name in DEFAULTS if "." not in name]
            problems.append(unknown(f"{where}.{key}", str(key), [*valid, *sorted(sections)]))


def unknown(where: str, name: str, valid: list[str]) -> str:
    """The message for a name that does not exist, with the nearest that does."""
    near = get_close_matches(name, valid, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{where}: no such field{hint}; choose from {', '.join(valid)}"


def _entry(field: str, raw: Any, where: str, problems: list[str]) -> Any:
    if isinstance(raw, Mapping):
        keys = set(raw)
        for on, names in _SELECTORS:
            if keys and keys <= set(names) and on != field:
                return Branches(on, {k: _entry(field, v, f"{where}.{k}", problems) for k, v in raw.items()})
        if "choices" in keys:
            return _choice(field, raw, where, problems)
        if keys & {"low", "high"}:
            return _range(field, raw, where, problems)
        problems.append(
            f"{where}: {dict(raw)!r} is not a value; write one, or {{choices: [...]}}, or {{low: .., high: ..}}"
        )
        return DEFAULTS[field]
    return raw if _try(field, raw, where, problems) else DEFAULTS[field]


def _choice(field: str, raw: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    values = raw["choices"]
    problems += [unknown(f"{where}.{k}", str(k), ["choices"]) for k in raw if k != "choices"]
    if not isinstance(values, list) or not values:
        problems.append(f"{where}.choices: {values!r} must be a list with at least one value")
        return DEFAULTS[field]
    valid = [v for i, v in enumerate(values) if _try(field, v, f"{where}.choices[{i}]", problems)]
    if len(set(map(repr, values))) < len(values):
        problems.append(f"{where}.choices: {values!r} holds a value twice")
    return Choice(tuple(valid)) if len(valid) > 1 else valid[0] if valid else DEFAULTS[field]


def _range(field: str, raw: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    before = len(problems)
    problems += [
        unknown(f"{where}.{k}", str(k), ["low", "high", "log", "step"])
        for k in raw
        if k not in ("low", "high", "log", "step")
    ]
    for end in ("low", "high"):
        value = raw.get(end)
        if isinstance(value, bool) or not isinstance(value, int | float):
            problems.append(f"{where}.{end}: {value!r} must be a number")
        else:
            _try(field, value, f"{where}.{end}", problems)
    if len(problems) > before:
        return DEFAULTS[field]
    low, high, log, step = raw["low"], raw["high"], bool(raw.get("log", False)), raw.get("step")
    if low >= high:
        problems.append(f"{where}: low {low:g} must be below high {high:g}")
    if log and (low <= 0 or step):
        problems.append(f"{where}.log: a logarithmic range needs low > 0 and no step")
    if step is not None and (not isinstance(step, int | float) or not 0 < step <= high - low):
        problems.append(f"{where}.step: {step!r} must be positive and fit between low and high")
    return Range(low, high, log, step, whole=isinstance(DEFAULTS[field], int))


def _try(field: str, value: Any, where: str, problems: list[str]) -> bool:
    """Whether the value is one for this field, by building a Recipe with it; its own message says what is wrong."""
    kind = type(DEFAULTS[field])
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        names = {int: "a whole number", float: "a number", str: "a word"}
        problems.append(f"{where}: {value!r} must be {names[kind]}")
    elif field == "trainer" and value not in TRAINERS:
        problems.append(f"{where}: {value!r} is not valid; choose from {', '.join(TRAINERS)}")
    else:
        try:
            Recipe.from_dict(nest({**DEFAULTS, "model": "any", field: value}))
            return True
        except RecipeError as error:
            problems.append(f"{where}: {str(error).split(': ', 1)[-1]}")
    return False


def _impossible(space: Space, where: str) -> Iterator[str]:
    """Values that some trainer of the study cannot carry out (with several trainers: that none can)."""
    trainers = space.trainers()
    for field in (*CAPABILITY, "model"):
        valid = {trainer: space.able(field, trainer) for trainer in trainers}
        for value in space.possible(field):
            if value != "" and not any(names is None or value in names for names in valid.values()):
                every = dict.fromkeys(name for names in valid.values() for name in names or ())
                rule = f"choose from {', '.join(map(str, every))}" if every else "the task has no model for it"
                yield f"{where}.{field}: the {'/'.join(trainers)} trainer has no {value!r}; {rule}"
    for teacher in space.teachers():
        trainer, _, model = str(teacher).rpartition("/")
        names = space.able("model", trainer) if trainer in TRAINERS else ()
        if teacher != "baseline" and names is not None and model not in names:
            others = [f"{t}/{name}" for t in TRAINERS for name in space.able("model", t) or ()]
            valid_names = ", ".join(["baseline", *others])
            yield f"{where}.distillation.teacher: {teacher!r} is not valid; choose from {valid_names}"
