"""Fine-tuned networks taken from the cache: the same bits as training again, kept apart by all that made them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import cache
from tasks.base import TaskSpec
from tasks.mnist.task import Mnist
from trainers.base import Compressed, Dense, DenseSpec, Job, Teacher
from trainers.pytorch import finetuned
from trainers.pytorch.finetuned import TAKEN
from trainers.pytorch.trainer import Trainer
from trainers.recipe import Distillation, FineTuning, Pruning, Quantization, Recipe

SPEC = DenseSpec("pytorch", "lenet5", epochs=0.5, learning_rate=2e-3, batch_size=50, seed=3)
RECIPE = Recipe(
    "lenet5",
    pruning=Pruning("unstructured", 0.5),
    distillation=Distillation("soft", 2.0, 0.5),
    finetuning=FineTuning(epochs=0.5, qat_epochs=0.25, learning_rate=2e-3, batch_size=50),
    seed=7,
)
PRUNINGS = {
    "channel": Pruning("channel", 0.5),
    "unstructured": Pruning("unstructured", 0.8),
    "fisher": Pruning("unstructured", 0.8, score="fisher", channels=0.3),
    "none": Pruning(),
}
ALL = ("none", "static_int8", "dynamic_int8", "qat_int8", "weight_only_int8")


@pytest.fixture(scope="module")
def task(fetched: Path) -> Mnist:
    return Mnist(TaskSpec("mnist", train_size=600, validation_size=100), fetched, lambda stage, fraction: None)


@pytest.fixture(scope="module")
def dense(task: Mnist, tmp_path_factory: pytest.TempPathFactory) -> Dense:
    return Trainer().dense(SPEC, job(task, tmp_path_factory.mktemp("dense")))


def job(task: Mnist, folder: Path, networks: Path | None = None) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    return Job(task, folder, "onnx", device="cpu", threads=1, networks=networks)


def made(recipe: Recipe, dense: Dense, task: Mnist, folder: Path, networks: Path | None = None) -> Compressed:
    return Trainer().compress(recipe, dense, Teacher.of(dense), job(task, folder, networks))


@pytest.mark.parametrize(
    ("pruning", "schemes"),
    [
        ("unstructured", ("static_int8", "qat_int8")),
        *(pytest.param(each, ALL, marks=pytest.mark.cluster) for each in PRUNINGS),
    ],
)
def test_every_export_of_one_network_is_bit_by_bit_what_training_again_gives(
    pruning: str, schemes: tuple[str, ...], task: Mnist, dense: Dense, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, pruning=PRUNINGS[pruning])
    made(recipe, dense, task, tmp_path / "first", tmp_path / "networks")
    for scheme in schemes:
        other = replace(recipe, quantization=Quantization(scheme))
        torch.manual_seed(99)  # what the process did before has no effect
        taken = made(other, dense, task, tmp_path / scheme / "taken", tmp_path / "networks")
        again = made(other, dense, task, tmp_path / scheme / "again")
        assert TAKEN in taken.notes
        assert "fine-tune" in again.stages
        assert "fine-tune" not in taken.stages
        assert taken.file.read_bytes() == again.file.read_bytes(), scheme
        assert all(np.array_equal(taken.outputs[name], again.outputs[name]) for name in again.outputs)
        assert (taken.sparsity, taken.pruned, taken.curves) == (again.sparsity, again.pruned, again.curves)
        assert set(again.notes) < set(taken.notes)


@pytest.mark.parametrize(
    "other",
    [
        replace(RECIPE, seed=8),
        replace(RECIPE, pruning=Pruning("unstructured", 0.7)),
        replace(RECIPE, distillation=Distillation("soft", 3.0, 0.5)),
        replace(RECIPE, finetuning=replace(RECIPE.finetuning, learning_rate=1e-3)),
    ],
    ids=["seed", "sparsity", "temperature", "rate"],
)
def test_another_training_is_another_network(other: Recipe, task: Mnist, dense: Dense, tmp_path: Path) -> None:
    given = (dense, Teacher.of(dense), job(task, tmp_path, tmp_path / "networks"), torch.device("cpu"), {"torch": "1"})
    first, second = (finetuned.finetuned(recipe, *given) for recipe in (RECIPE, other))
    assert first is not None
    assert second is not None
    assert first._folder != second._folder
    same = finetuned.finetuned(replace(RECIPE, quantization=Quantization("static_int8")), *given)
    assert same is not None
    assert same._folder == first._folder
    newer = finetuned.finetuned(RECIPE, *given[:-1], {"torch": "2"})
    assert newer is not None
    assert newer._folder != first._folder
    plain = Recipe("lenet5", quantization=Quantization("static_int8"))
    assert finetuned.finetuned(plain, *given) is None  # nothing is trained


def test_a_damaged_network_is_trained_again(task: Mnist, dense: Dense, tmp_path: Path) -> None:
    first = made(RECIPE, dense, task, tmp_path / "a", tmp_path / "networks")
    (kept,) = (tmp_path / "networks").glob("[!.]*/network.pt")
    kept.write_bytes(kept.read_bytes()[:-1])
    again = made(RECIPE, dense, task, tmp_path / "b", tmp_path / "networks")
    assert TAKEN not in again.notes
    assert again.file.read_bytes() == first.file.read_bytes()


def test_the_cache_keeps_what_was_used_last_within_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuned, "MOST_BYTES", 200_000)
    kept = [finetuned.Finetuned(tmp_path / "networks", {"number": number}) for number in range(6)]
    for each in kept:
        state = finetuned.state_of(torch.nn.Linear(100, 100), {}, 0.5, [{"loss": 1.0}], ["a note"])
        assert each.save(state) == ""
        assert kept[0].load() is not None, "used each time, so it is never the oldest"
    there = [each.load() is not None for each in kept]
    assert there[0]
    assert there[-1]
    assert 2 <= sum(there) < 5
    large = finetuned.state_of(torch.nn.Linear(1000, 100), {}, 0.5, [], [])
    one = finetuned.Finetuned(tmp_path / "networks", {"number": "large"})
    assert one.save(large) == ""
    assert one.load() is None
    assert kept[-1].load() is not None


def test_a_full_disk_costs_nothing_but_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise cache.CacheError("cache: the disk is full")

    monkeypatch.setattr(cache, "fill", full)
    one = finetuned.Finetuned(tmp_path / "networks", {})
    said = one.save(finetuned.state_of(torch.nn.Linear(2, 2), {}, 0.0, [], []))
    assert said == "the fine-tuned network was not kept: cache: the disk is full"
