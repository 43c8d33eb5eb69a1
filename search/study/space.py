"""A study's recipe, some of whose values are open, becomes an Optuna search space and each trial a Recipe.

A value is open when the study writes `{choices: [...]}` or `{low: .., high: ..}` in its place. Settings that have
no effect under the values sampled so far (a temperature without soft distillation) are not sampled at all, so the
sampler never learns from noise. A range may also be given per granularity or per trainer:
`sparsity: {unstructured: {low: 0.6, high: 0.95}, channel: {low: 0.3, high: 0.8}}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainers.base import capabilities
from trainers.recipe import PLACED, Recipe, flatten

if TYPE_CHECKING:
    from optuna.trial import Trial

# What the trainers' capabilities say is valid, by the field they say it of.
CAPABILITY = {
    "pruning.granularity": "granularities",
    "quantization.scheme": "schemes",
    "quantization.clusters": "clusters",
    "pruning.score": "scores",
    "pruning.allocation": "allocations",
    "pruning.importance": "importances",
    "pruning.recovery": "recoveries",
}

Values = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """One of `values`."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included; `whole`: integers only."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False


@dataclass(frozen=True)
class Branches:
    """Alternatives selected by the value of another field, `on`."""

    on: str
    cases: dict[str, Choice | Range | Any]


