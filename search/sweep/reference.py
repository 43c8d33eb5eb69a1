"""The point that a sweep's hypervolume is measured from."""

from __future__ import annotations

from collections.abc import Sequence

from search.study.config import Study
from search.study.metrics import Metrics
from search.trial.results import Baseline


def reference_point(study: Study, metrics: Metrics, baselines: Sequence[Baseline]) -> list[float]:
    """The hypervolume's reference point, one value per objective: what nobody would deploy.

    A tenth worse than the largest dense fp32 file in latency and size; in each of the task's metrics worse than the
    best dense model by the `NAME_drop` that the study allows, or by the metric's tolerance if it sets no bound.
    """
    worst = {
        "latency_ms": 1.1 * max(b.latency_ms for b in baselines),
        "latency_ratio": 1.1,
        "size_bytes": 1.1 * max(b.size_bytes for b in baselines),
        "size_ratio": 1.1,
        "compression_ratio": 0.9,
    }
    for metric in metrics.task:
        allowed = [limit.bound for limit in study.limits if (limit.metric, limit.op) == (f"{metric.name}_drop", "<=")]
        values = [b.metrics[metric.name] for b in baselines]
        best = min(values) if metric.direction == "minimize" else max(values)
        drop = min(allowed, default=metric.tolerated(best))
        worst[metric.name] = best + drop if metric.direction == "minimize" else best - drop
        worst[f"{metric.name}_drop"] = drop
    return [worst.get(name, 0.0) for name in study.objectives]
