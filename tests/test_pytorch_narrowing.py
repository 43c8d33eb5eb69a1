"""Allocation, importance and recovery as fields of a recipe: what they change in a file; studies search them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from search.study.parse import parse
from tests.tiny_task import Regions
from trainers.base import NETWORK, Compressed, Dense, DenseSpec, Job, capabilities, task_digest
from trainers.bits import CHOICES, allocated
from trainers.pytorch.saved import program_of, restore
from trainers.pytorch.trainer import Trainer
from trainers.recipe import FineTuning, Pruning, Quantization, Recipe

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def task() -> Regions:
    return Regions()


@pytest.fixture(scope="module")
def dense(task: Regions, tmp_path_factory: pytest.TempPathFactory) -> Dense:
    spec = DenseSpec("pytorch", "patches", 4, 1e-2, 40, task=task_digest(task.info()))
    return Trainer().dense(spec, Job(task, tmp_path_factory.mktemp("dense"), "onnx", device="cpu"))


def compressed(task: Regions, dense: Dense, folder: Path, epochs: float = 0, **pruning: object) -> Compressed:
    folder.mkdir()
    pruned = Pruning("channel", 0.5, **{"schedule": "one_shot", **pruning})  # type: ignore[arg-type]
    recipe = Recipe("patches", pruning=pruned, finetuning=FineTuning(epochs, batch_size=40, learning_rate=1e-2))
    job = Job(task, folder, "onnx", device="cpu", decisions=folder.parent / "decisions")
    return Trainer().compress(recipe, dense, None, job)


@pytest.mark.parametrize(
    ("allocation", "importance", "schedule"),
    [("global", "taylor", "gradual"), ("sensitivity", "activation", "one_shot"), ("uniform", "taylor", "one_shot")],
)
def test_channels_go_by_every_allocation_and_importance(
    task: Regions, dense: Dense, tmp_path: Path, allocation: str, importance: str, schedule: str
) -> None:
    made = compressed(
        task, dense, tmp_path / "made", 1, allocation=allocation, importance=importance, schedule=schedule
    )
    assert 0.2 < made.pruned < 0.8
    assert len(list((tmp_path / "decisions").glob("*.json"))) == (allocation == "sensitivity")
    if allocation == "sensitivity":
        again = compressed(task, dense, tmp_path / "again", 1, allocation=allocation, importance=importance)
        assert again.file.read_bytes() == made.file.read_bytes()


def test_recovery_brings_the_outputs_nearer_to_the_dense_ones(task: Regions, dense: Dense, tmp_path: Path) -> None:
    spec = Recipe("patches")
    whole = tmp_path / "whole"
    whole.mkdir()
    exact = Trainer().compress(spec, dense, None, Job(task, whole, "onnx", device="cpu")).outputs["map"]
    errors = {}
    for recovery in ("none", "bias", "least_squares"):
        made = compressed(task, dense, tmp_path / recovery, recovery=recovery)
        errors[recovery] = float(np.sqrt(np.mean((made.outputs["map"] - exact) ** 2)))
        assert any("recovery" in note for note in made.notes) == (recovery != "none")
    assert errors["least_squares"] < 0.8 * errors["none"]


def test_the_narrowed_network_lies_beside_its_file(task: Regions, dense: Dense, tmp_path: Path) -> None:
    made = compressed(task, dense, tmp_path / "made", 1)
    folder = made.file.parent / NETWORK
    assert {each.name for each in folder.iterdir()} == {"weights.safetensors", "widths.json", "program.pt2"}
    batch = task.data("validation").batch(np.arange(made.rows)).inputs
    inputs = [torch.from_numpy(np.ascontiguousarray(batch[port.name])) for port in task.info().inputs]
    fresh = restore(task.program("pytorch").build("patches").eval(), folder)
    with torch.no_grad():
        for network in (fresh, program_of(folder)):
            said = network(*inputs)[0].numpy()
            np.testing.assert_allclose(said, made.outputs["map"], atol=1e-4)
    assert sum(p.numel() for p in fresh.parameters()) < 0.9 * dense.parameters


def test_a_study_searches_them() -> None:
    able = capabilities("pytorch")
    fields = {"allocation": able.allocations, "importance": able.importances, "recovery": able.recoveries}
    section = {
        "model": "patches",
        "pruning": {
            "granularity": {"choices": ["none", "channel"]},
            "schedule": "one_shot",
            "sparsity": {"low": 0.2, "high": 0.6},
            **{name: {"choices": list(values)} for name, values in fields.items()},
        },
    }
    space = parse(section, models={"pytorch": ("patches",)})
    optuna.logging.disable_default_handler()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = [space.suggest(study.ask()).pruning for _ in range(60)]
    for name, values in fields.items():
        assert {getattr(each, name) for each in found if each.granularity == "channel"} == set(values)
        assert len({getattr(each, name) for each in found if each.granularity == "none"}) == 1
    other = Recipe("patches", "tensorflow", Pruning("channel", 0.5, importance="taylor"))
    assert capabilities("tensorflow").problems(other) == [
        "pruning.importance: the tensorflow trainer has no 'taylor'; choose from magnitude"
    ]


sizes = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 1000), min_size=1)


@given(sizes, st.data(), st.floats(2, 32))
def test_bits_are_within_the_budget_and_the_dearest_layer_keeps_most(
    sizes: dict[str, int], data: st.DataObject, mean: float
) -> None:
    rises = {name: data.draw(st.floats(0.01, 10)) for name in sizes}
    losses = {name: {bits: 1 + rise * (32 / bits - 1) for bits in CHOICES} for name, rise in rises.items()}
    bits = allocated(sizes, losses, mean)
    assert set(bits.values()) <= set(CHOICES)
    assert sum(bits[name] * size for name, size in sizes.items()) <= mean * sum(sizes.values())
    alike = [name for name in sizes if sizes[name] == sizes[min(sizes)]]
    assert bits[max(alike, key=lambda name: rises[name])] >= bits[min(alike, key=lambda name: rises[name])]


def test_each_layer_gets_bits_of_its_own(task: Regions, dense: Dense, tmp_path: Path) -> None:
    files = {}
    for mean in (3.0, 12.0):
        folder = tmp_path / str(mean)
        folder.mkdir()
        scheme = Quantization("weights_mixed", bits=mean)
        recipe = Recipe("patches", quantization=scheme, finetuning=FineTuning(qat_epochs=1, batch_size=40))
        files[mean] = Trainer().compress(recipe, dense, None, Job(task, folder, "onnx", device="cpu"))
    notes = {mean: next(n for n in made.notes if n.startswith("bits: ")) for mean, made in files.items()}
    assert notes[3.0] != notes[12.0]
    given = dict(each.rsplit(" ", 1) for each in notes[3.0].removeprefix("bits: ").split(", "))
    assert {int(bits) for bits in given.values()} <= set(CHOICES)
    distinct = {mean: _distinct(made.file) for mean, made in files.items()}
    assert min(distinct[3.0]) <= 15
    assert sum(distinct[3.0]) < sum(distinct[12.0])


def _distinct(file: Path) -> list[int]:
    """How many values each stored matrix or kernel has."""
    stored = [numpy_helper.to_array(each) for each in onnx.load(file).graph.initializer]
    return [len(np.unique(array)) for array in stored if array.ndim > 1 and array.dtype == np.float32]