class SpaceError(ValueError):
    """A recipe section that is not a search space; `problems` holds every mistake in it."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


# Sampled in this order: what decides whether others have an effect comes first.
_FIRST = ("trainer", "model", "pruning.granularity", "pruning.density")
_ALL: Values = {"trainer": "pytorch", **Recipe(model="").flat()}
DEFAULTS: Values = {name: _ALL[name] for name in (*_FIRST, *(name for name in _ALL if name not in _FIRST))}


def _trains(v: Values) -> bool:
    return bool(v["pruning.granularity"] != "none" or v["distillation.kind"] != "none")


def _qat(v: Values) -> bool:
    return str(v["quantization.scheme"]).startswith(("qat_", "weights_"))


def _unstructured(v: Values) -> bool:
    return bool(v["pruning.granularity"] == "unstructured")


def _channel(v: Values) -> bool:
    return bool(v["pruning.granularity"] == "channel")


# A field that is absent here always has an effect.
ACTIVE: dict[str, Callable[[Values], bool]] = {
    "pruning.density": _unstructured,
    "pruning.sparsity": lambda v: v["pruning.granularity"] not in ("none", "n_m") and not v["pruning.density"],
    "pruning.score": _unstructured,
    "pruning.group": _unstructured,
    "pruning.channels": _unstructured,
    "pruning.schedule": lambda v: v["pruning.granularity"] != "none",
    "pruning.allocation": _channel,
    "pruning.importance": _channel,
    "pruning.recovery": lambda v: _channel(v) and v["pruning.schedule"] == "one_shot",
    "quantization.bits": lambda v: v["quantization.scheme"] == "weights_mixed",
    "quantization.max_drop": lambda v: v["quantization.scheme"] in PLACED,
    "distillation.temperature": lambda v: v["distillation.kind"] == "soft",
    "distillation.alpha": lambda v: v["distillation.kind"] != "none",
    "distillation.teacher": lambda v: v["distillation.kind"] != "none",
    "finetuning.epochs": _trains,
    "finetuning.qat_epochs": _qat,
    "finetuning.qat_learning_rate": _qat,
    "finetuning.start": _trains,
    "finetuning.augment": lambda v: _trains(v) or _qat(v) or bool(v["quantization.clusters"]),
    "finetuning.learning_rate": lambda v: _trains(v) or _qat(v) or bool(v["quantization.clusters"]),
    "finetuning.batch_size": lambda v: _trains(v) or _qat(v) or bool(v["quantization.clusters"]),
}


@dataclass(frozen=True)
class Space:
    """What is fixed and what is open, by dotted recipe field.

    `known_models`: trainer -> the task's models that it can compress; None where only a worker can tell.
    """

    entries: dict[str, Any]
    known_models: Mapping[str, tuple[str, ...]] | None = None

    def suggest(self, trial: Trial) -> Recipe:
        """Sample every open field that has an effect and return the trial's recipe, canonical."""
        return self.made(lambda name, entry: _ask(trial, name, entry))

    def reference(self, partial: Mapping[str, Any]) -> dict[str, Any]:
        """A named point of the space -> params to enqueue; fields it leaves open are left to the sampler.

        Switches (granularity, scheme, kind, clusters) it does not mention are off. Raises SpaceError when it lies
        outside the space.
        """
        explicit = {name: value for name, value in flatten(partial).items() if value != {}}
        wanted: Values = {"pruning.granularity": "none", "quantization.scheme": "none", "distillation.kind": "none"}
        wanted |= {"quantization.clusters": 0, **explicit}
        params: dict[str, Any] = {}
        problems = [
            f"{n}: no such recipe field; choose from {', '.join(DEFAULTS)}" for n in wanted if n not in DEFAULTS
        ]

        def pick(name: str, entry: Choice | Range) -> Any:
            field = name.split("@")[0]
            if field in wanted:
                if not _contains(entry, wanted[field]):
                    problems.append(f"{field}: {wanted[field]!r} is outside the study's {_say(entry)}")
                params[name] = wanted[field]
                return wanted[field]
            return entry.values[0] if isinstance(entry, Choice) else entry.low

        recipe = self.made(pick).flat()
        problems += [
            f"{name}: the study fixes it at {recipe[name]!r}, not {value!r}"
            for name, value in explicit.items()
            if name in recipe
            and name not in {p.split("@")[0] for p in params}
            and value not in (recipe[name], self.entries.get(name))
        ]
        if problems:
            raise SpaceError(problems)
        return params

    def params_of(self, recipe: Recipe) -> dict[str, Any]:
        """What `suggest` asks for a trial of that recipe, by parameter; SpaceError where the recipe lies outside."""
        wanted, params, problems = recipe.canonical().flat(), dict[str, Any](), list[str]()

        def pick(name: str, entry: Choice | Range) -> Any:
            field = name.split("@")[0]
            if not _contains(entry, wanted[field]):
                problems.append(f"{field} is {wanted[field]!r} there, outside {_say(entry)}")
            params[name] = wanted[field]
            return wanted[field]

        try:
            made = self.made(pick).flat()
        except ValueError as error:
            raise SpaceError(problems or [str(error)]) from None
        asked = {name.split("@")[0] for name in params}
        for name, value in made.items():
            if name not in asked and value != wanted[name]:
                problems.append(f"{name} is {wanted[name]!r} there, the study fixes it at {value!r}")
        if problems:
            raise SpaceError(problems)
        return params

    def asked(self, params: Mapping[str, Any]) -> dict[str, Choice | Range]:
        """What each of a trial's parameters could have been."""
        found: dict[str, Choice | Range] = {}

        def pick(name: str, entry: Choice | Range) -> Any:
            found[name] = entry
            return params[name]

        self.made(pick)
        return found

    def parameters(self, field: str) -> dict[str, Choice | Range]:
        """All that may be asked for a field, by parameter; {} where the study fixes it."""
        found: dict[str, Choice | Range] = {}

        def add(name: str, entry: Any) -> None:
            if isinstance(entry, Branches):
                for case, below in entry.cases.items():
                    add(f"{field}@{case}", below)
            elif isinstance(entry, Choice | Range):
                offers = [self._offered(name, field, entry, trainer) for trainer in self.trainers()]
                found.update({own: offer for own, offer in offers if isinstance(offer, Choice | Range)})

        add(field, self.entries[field])
        return found

    def preferring(self, values: Mapping[str, Sequence[Any]], pick: Callable[[Sequence[Any]], Any]) -> dict[str, Any]:
        """Parameters of a trial that takes one of the `values` of each field, as `pick` says; the others are open."""
        params: dict[str, Any] = {}
        for field, wanted in values.items():
            for name, entry in self.parameters(field).items():
                if valid := [value for value in wanted if _contains(entry, value)]:
                    params[name] = pick(valid)
        return params

    def unpreferred(self, field: str, value: Any) -> str:
        """Why no trial can take the value, in words; "" where some can."""
        entries = self.parameters(field)
        if not entries:
            return f"the study fixes it at {self.entries[field]!r}; leave it out, or open it in study.recipe"
        if any(_contains(entry, value) for entry in entries.values()):
            return ""
        return f"{value!r} is outside the study's {' and '.join(dict.fromkeys(map(_say, entries.values())))}"

    def able(self, field: str, trainer: str) -> tuple[Any, ...] | None:
        """Values of the field that the trainer can carry out; None where it does not limit them."""
        if field == "model":
            return None if self.known_models is None else tuple(self.known_models.get(trainer, ()))
        return getattr(capabilities(trainer), CAPABILITY[field]) if field in CAPABILITY else None

    def trainers(self) -> tuple[str, ...]:
        """Trainers that trials may use."""
        return self.possible("trainer")

    def models(self) -> tuple[str, ...]:
        """Models that trials may start from."""
        return self.possible("model")

    def teachers(self) -> tuple[str, ...]:
        """Teachers that trials may learn from, `baseline` among them."""
        return self.possible("distillation.teacher")

    def possible(self, field: str) -> tuple[Any, ...]:
        """Every value of a field that trials may have; a range stands for itself."""
        entry = self.entries[field]
        cases = entry.cases.values() if isinstance(entry, Branches) else [entry]
        found = [v for case in cases for v in (case.values if isinstance(case, Choice) else (case,))]
        return tuple(dict.fromkeys(found))

    def made(self, pick: Callable[[str, Any], Any]) -> Recipe:
        """The canonical recipe whose open fields are `pick(parameter, Choice or Range)`, asked in order."""
        values = dict(DEFAULTS)
        for field in DEFAULTS:
            if not ACTIVE.get(field, lambda v: True)(values):
                continue
            name, entry = field, self.entries[field]
            while isinstance(entry, Branches):
                name, entry = f"{name}@{values[entry.on]}", entry.cases.get(values[entry.on], DEFAULTS[field])
            name, entry = self._offered(name, field, entry, values["trainer"])
            values[field] = pick(name, entry) if isinstance(entry, Choice | Range) else entry
        return Recipe.from_dict(nest(values)).canonical()

    def _offered(self, name: str, field: str, entry: Any, trainer: str) -> tuple[str, Any]:
        """With several trainers in one study each chooses among what it can do, as a parameter of its own."""
        valid = self.able(field, trainer)
        if valid is None or not isinstance(entry, Choice) or len(self.trainers()) == 1:
            return name, entry
        kept = tuple(value for value in entry.values if value in valid)
        return f"{name}@{trainer}", kept[0] if len(kept) == 1 else Choice(kept)


def _ask(trial: Trial, name: str, entry: Choice | Range) -> Any:
    if isinstance(entry, Choice):
        return trial.suggest_categorical(name, entry.values)
    if entry.whole:
        return trial.suggest_int(name, int(entry.low), int(entry.high), step=int(entry.step or 1), log=entry.log)
    return trial.suggest_float(name, entry.low, entry.high, step=entry.step, log=entry.log)


def _contains(entry: Choice | Range, value: Any) -> bool:
    if isinstance(entry, Choice):
        return value in entry.values
    if not isinstance(value, int | float) or isinstance(value, bool) or not entry.low <= value <= entry.high:
        return False
    step = entry.step or (1 if entry.whole else 0)
    return not step or abs((value - entry.low) / step - round((value - entry.low) / step)) < 1e-6


def _say(entry: Choice | Range) -> str:
    if isinstance(entry, Choice):
        return f"choices {', '.join(map(str, entry.values))}"
    return f"range {entry.low:g} to {entry.high:g}"


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"pruning.sparsity": 0.9}` -> `{"pruning": {"sparsity": 0.9}}`."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        here = nested
        for parent in parents:
            here = here.setdefault(parent, {})
        here[leaf] = value
    return nested
