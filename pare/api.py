"""The Python side of the command line: the same words, the same checks, tables instead of text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def run(study: str, *, config_dir: str | Path | None = None, **overrides: Any) -> pd.DataFrame:
    """Search a study until its budget is spent, or resume where it stopped; returns its front, as `front` does.

    `config_dir`: a folder of your own with `study/NAME.yaml`. `overrides`: any setting of `python -m search.run --help`
    by its dotted name, such as `**{"study.budget.trials": 20}`. Raises ConfigError with every mistake in them.
    """
    from search.command import writable
    from search.run import EXPERIMENTS, carry_out
    from search.study import compose

    words = [f"study={study}", *(f"{key}={_word(value)}" for key, value in overrides.items())]
    if config_dir is not None:
        words.append(f"--config-dir={Path(config_dir).expanduser().absolute()}")
    config = compose.composed(words, EXPERIMENTS)
    config = config.model_copy(update={"root": writable(config.root)})
    sweep, _ = carry_out(config)
    return front(study, root=config.root, sweep=sweep)


def front(study: str, *, root: str | Path = "mlruns", sweep: str | None = None) -> pd.DataFrame:
    """One row per member of the study's Pareto front, the best in the first objective first.

    Columns: the recipe's fields, the metrics with `NAME_low` and `NAME_high` (95 % intervals) where they were
    confirmed, `number`, `words`, `knee`. `sweep`: one of the study's sweeps, the newest by default. Raises
    TrackingError when nothing is recorded.
    """
    from search.front import summary

    return summary.read(Path(root), study, sweep).front.reset_index(drop=True)


def pick(
    study: str,
    *limits: str,
    by: str = "",
    trial: int | None = None,
    out: str | Path = "",
    root: str | Path = "mlruns",
    register: bool = False,
) -> Path:
    """Copy a point of the front into a folder, with its recipe and a model card; returns the folder.

    `limits`: bounds such as `accuracy_drop<=0.005`; of what meets them the best in metric `by`, else the knee. `trial`:
    this one instead. `register`: also as `models:/STUDY@picked` in MLflow. Raises UsageError for a point that does not
    exist.
    """
    from search import pick as door

    place = Path(out) if out else Path(root) / "picked" / study
    said: Mapping[str, Any] = {"study": study, "by": by, "trial": "" if trial is None else trial, "out": place}
    words = [*limits, *(f"{key}={value}" for key, value in said.items() if str(value))]
    words += [f"root={root}", f"register={'yes' if register else 'no'}"]
    door.pick(door.arguments(words))
    return place


def _word(value: Any) -> str:
    """A value as the command line writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_word, value))}]"
    return "null" if value is None else str(value)
