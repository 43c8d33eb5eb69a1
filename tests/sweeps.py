"""Sweeps as LeNet-5 gives them, written to a real MLflow database: data for the tests of tracking, report and UI."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlflow.tracking import MlflowClient

from search.study.metrics import Metrics
from search.tracking.tracking import Tracking
from search.tracking.uri import quiet
from search.trial.record import TrialRecord
from trainers.recipe import FineTuning, Pruning, Quantization, Recipe

START = 1_790_000_000_000


def record(number: int, **changes: object) -> TrialRecord:
    """The trial of that number: sparsity grows with it, every second is quantized, none is noisy."""
    sparsity = round(0.1 * (number % 9), 2)
    recipe = Recipe("lenet5", pruning=Pruning("channel" if sparsity else "none", sparsity), finetuning=FineTuning(2))
    if number % 2:
        recipe = replace(recipe, quantization=Quantization("qat_int8"))
    ratio = (1 - sparsity) * (0.6 if number % 2 else 1.0) * (1 + number / 1000)
    drop = 0.025 * sparsity**2 + (0.0004 if number % 2 else 0)
    size = (1 - sparsity) / (4 if number % 2 else 1)
    metrics = {
        "accuracy": 0.992 - drop,
        "accuracy_drop": drop,
        "latency_ms": 0.12 * ratio,
        "latency_ms_low": 0.12 * ratio * 0.98,
        "latency_ms_high": 0.12 * ratio * 1.02,
        "latency_ratio": ratio,
        "size_bytes": 1_600_000 * size,
        "size_ratio": size,
    }
    made = TrialRecord(
        number=number,
        state="complete",
        start_ms=START + 10_000 * number,
        end_ms=START + 10_000 * number + 9_000,
        words=recipe.describe(),
        recipe=recipe.to_dict(),
        params=recipe.flat(),
        metrics=metrics,
        feasible=drop <= 0.012,
        violations={"accuracy_drop <= 0.012": drop - 0.012},
        stages={"train": 5.5, "export": 0.8, "latency": 1.2},
        curves=[{"loss": 0.2, "accuracy": 0.97}, {"loss": 0.1, "accuracy": 0.98}],
        versions={"torch": "2.13.0"},
        git_commit="0123abc",
        data_digest="f68b3c2d",
        environment={"cpu": "a CPU", "threads": 1},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def failed(number: int, reason: str) -> TrialRecord:
    """A trial of that number that failed."""
    return record(number, state="failed", reason=reason, metrics={}, violations={}, feasible=False, curves=[])


@functools.cache
def _migrated() -> Path:
    """A database made once in this process: the migrations alone take seconds."""
    root = Path(tempfile.mkdtemp(prefix="pare-tests-"))
    with quiet():
        MlflowClient(f"sqlite:///{root}/mlflow.db").search_experiments()
    return root / "mlflow.db"


def store(root: Path) -> Path:
    """`root` with a migrated database in it."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(_migrated(), root / "mlflow.db")
    return root


def sweep(
    root: Path,
    study: str,
    records: Sequence[TrialRecord],
    objectives: Sequence[str] = ("accuracy", "latency_ms"),
    reference: Sequence[float] = (0.98, 0.132),
    metrics: Metrics | None = None,
    number: int = 1,
    settings: Mapping[str, object] | None = None,
) -> Tracking:
    """A sweep STUDY-001 of those records, logged to the store in `root`; without `metrics` as older versions did."""
    tracking, name = Tracking(root, study), f"{study}-{number:03d}"
    config = {"name": study, **(settings or {})}
    tracking.start_sweep(name, config, {"pare.description": "LeNet-5."}, objectives, reference, metrics)
    for each in records:
        tracking.log_trial(name, each)
    return tracking
