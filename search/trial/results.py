"""What workers hand back: the dense baseline, an exported file, a measured trial, files judged on the test split."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
    its float32 weights and biases, without the graph. `architecture`: what `architecture_of` says of its file.
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
    architecture: str = ""

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

    `counted`: its bytes and weights, as `measure.counted` gives them. `architecture`: by `architecture_of`. `beside`:
    the files of its folder `network`, which travel with it from host to host.
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
    architecture: str = ""
    notes: list[str] = field(default_factory=list)
    beside: tuple[Path, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, to be stored with the sweep."""
        return _plain(self)

    @staticmethod
    def restore(stored: dict[str, Any]) -> Exported | None:
        """What `to_dict` gave -> Exported; None when its file is gone or changed, or another version stored it."""
        artifact = _restored(stored, Exported)
        if artifact is None:
            return None
        return Exported(**stored | {"artifact": artifact, "beside": tuple(map(Path, stored["beside"]))})

    def figures(self, baseline: Baseline, metrics: Metrics) -> dict[str, float]:
        """Every figure that needs no timing, by name."""
        return {
            **self.metrics,
            **metrics.drops(self.metrics, baseline.metrics),
            "sparsity": self.sparsity,
            "pruned": self.pruned,
            "export_agreement": self.agreement,
            **sizes(self.size_bytes, self.counted, baseline),
        }


def sizes(size_bytes: int, counted: Mapping[str, float], baseline: Baseline) -> dict[str, float]:
    """A file's figures of size, by name, from its bytes and what `measure.counted` gives."""
    download = counted.get("download_bytes")
    ratio = {} if download is None else {"float32_ratio": baseline.float32_bytes / download}
    return {
        "size_bytes": float(size_bytes),
        "size_ratio": size_bytes / baseline.size_bytes,
        "compression_ratio": baseline.size_bytes / size_bytes,
        **counted,
        **ratio,
    }


@dataclass(frozen=True)
class Outline:
    """What a recipe gives before any training: the architecture of its file and `figures` of size by name.

    The sizes are those of a file with untrained weights, so they are near those of the trained one, not equal.
    """

    architecture: str
    figures: dict[str, float]


@dataclass(frozen=True)
class Outlined:
    """The same, the file it was read from, and the latency where the file was measured."""

    outline: Outline
    artifact: Artifact
    measured: LatencyResult | None = None


@dataclass(frozen=True)
class Outcome:
    """What one trial gave; `stages` in seconds, `system` as `meter.metered` gives it, `curves` one dict per epoch.

    `measured`: the latency of its file where that was measured; else that of its `architecture` was known. `beside`: as
    Exported's.
    """

    metrics: dict[str, float]
    stages: dict[str, float]
    system: dict[str, float]
    curves: list[dict[str, float]]
    artifact: Artifact
    environment: dict[str, Any]
    architecture: str = ""
    measured: LatencyResult | None = None
    beside: tuple[Path, ...] = ()


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
