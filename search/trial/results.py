"""What workers hand back: the dense baseline, an exported file, a measured trial, files judged on the test split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from runtimes.base import Artifact
from runtimes.latency import LatencyResult
from search.study.metrics import Metrics
from tasks import cache
from tasks.base import TaskInfo
from trainers.base import DenseSpec


@dataclass(frozen=True)
class Baseline:
    """A dense model of the study and its exported fp32 file, which every latency and size is compared with.

    `metrics`: the task's own, of the file on the validation split of `samples` rows. `latency_ms`: median on the
    study's runtime, once per sweep: a trial's `latency_ms` is its ratio times this, so that the machine's drift does
    not order the front. `examples`: valid inputs by name (`.npz`), which latency is measured on. `float32_bytes`:
    its float32 weights and biases, without the graph.
    """

    spec: DenseSpec
    dense_folder: Path
    artifact: Artifact
    metrics: dict[str, float]
    samples: int
    size_bytes: int
    latency_ms: float
    data_digest: str
    versions: dict[str, str]
    environment: dict[str, Any]
    task: TaskInfo
    examples: Path
    float32_bytes: int = 0

    @property
    def name(self) -> str:
        """TRAINER/MODEL, as `distillation.teacher` spells it."""
        return f"{self.spec.trainer}/{self.spec.model}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, to be stored with the sweep."""
        return _plain(self)

    @staticmethod
    def restore(stored: dict[str, Any]) -> Baseline | None:
        """What `to_dict` gave -> Baseline; None when its files are gone or changed, or another version stored it."""
        artifact = _restored(stored, Baseline)
        if artifact is None or not cache.get(folder := Path(stored["dense_folder"])):
            return None
        made = {"spec": DenseSpec(**stored["spec"]), "task": TaskInfo.from_dict(stored["task"]), "artifact": artifact}
        return Baseline(**stored | made | {"dense_folder": folder, "examples": Path(stored["examples"])})


@dataclass(frozen=True)
class Exported:
    """An exported file and what is known of it without timing it. `metrics`: the task's own on the validation split.

    `counted`: its bytes and weights, as `measure.counted` gives them.
    """

    artifact: Artifact
    size_bytes: int
    metrics: dict[str, float]
    agreement: float
    sparsity: float
    pruned: float
    stages: dict[str, float]
    curves: list[dict[str, float]]
    counted: dict[str, float] = field(default_factory=dict)
    system: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, to be stored with the sweep."""
        return _plain(self)

    @staticmethod
    def restore(stored: dict[str, Any]) -> Exported | None:
        """What `to_dict` gave -> Exported; None when its file is gone or changed, or another version stored it."""
        artifact = _restored(stored, Exported)
        return None if artifact is None else Exported(**stored | {"artifact": artifact})

    def figures(self, baseline: Baseline, metrics: Metrics) -> dict[str, float]:
        """Every figure that needs no timing, by name."""
        download = self.counted.get("download_bytes")
        ratio = {} if download is None else {"float32_ratio": baseline.float32_bytes / download}
        return {
            **self.metrics,
            **metrics.drops(self.metrics, baseline.metrics),
            "size_bytes": float(self.size_bytes),
            "size_ratio": self.size_bytes / baseline.size_bytes,
            "compression_ratio": baseline.size_bytes / self.size_bytes,
            "sparsity": self.sparsity,
            "pruned": self.pruned,
            "export_agreement": self.agreement,
            **self.counted,
            **ratio,
        }


@dataclass(frozen=True)
class Outcome:
    """What one trial gave; `stages` in seconds, `system` as `meter.metered` gives it, `curves` one dict per epoch."""

    metrics: dict[str, float]
    stages: dict[str, float]
    system: dict[str, float]
    curves: list[dict[str, float]]
    artifact: Artifact
    environment: dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """Exported files on the TEST split of `samples` rows: the task's `metrics`, then `latencies`, one each per file."""

    metrics: list[dict[str, float]]
    samples: int
    latencies: list[LatencyResult] = field(default_factory=list)

    def of(self, files: Sequence[int]) -> Judged:
        """Those of some of the files, by their places."""
        return replace(self, metrics=[self.metrics[i] for i in files], latencies=[self.latencies[i] for i in files])


def _plain(value: Baseline | Exported) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(value), default=str))
    return plain


def _restored(stored: dict[str, Any], kind: type[Baseline | Exported]) -> Artifact | None:
    """Its file; None when that is gone or changed, or the fields are those of another version."""
    if set(stored) != {each.name for each in fields(kind)}:
        return None
    path = Path(stored["artifact"]["path"])
    if not path.is_file() or (found := Artifact.of(path)).sha256 != stored["artifact"]["sha256"]:
        return None
    return found
