"""What a server asks: the current version of the model, answers to requests, counts. No HTTP, no Ray.

Versions change between two requests: a request keeps the version that it began with, from reading its inputs to
writing its answer, so that no answer mixes two.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving import model as models
from serving.histogram import Histogram
from serving.model import Model
from serving.package import PackageError
from serving.result_cache import ResultCache

Arrays = Mapping[str, np.ndarray]


class NotReadyError(RuntimeError):
    """No version is loaded yet, or its file was found damaged: 503."""


class PinnedError(RuntimeError):
    """The client asked for a version that is not the one being served: 409."""


class Service:
    """One replica's model and its counts. All methods but `verify` belong to one event loop."""

    def __init__(self, cache: ResultCache) -> None:
        self.cache = cache
        self.current: Model | None = None
        self.damaged = ""
        self.prepared: dict[str, Model] = {}
        self.statuses: Counter[str] = Counter()
        self.duration = Histogram()
        self.batch_rows: Counter[int] = Counter()
        self.rows = self.switches = 0
        self.began = time.time()

    def model(self, pin: str = "") -> Model:
        """The version that a request is answered by; raises NotReadyError, or PinnedError for another than `pin`.

        `pin`: a version's label, or at least eight digits of the sha256.
        """
        model = self.current
        if model is None or self.damaged:
            raise NotReadyError(self.damaged or "the model is being loaded; try again in a moment")
        if pin and pin != model.about.label and not (len(pin) >= 8 and model.about.sha256.startswith(pin)):
            raise PinnedError(f"version {pin[:80]!r} is not served now; this is version {model.about.label}")
        return model

    async def infer(self, model: Model, inputs: Arrays) -> tuple[Arrays, int, bool]:
        """(outputs, rows of the batch, whether they came from the cache)."""
        key = self.cache.key(model.about.sha256, inputs)
        found = self.cache.get(key)
        self.rows += len(next(iter(inputs.values())))
        if found is not None:
            return found, 0, True
        outputs, rows = await model.batcher.infer(inputs)
        self.batch_rows[rows] += 1
        self.cache.put(key, outputs)
        return outputs, rows, False

    async def prepare(self, model: Model) -> None:
        """Hold a further version ready, having answered once. Raises PackageError."""
        try:
            await models.warm(model)
        except Exception as problem:  # each runtime raises what it likes
            raise PackageError(f"{model.about.name}: it does not answer: {problem}") from None
        self.prepared[model.about.key] = model

    def switch(self, key: str) -> None:
        """From the next request on, the prepared version answers; the one before finishes what it has begun."""
        if self.current is not None and self.current.about.key == key:
            return
        before, self.current = self.current, self.prepared.pop(key)
        self.damaged = ""
        if before is not None:
            self.switches += 1
            asyncio.get_running_loop().call_later(60, before.close)

    def forget(self, kept: set[str]) -> None:
        """Let go of prepared versions that are not to come."""
        for key in set(self.prepared) - kept:
            self.prepared.pop(key).close()

    def verify(self) -> None:
        """Raise PackageError, and answer nothing more, when the file is no longer the one that was picked."""
        model = self.current
        if model is None:
            return
        try:
            model.verify()
        except PackageError as problem:
            self.damaged = str(problem)
            raise

    def count(self, status: int, ms: float, inference: bool) -> None:
        """One request was answered."""
        self.statuses[str(status)] += 1
        if inference:
            self.duration.add(ms)

    def snapshot(self) -> dict[str, Any]:
        """All counts so far, as JSON values that can be added up over replicas."""
        model = self.current
        return {
            "version": model.about.label if model else "",
            "sha256": model.about.sha256 if model else "",
            "plan": model.plan.why if model else "",
            "batch_size": model.plan.size if model else 0,
            "wait_ms": model.plan.wait_ms if model else 0,
            "requests": dict(self.statuses),
            "duration": self.duration.plain(),
            "batch_rows": {str(rows): count for rows, count in self.batch_rows.items()},
            "rows": self.rows,
            "waiting_bytes": model.batcher.waiting_bytes if model else 0,
            "switches": self.switches,
            "cache": {
                "hits": self.cache.hits,
                "misses": self.cache.misses,
                "evictions": self.cache.evictions,
                "bytes": self.cache.bytes,
                "entries": len(self.cache),
            },
            "up_s": time.time() - self.began,
        }
