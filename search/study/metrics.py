"""Every figure of a study by name: the task's own metrics, what is derived from them, latency and size.

A `Metrics` is made of what the task defines (`tasks.base.Metric`) and passed on to whoever shows or compares figures;
it is recorded with each sweep, so that sweeps of different tasks are read side by side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from functools import cached_property

from search.errors import SettingsError
from search.study.constraint import Constraint
from tasks.base import ACCURACY, Metric, TaskInfo, TaskSpec
from tasks.load import metrics_of

KEY = "pare.metrics"  # tag of a sweep's run in MLflow, attribute of its Optuna study


@dataclass(frozen=True)
class Quantity:
    """How a figure is read: `title` for people, `unit` ("" for none), `direction` as an objective, `scale` to show it.

    `phrase`: the title within a sentence.
    """

    title: str
    unit: str
    direction: str
    scale: float = 1.0
    digits: int = 2

    def text(self, value: float) -> str:
        """The value as people read it: `99.12 %`."""
        return f"{value * self.scale:,.{self.digits}f}{' ' * bool(self.unit)}{self.unit}"

    @property
    def axis(self) -> str:
        """Title and unit, as an axis shows them."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def phrase(self) -> str:
        """The title within a sentence: `validation accuracy`, `RMSE increase`."""
        return lowered(self.title)


# Measured of every task's files. A figure that is measured from now on gets a line here: it can then be an objective,
# a constraint and a column.
_MEASURED = {
    "latency_ms": Quantity("Latency", "ms", "minimize", 1, 4),
    "latency_ratio": Quantity("Latency, share of the dense model's", "%", "minimize", 100, 0),
    "size_bytes": Quantity("Compressed size", "kB", "minimize", 1e-3, 1),
    "size_ratio": Quantity("Size, share of the dense model's", "%", "minimize", 100, 1),
    "compression_ratio": Quantity("Times smaller", "×", "maximize", 1, 1),
    "download_bytes": Quantity("Download size", "kB", "minimize", 1e-3, 2),
    "unpacked_bytes": Quantity("Unpacked size", "kB", "minimize", 1e-3, 1),
    "float32_ratio": Quantity("Times smaller than the dense model's float32 weights", "×", "maximize", 1, 0),
    "nonzeros": Quantity("Nonzero weights", "", "minimize", 1, 0),
    "sparsity": Quantity("Sparsity", "%", "maximize", 100, 1),
    "export_agreement": Quantity("Agreement of the file with the trained model", "%", "maximize", 100, 2),
}
# Packing takes a second or so: only for a study that asks for one of these, as objective or constraint.
PACKED = ("download_bytes", "float32_ratio")
# Other columns of a sweep's table, and further figures of a trial: a task's metric may not be called like one of them.
_TAKEN = {
    *("run_id", "start_ms", "end_ms", "number", "state", "words", "reason", "feasible", "on_front", "knee"),
    "not_faster",
    *("reference", "duplicate_of", "confirmed", "data_digest", "git_commit", "model", "trainer", "seed", "hypervolume"),
    *("pruned", "latency_p50_ms", "latency_p95_ms", "latency_iqr_ms", "throughput"),
}


