"""What compressed networks cost, known before they are trained, kept across sweeps in `ROOT/cache/costs`.

Two kinds of files of one JSON object per line, to which lines are only added. `latency-KEY.jsonl`: measurements by
architecture, all against one baseline on one runtime and hardware. `outline-KEY.jsonl`: what recipes give before any
training, of one dense model. A line that was cut off, or that another version wrote, is passed over.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trainers.base
from runtimes.latency import LatencyResult
from runtimes.pooling import half_width, pooled
from search.study.config import Study
from search.trial.measure import HARDWARE, latencies
from search.trial.results import Baseline, Outline
from tasks.base import digest_of
from trainers.recipe import Recipe


class Costs:
    """The costs known of the recipes of one study, read once; what is added is written at once."""

    def __init__(self, root: Path, study: Study):
        self._folder = root / "cache" / "costs"
        self._study = study
        self._measured: dict[str, dict[str, list[LatencyResult]]] = {}
        self._outlines: dict[str, dict[str, Outline]] = {}

    def latencies(self, baseline: Baseline) -> dict[str, LatencyResult]:
        """Architecture -> its measurements as one, of those that are known as well as the study asks."""
        allowed = self._study.latency.target_rel_ci
        found = {architecture: pooled(results) for architecture, results in self._of(baseline).items()}
        return {a: each for a, each in found.items() if all(half_width(c) <= allowed for c in each.comparisons)}

    def add(self, baseline: Baseline, architecture: str, result: LatencyResult) -> None:
        """A measurement of a file of that architecture."""
        self._of(baseline).setdefault(architecture, []).append(result)
        line = {"architecture": architecture, "result": result.to_dict(), "at": int(time.time())}
        self._append(self._latency_file(baseline), line)

    def outline(self, baseline: Baseline, recipe: Recipe) -> Outline | None:
        """What is known of the recipe without training; None where nothing is."""
        return self._sketched(baseline).get(_untrained(recipe))

    def figures(self, baseline: Baseline, recipe: Recipe) -> dict[str, float] | None:
        """Sizes and latencies of the recipe by name, those with the ends of their intervals; None where not known."""
        outline = self.outline(baseline, recipe)
        results = None if outline is None else self._of(baseline).get(outline.architecture)
        if outline is None or not results:
            return None
        return outline.figures | latencies(pooled(results), baseline.latency_ms)

    def sketch(self, baseline: Baseline, recipe: Recipe, outline: Outline) -> None:
        """Keep what a recipe gives before training."""
        digest = _untrained(recipe)
        self._sketched(baseline)[digest] = outline
        self._append(self._outline_file(baseline), {"recipe": digest, **asdict(outline)})

    def _of(self, baseline: Baseline) -> dict[str, list[LatencyResult]]:
        file = self._latency_file(baseline)
        if file.name not in self._measured:
            found: dict[str, list[LatencyResult]] = {}
            for line in _lines(file):
                if (result := _result(line)) is not None:
                    found.setdefault(line["architecture"], []).append(result)
            self._measured[file.name] = found
        return self._measured[file.name]

    def _sketched(self, baseline: Baseline) -> dict[str, Outline]:
        file = self._outline_file(baseline)
        if file.name not in self._outlines:
            self._outlines[file.name] = {
                line["recipe"]: Outline(line["architecture"], line["figures"])
                for line in _lines(file)
                if {"recipe", "architecture", "figures"} <= line.keys()
            }
        return self._outlines[file.name]

    def _latency_file(self, baseline: Baseline) -> Path:
        """Of what ratios compare with: the baseline's file and inputs, the runtime, the machine, what is timed."""
        where = [baseline.environment.get(key) or None for key in HARDWARE]
        timed = [self._study.latency.batch, self._study.latency.threads]
        key = [baseline.architecture, baseline.data_digest, baseline.task.name, *where, *timed]
        return self._folder / f"latency-{digest_of(key)}.jsonl"

    def _outline_file(self, baseline: Baseline) -> Path:
        runtime, trainer = self._study.runtime_of(baseline.spec.trainer), baseline.spec.trainer
        packed = self._study.coder if self._study.packed else ""
        key = [baseline.dense_folder.name, baseline.artifact.sha256, runtime, packed, baseline.versions, _code(trainer)]
        return self._folder / f"outline-{digest_of(key)}.jsonl"

    def _append(self, file: Path, line: Mapping[str, Any]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # of several studies' drivers
            size = os.fstat(handle).st_size
            cut = size and os.pread(handle, 1, size - 1) != b"\n"  # by a driver that was killed
            os.write(handle, (b"\n" if cut else b"") + json.dumps(line).encode() + b"\n")
        finally:
            os.close(handle)


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        return
    for text in file.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict):
            yield line


def _result(line: Mapping[str, Any]) -> LatencyResult | None:
    try:
        return LatencyResult.from_dict(line["result"]) if isinstance(line["architecture"], str) else None
    except (KeyError, TypeError):
        return None


@functools.lru_cache(maxsize=4096)
def _untrained(recipe: Recipe) -> str:
    """A sampler asks for hundreds of recipes at once, mostly the same ones again."""
    return recipe.untrained().digest()


@functools.cache
def _code(trainer: str) -> str:
    """Of our own trainer's source: what it exports may change with it."""
    folder = Path(trainers.base.__file__).parent / trainer
    return digest_of([file.read_text() for file in sorted(folder.glob("*.py"))])
