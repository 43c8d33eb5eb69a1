"""What a user's own file says beside model and data: loss, metric, and optional functions; each found by its name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tasks import scorers
from tasks.address import Address, nearest, read
from tasks.base import Metric, TaskError, TaskSpec
from tasks.user_code import fetch, guarded, literal

OPTIONAL = (
    "loss",
    "metric",
    "distill",
    "keep",
    "preprocess",
    "postprocess",
    "augment",
    "optimizer",
    "METRICS",
    "MODELS",
    "PREPROCESS",
    "TRAINED",
    "CLASSES",
)
TARGET_NAMES = ("target", "targets", "label", "labels", "y", "y_true")


@dataclass(frozen=True)
class Parts:
    """The user's functions; None where there is none. `folder`: of their file, for their lines in messages."""

    folder: Path | None = None
    loss: Any = None
    metric: Any = None
    distill: Any = None
    keep: Any = None
    preprocess: Any = None
    postprocess: Any = None
    augment: Any = None
    optimizer: Any = None
    image: Mapping[str, Any] | None = None
    trained: bool | None = None
    classes: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)  # part -> `FILE.py:NAME`

    def called(self, part: str, *args: Any) -> Any:
        """The user's function; what it raises names their file and line."""
        with guarded(_STEPS.get(part, part), f"{part}()", self.folder):
            return getattr(self, part)(*args)


_STEPS = {
    "optimizer": "model",
    "augment": "data",
    "preprocess": "data",
    "keep": "model",
    "distill": "loss",
    "postprocess": "metric",
}


def parts_of(spec: TaskSpec) -> Parts:
    """The parts that the study's addresses and, for `name: FILE.py`, the file itself name."""
    file = read("name", spec.name) if spec.name else None
    found: dict[str, Any] = {}
    if file is not None and file.kind == "file":
        found = _in_file(spec, file)
    for part in ("loss", "metric", "optimizer"):
        text = getattr(spec, part)
        address = read(part, text) if text else None
        if address is not None and address.is_code:
            found[part], found["folder"] = fetch(spec, part, address)
            found.setdefault("names", {})[part] = text
    metrics = _metrics(spec, found.pop("METRICS", None), found.get("metric"))
    return Parts(metrics=metrics, **found)


def _in_file(spec: TaskSpec, file: Address) -> dict[str, Any]:
    from tasks.user_code import load

    path = file.path(spec)
    module = load(path)
    there = {name: getattr(module, name) for name in OPTIONAL if hasattr(module, name)}
    there.pop("MODELS", None)
    if not callable(there.get("optimizer", print)):
        del there["optimizer"]  # one that their own script trains with
    image, trained = there.pop("PREPROCESS", None), there.pop("TRAINED", None)
    classes = tuple(map(str, there.pop("CLASSES", ())))
    names = {name: f"{path.name}:{name}" for name in there}
    return {**there, "classes": classes, "folder": path.parent, "image": image, "trained": trained, "names": names}


def _metrics(spec: TaskSpec, declared: Any, metric: Any) -> tuple[Metric, ...]:
    """What the task's metrics are called and which way they go: METRICS, known names, else `metric`."""
    if declared is not None:
        made = declared_metrics(declared)
        chosen = spec.metric if not read("metric", spec.metric or "metric").is_code else ""
        if chosen and chosen not in [each.name for each in made] and metric is None:
            return scorers.metrics_named(chosen)
        if chosen and chosen not in [each.name for each in made]:
            raise TaskError(f"task.metric: {chosen!r}{nearest(chosen, [m.name for m in made])} of METRICS", "metric")
        return tuple(sorted(made, key=lambda each: each.name != chosen))
    if metric is None:
        names = [name.strip() for name in spec.metric.split(",") if name.strip()]
        # A name that is none of ours may be what a LightningModule logs: its adapter knows.
        return scorers.metrics_named(spec.metric) if all(name in scorers.METRICS for name in names) else ()
    name = spec.metric if spec.metric and not read("metric", spec.metric).is_code else getattr(metric, "__name__", "")
    name = name if name.isidentifier() and name != "<lambda>" else "metric"
    known = scorers.METRICS.get(name)
    return (named(name, spec.direction or (known.direction if known else "maximize")),)


def declared_metrics(declared: Any) -> tuple[Metric, ...]:
    """METRICS of a user's file: a list of Metric, or name -> direction."""
    try:
        if isinstance(declared, Mapping):
            return tuple(v if isinstance(v, Metric) else named(str(name), v) for name, v in declared.items())
        if isinstance(declared, Sequence) and declared and all(isinstance(each, Metric) for each in declared):
            return tuple(declared)
    except ValueError as error:
        raise TaskError(f"METRICS: {error}", "metric") from None
    raise TaskError('METRICS: write a mapping such as {"miou": "maximize", "mae": "minimize"}', "metric")


def named(name: str, direction: Any) -> Metric:
    """A metric of the user's; one of a known name is shown as that is."""
    known = scorers.METRICS.get(name)
    return replace(known, direction=direction) if known is not None else Metric(name, direction, digits=4)


def static_metrics(spec: TaskSpec, file: Path | None) -> tuple[Metric, ...] | None:
    """The task's metrics as far as they can be read without running the file; None where they are computed."""
    if file is None:
        names = [name.strip() for name in spec.metric.split(",")]
        return scorers.metrics_named(spec.metric) if all(name in scorers.METRICS for name in names) else None
    declared = literal(file, "METRICS")
    from tasks.user_code import defined

    there = defined(file)
    if "METRICS" in there and declared is None:
        return None
    code = bool(spec.metric) and read("metric", spec.metric).is_code
    metric = _Named(read("metric", spec.metric).name if code else "metric") if code or "metric" in there else None
    found = _metrics(spec, declared, metric)
    return found or None


@dataclass(frozen=True)
class _Named:
    """Stands for a function that is not imported: its name is all that is known."""

    __name__: str


def takes_targets(function: Any) -> bool:
    """Whether a loss takes the targets alone, as torch's losses do, instead of the whole batch."""
    try:
        names = list(inspect.signature(getattr(function, "forward", function)).parameters)
    except (TypeError, ValueError):
        return False
    return len(names) > 1 and names[1] in TARGET_NAMES
