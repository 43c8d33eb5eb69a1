"""The dense model's exported file: made once, the same for every sweep, made again when what decides it has changed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

import runtimes.base
import trainers.base
from runtimes import onnxruntime
from search.study.config import Config
from search.trial import objective
from search.trial.results import Baseline
from tests import linear
from trainers.base import Compressed, Dense, Job, Teacher
from trainers.recipe import Recipe


class Counting(linear.LinearTrainer):
    """Counts what it exports."""

    def __init__(self) -> None:
        self.exported = 0
        self.version = "1"

    def versions(self) -> dict[str, str]:
        return {"linear": self.version}

    def compress(self, recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> Compressed:
        self.exported += 1
        return super().compress(recipe, dense, teacher, job)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    trainer = Counting()
    monkeypatch.setattr(trainers.base, "load", lambda name: trainer)
    return trainer


def prepared(config: Config, folder: Path) -> Baseline:
    spec = config.study.dense_spec("pytorch", "lenet300")
    return objective._train_and_export(config, spec, folder, 1, lambda stage, share: None)


def test_the_next_sweep_takes_the_file_of_the_first(root: Path, tmp_path: Path, counting: Counting) -> None:
    first = prepared(linear.config(root), tmp_path / "first")
    second = prepared(linear.config(root), tmp_path / "second")
    assert counting.exported == 1
    assert second.artifact.path.parent == tmp_path / "second"
    assert second.artifact.path.read_bytes() == first.artifact.path.read_bytes()
    elsewhere: dict[str, Any] = {"artifact": first.artifact, "examples": first.examples, "latency_ms": 0.0}
    assert dataclasses.replace(second, **elsewhere) == dataclasses.replace(first, **elsewhere)
    assert sorted(p.name for p in (tmp_path / "second").iterdir()) == ["examples.npz", "model.onnx"]


def test_a_file_that_is_gone_or_changed_in_a_sweep_leaves_the_kept_one_whole(
    root: Path, tmp_path: Path, counting: Counting
) -> None:
    first = prepared(linear.config(root), tmp_path / "first")
    whole = first.artifact.path.read_bytes()
    first.artifact.path.write_bytes(b"changed")
    assert prepared(linear.config(root), tmp_path / "second").artifact.path.read_bytes() == whole
    shutil.rmtree(tmp_path / "first")
    assert prepared(linear.config(root), tmp_path / "third").artifact.path.read_bytes() == whole
    assert counting.exported == 1


def test_a_damaged_copy_in_the_cache_is_made_again(root: Path, tmp_path: Path, counting: Counting) -> None:
    whole = prepared(linear.config(root), tmp_path / "first").artifact.path.read_bytes()
    (kept,) = (root / "cache" / "dense_file").glob("*/model.onnx")
    kept.write_bytes(b"damaged")
    assert prepared(linear.config(root), tmp_path / "second").artifact.path.read_bytes() == whole
    assert counting.exported == 2


@pytest.mark.parametrize("changed", ["trainer", "runtime", "task"])
def test_another_version_of_what_decides_it_makes_another_file(
    root: Path, tmp_path: Path, counting: Counting, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    prepared(linear.config(root), tmp_path / "first")
    config = linear.config(root)
    if changed == "trainer":
        counting.version = "2"
    elif changed == "runtime":
        monkeypatch.setattr(onnxruntime, "version", lambda: "another")
        assert runtimes.base.load("onnxruntime").version() == "another"
    else:
        config = linear.config(root, task={"name": "mnist", "train_size": 3000, "validation_size": 400})
    prepared(config, tmp_path / "second")
    assert counting.exported == 2
