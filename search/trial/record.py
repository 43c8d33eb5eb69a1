"""What is known of a finished trial and of a sweep, as plain data: kept in Optuna, logged to MLflow, reported."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.recipe import flatten

if TYPE_CHECKING:  # it takes half a second, in every worker
    import pandas as pd

# Before names of metrics: what a short schedule gave, and what was known or expected without the full one.
SHORT, EXPECTED = "short/", "expected/"
STATES = ("complete", "stopped", "failed")
STATUSES = ("finished", "interrupted", "failed")


# Quantization scheme -> colour: Okabe & Ito's, told apart by colour-blind eyes.
COLOURS = {
    "none": "#3b3b3b",
    "float16": "#e69f00",
    "dynamic_int8": "#56b4e9",
    "static_int8": "#0072b2",
    "qat_int8": "#009e73",
    "qat_int4": "#d55e00",
}
_OTHER = "#cc79a7"


def colour(scheme: str, faint: bool = False) -> str:
    """The colour of a quantization scheme as `#rrggbb`; `faint`: three quarters of the way to white."""
    shade = COLOURS.get(scheme, _OTHER)
    if not faint:
        return shade
    return "#" + "".join(f"{(int(shade[i : i + 2], 16) + 3 * 255) // 4:02x}" for i in (1, 3, 5))


@dataclass(frozen=True)
class TrialRecord:
    """One finished trial of a sweep. `stopped`: by what was known or expected of it, before its full training.

    `recipe`: nested, as Recipe.to_dict gives it; `params`: its dotted fields; `words`: the recipe as people say it.
    `metrics`: name -> measured value, in base units; `NAME_low` and `NAME_high` are the ends of a metric's interval; of
    a stopped one `expected/NAME`; of a short schedule `short/NAME`. `violations`: constraint -> amount, kept at <= 0.
    `stages`: seconds each.
    `system`: what it took of the machine, as `meter.metered` gives it. `curves`: one dict per epoch, in order.
    `artifact`: path of the exported file.
    `reference`: name of the reference recipe, if it is one.
    `duplicate_of`: number of the trial whose result this one shares. `start_ms`, `end_ms`: since the epoch.
    """

    number: int
    state: str
    start_ms: int
    end_ms: int
    words: str = ""
    reason: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    feasible: bool = True
    violations: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    system: dict[str, float] = field(default_factory=dict)
    curves: list[dict[str, float]] = field(default_factory=list)
    artifact: str | None = None
    reference: str | None = None
    duplicate_of: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str = ""
    data_digest: str = ""
    environment: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"record.state: {self.state!r} is not valid; choose from {', '.join(STATES)}")
        if self.state != "complete" and not self.reason:
            raise ValueError(f"record.reason: a {self.state} trial needs the reason, in words")
        if self.end_ms < self.start_ms:
            raise ValueError(f"record.end_ms: {self.end_ms} lies before start_ms, {self.start_ms}")

    def figures(self) -> list[tuple[str, float, int]]:
        """(name, value, step) of everything measured, finite values only: metrics, `seconds/STAGE`, `system/NAME`,
        `violation/CONSTRAINT` at step 0, `epoch/NAME` at the number of the epoch.
        """
        named = dict(self.metrics)
        named |= {f"seconds/{stage}": seconds for stage, seconds in self.stages.items()}
        named |= {f"system/{name}": value for name, value in self.system.items()}
        named |= {f"violation/{spelt(limit)}": amount for limit, amount in self.violations.items()}
        steps = [(f"epoch/{name}", value, i) for i, one in enumerate(self.curves) for name, value in one.items()]
        every = [(name, value, 0) for name, value in named.items()] + steps
        return [(name, float(value), step) for name, value, step in every if math.isfinite(value)]

    @property
    def title(self) -> str:
        """What its run is called: the recipe in words, the reference's name, and what is wrong with it."""
        name = f"{self.words or f'trial {self.number}'}{f' ({self.reference})' if self.reference else ''}"
        wrong = self.state if self.state != "complete" else "" if self.feasible else "infeasible"
        return name + (f" [{wrong}]" if wrong else "") + (" [not faster]" if self.not_faster else "")

    @property
    def not_faster(self) -> str:
        """How much slower than the dense file, and by which operators; "" where it is not."""
        return str(self.environment.get("not_faster", ""))

    def tags(self) -> dict[str, str]:
        """What is said of the trial besides params and figures, each as a short text; `read_row` reads it back."""
        said = {
            "pare.state": self.state,
            "pare.words": self.words,
            "pare.feasible": str(self.feasible and self.state == "complete").lower(),
            "pare.reference": self.reference or "",
            "pare.reason": self.reason or "",
            "pare.not_faster": self.not_faster,
            "pare.duplicate_of": "" if self.duplicate_of is None else str(self.duplicate_of),
            "pare.data_digest": self.data_digest,
            "mlflow.source.git.commit": self.git_commit,
        }
        said |= {f"version.{name}": version for name, version in self.versions.items()}
        said |= {f"environment.{key}": str(value) for key, value in flatten(self.environment).items()}
        return {key: value[:8000] for key, value in said.items() if value}  # what MLflow takes

    def to_json(self) -> str:
        """One line of JSON; `from_json` gives an equal record."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> TrialRecord:
        """The record that `to_json` wrote; raises ValueError for a text that is not one."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"record: not JSON ({error})") from None
        if not isinstance(values, Mapping):
            raise ValueError(f"record: a JSON object is needed, not {type(values).__name__}")
        known = [f.name for f in fields(TrialRecord)]
        if unknown := [key for key in values if key not in known]:
            raise ValueError(f"record.{unknown[0]}: no such field; choose from {', '.join(known)}")
        if missing := [name for name in ("number", "state", "start_ms", "end_ms") if name not in values]:
            raise ValueError(f"record.{missing[0]}: missing")
        return TrialRecord(**values)


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to. `status`: finished, interrupted or failed. `front`: one row per member, for reading.

    `metrics`: single figures. `hypervolume`: columns number, end_ms, hypervolume, one row per trial. `files`: report
    and pictures. `note`: Markdown, shown as the description of the sweep and of the experiment. `picture`: the front as
    a PNG, which MLflow's charts show as an image.
    """

    status: str
    front: pd.DataFrame
    hypervolume: pd.DataFrame
    metrics: Mapping[str, float] = field(default_factory=dict)
    files: Sequence[Path] = ()
    note: str = ""
    picture: Path | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"outcome.status: {self.status!r} is not valid; choose from {', '.join(STATUSES)}")


def spelt(limit: str) -> str:
    """`accuracy_drop <= 0.02` in the letters that MLflow allows in a name."""
    return re.sub(r"[^\w .:/-]", "_", limit.replace("<=", "at most").replace(">=", "at least"))


def read_row(
    title: str, tags: Mapping[str, str], metrics: Mapping[str, float], params: Mapping[str, str]
) -> dict[str, Any]:
    """A recorded trial as one row of a table: number, state, words, reason, feasible, not_faster, on_front,
    reference, duplicate_of (-1 for none), confirmed (front, dominated, copy of one, or nothing), data_digest,
    git_commit; before them metrics, params, `environment.*` and `version.*`.
    """
    row: dict[str, Any] = {
        "number": int(tags["pare.trial"]),
        "state": tags["pare.state"],
        "words": tags.get("pare.words", title),
        "reason": tags.get("pare.reason", ""),
        "not_faster": tags.get("pare.not_faster", ""),
        "feasible": tags.get("pare.feasible") == "true",
        "on_front": tags.get("pare.front") == "true",
        "reference": tags.get("pare.reference", ""),
        "duplicate_of": int(tags.get("pare.duplicate_of", -1)),
        "confirmed": tags.get("pare.confirmed", ""),
        "data_digest": tags.get("pare.data_digest", ""),
        "git_commit": tags.get("mlflow.source.git.commit", ""),
    }
    said = {key: value for key, value in tags.items() if key.startswith(("environment.", "version."))}
    return dict(params) | said | {key: value for key, value in metrics.items() if key != "on_front"} | row