@dataclass(frozen=True)
class Metrics:
    """The figures of a study. `task`: what the task itself defines, the first is its own objective.

    Raises ValueError when a name is taken or there is none.
    """

    task: tuple[Metric, ...] = (ACCURACY,)

    def __post_init__(self) -> None:
        if not self.task:
            raise ValueError("metric: the task has none; give it at least one")
        known = [name for name, _ in self._quantities]
        for metric in self.task:
            derived = [metric.name, f"{metric.name}_drop", f"test_{metric.name}", f"test_{metric.name}_drop"]
            if metric.name.endswith(("_low", "_high")):
                raise ValueError(f"metric: {metric.name!r} ends like the end of an interval; choose another name")
            if taken := [name for name in derived if name in _MEASURED or name in _TAKEN or known.count(name) > 1]:
                raise ValueError(
                    f"metric {metric.name}: {taken[0]!r} means something else already; choose another name"
                )

    @staticmethod
    def of(spec: TaskSpec) -> Metrics | None:
        """Of a task that a study names, where that alone says its metrics; None where only a worker can tell."""
        known = metrics_of(spec)
        return None if known is None else Metrics(known)

    @staticmethod
    def from_info(info: TaskInfo) -> Metrics:
        """Of a task that a worker has described; raises SettingsError for a name that cannot be used."""
        try:
            return Metrics(info.metrics)
        except ValueError as error:
            raise SettingsError(f"task {info.name}: {error}") from None

    @property
    def quality(self) -> tuple[str, ...]:
        """Names of the task's own metrics."""
        return tuple(metric.name for metric in self.task)

    @property
    def first(self) -> str:
        """Name of the task's own objective."""
        return self.task[0].name

    @property
    def test(self) -> tuple[str, ...]:
        """The same on the test split: shown, but never searched, since it is read once, for the confirmed front."""
        return tuple(f"test_{name}" for name in self.quality)

    def names(self) -> list[str]:
        """What an objective, a constraint or a choice may name."""
        return [*(name for own in self.quality for name in (own, f"{own}_drop")), *_MEASURED]

    def shown(self) -> list[str]:
        """What a card tells of one model: first the test split's."""
        return [*(name for own in self.test for name in (own, f"{own}_drop")), *self.names()]

    def __getitem__(self, name: str) -> Quantity:
        """How the named figure is read, also as `search/NAME`, `file/NAME`; an unknown one as it is, and minimized."""
        name = name.removeprefix("search/").removeprefix("file/")
        found = _MEASURED.get(name) or self._by_name.get(name)
        return found or Quantity(name.replace("_", " ").capitalize(), "", "minimize", 1, 4)

    def short(self, name: str) -> str:
        """Its title as the head of a column: of a figure on the validation split, the usual one, without saying so."""
        return self._titles.get(name) or self[name].title

    def directions(self, names: Iterable[str]) -> list[str]:
        """minimize or maximize, of each."""
        return [self[name].direction for name in names]

    def directions_by_name(self) -> dict[str, str]:
        """What decides how sweeps compare: the direction of each of the task's metrics."""
        return {metric.name: metric.direction for metric in self.task}

    def minimized(self, name: str) -> bool:
        """Whether less of it is better."""
        return self[name].direction == "minimize"

    def drops(self, values: Mapping[str, float], dense: Mapping[str, float], prefix: str = "") -> dict[str, float]:
        """`NAME_drop` of each of the task's metrics: the loss of quality against the dense model, below 0 a gain."""
        return {
            f"{prefix}{metric.name}_drop": (values[metric.name] - dense[metric.name])
            * (1.0 if metric.direction == "minimize" else -1.0)
            for metric in self.task
        }

    def steps(self, validation: int, test: int) -> dict[str, float]:
        """The step in which a fraction over so many samples is counted, by name, for what is such a fraction."""
        found = {"export_agreement": 1 / validation}
        for metric in self.task:
            if metric.fraction:
                for name in (metric.name, f"{metric.name}_drop"):
                    found |= {name: 1 / validation, f"test_{name}": 1 / test}
        return found

    def unusable(self, values: Mapping[str, float], names: Iterable[str]) -> str:
        """Why these figures cannot be searched by, in words: one that is missing or not finite; "" if they can."""
        for name in names:
            if name not in values:
                return f"{name}: not measured; there are {', '.join(values) or 'no figures'}"
            if not math.isfinite(values[name]):
                return f"{name}: is {values[name]:g}; the model's outputs or the task's metric are not finite"
        return ""

    def problems(self, objectives: Sequence[str], constraints: Sequence[str]) -> list[str]:
        """Every name in a study's objectives and constraints that is none of `names`, each as one message."""
        found = [(f"study.objectives[{i}]", name) for i, name in enumerate(objectives)]
        for i, text in enumerate(constraints):
            try:
                found.append((f"study.constraints[{i}]", Constraint.parse(text).metric))
            except ValueError:
                continue  # `config.check` says what is wrong with it
        return [f"{where}: {self.unknown(name)}" for where, name in found if name not in self.names()]

    def unknown(self, name: str) -> str:
        """The message for a name that is no metric, with the nearest that is."""
        valid = self.names()
        near = get_close_matches(name, valid, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"{name!r} is not a metric{hint}; choose from {', '.join(valid)}"

    def to_json(self) -> str:
        """One line of JSON, to be kept with a sweep."""
        return json.dumps([asdict(metric) for metric in self.task], sort_keys=True)

    @staticmethod
    def from_json(text: str | None) -> Metrics:
        """What `to_json` wrote; of a sweep that was recorded without: accuracy."""
        if text is None:
            return Metrics()
        known = {field.name for field in fields(Metric)}
        return Metrics(tuple(Metric(**{k: v for k, v in each.items() if k in known}) for each in json.loads(text)))

    @cached_property
    def _by_name(self) -> dict[str, Quantity]:
        return dict(self._quantities)

    @cached_property
    def _titles(self) -> dict[str, str]:
        return {metric.name: metric.title or metric.name.replace("_", " ").capitalize() for metric in self.task}

    @property
    def _quantities(self) -> Iterator[tuple[str, Quantity]]:
        for metric in self.task:
            title = self._titles[metric.name]
            loss = f"{title} {'increase' if metric.direction == 'minimize' else 'drop'}"
            of_loss = ("points" if metric.unit == "%" else metric.unit, "minimize", metric.scale, metric.digits)
            of_value = (metric.unit, metric.direction, metric.scale, metric.digits)
            yield metric.name, Quantity(f"Validation {lowered(title)}", *of_value)
            yield f"{metric.name}_drop", Quantity(loss, *of_loss)
            yield f"test_{metric.name}", Quantity(f"Test {lowered(title)}", *of_value)
            yield f"test_{metric.name}_drop", Quantity(f"Test {lowered(loss)}", *of_loss)


def lowered(title: str) -> str:
    """With a small first letter, unless the first word is an abbreviation such as RMSE, mIoU or F1."""
    inside = title.partition(" ")[0][1:]
    return title if any(c.isupper() or c.isdigit() for c in inside) else title[:1].lower() + title[1:]
