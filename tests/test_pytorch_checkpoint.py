"""A long training that is killed continues from its last epoch, and ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.base import TaskSpec
from tasks.mnist.pytorch import Program
from tasks.mnist.task import Mnist
from trainers.base import Compressed, Dense, DenseSpec, Job
from trainers.pytorch import checkpoint
from trainers.pytorch.channels import ChannelPruning
from trainers.pytorch.checkpoint import Checkpoints, network_state, restore_network
from trainers.pytorch.trainer import Trainer
from trainers.recipe import FineTuning, Pruning, Quantization, Recipe

ROOT = Path(__file__).parents[1]
SPEC = DenseSpec("pytorch", "convnet", epochs=1, batch_size=50)
TUNING = FineTuning(epochs=4, qat_epochs=3, batch_size=50, ema=0.9)
CHANNELS = Recipe("convnet", pruning=Pruning("channel", 0.5), finetuning=TUNING)
SPARSE_QAT = replace(CHANNELS, pruning=Pruning("unstructured", 0.7), quantization=Quantization("qat_int8"))

CHILD = """
import json, sys
from pathlib import Path
from tests import test_pytorch_checkpoint as test
from trainers.pytorch import checkpoint
from trainers.recipe import Recipe
checkpoint.EVERY_S = -1.0
recipe, cache, dense, folder, until = Recipe.from_dict(json.loads(sys.argv[1])), *map(Path, sys.argv[2:5]), sys.argv[5]
def progress(stage, fraction):
    if stage == until and fraction > 0.55:
        print("now", flush=True)
        sys.stdin.read()  # until it is killed
test.carried_out(recipe, test.task_of(cache), test.Dense.open(test.SPEC, dense), folder, progress)
"""


def task_of(cache: Path) -> Mnist:
    return Mnist(TaskSpec("mnist", train_size=1000, validation_size=200), cache, lambda stage, fraction: None)


def carried_out(recipe: Recipe, task: Mnist, dense: Dense, folder: Path, progress: object = None) -> Compressed:
    folder.mkdir(exist_ok=True, parents=True)
    job = Job(task, folder, "onnx", device="cpu", progress=progress or (lambda stage, fraction: None))  # type: ignore[arg-type]
    return Trainer().compress(recipe, dense, None, job)


@pytest.fixture(scope="module")
def dense(fetched: Path, tmp_path_factory: pytest.TempPathFactory) -> Dense:
    return Trainer().dense(SPEC, Job(task_of(fetched), tmp_path_factory.mktemp("dense"), "onnx", device="cpu"))


def kill_in(stage: str, recipe: Recipe, cache: Path, dense: Dense, folder: Path) -> None:
    """Begin the recipe in a process of its own, and kill that process a little after the stage's second epoch."""
    import json

    values = [json.dumps(recipe.to_dict()), str(cache), str(dense.folder), str(folder), stage]
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, *values], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"now\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("recipe", "stage", "step"),
    [
        (CHANNELS, "fine-tune", "step 40 of 80"),
        pytest.param(SPARSE_QAT, "fine-tune", "step 40 of 80", marks=pytest.mark.cluster),
        pytest.param(SPARSE_QAT, "qat", "step 20 of 60", marks=pytest.mark.cluster),
    ],
)
def test_a_killed_trial_goes_on_from_its_last_epoch(
    recipe: Recipe, stage: str, step: str, fetched: Path, dense: Dense, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    kill_in(stage, recipe, fetched, dense, killed)
    assert (killed / "checkpoint" / f"{stage}.pt").is_file()
    assert not (killed / "model.onnx").exists()
    steps: list[float] = []
    task = task_of(fetched)
    made = carried_out(
        recipe, task, dense, killed, lambda said, fraction: steps.append(fraction) if said == stage else None
    )
    assert any(f"{stage}: went on from {step}" in note for note in made.notes)
    assert min(steps) > 0.3
    whole = carried_out(recipe, task, dense, tmp_path / "whole")
    assert not any("went on" in note for note in whole.notes)
    assert made.file.read_bytes() == whole.file.read_bytes()
    assert made.curves == whole.curves
    left = ["model.onnx", "network"] if recipe is CHANNELS else ["model.onnx"]  # what narrowed is saved; see saved.py
    assert sorted(path.name for path in killed.iterdir()) == left


def test_nothing_is_written_in_a_short_training(fetched: Path, dense: Dense, tmp_path: Path) -> None:
    seen: list[bool] = []
    quick = replace(CHANNELS, finetuning=replace(TUNING, epochs=1))
    carried_out(
        quick,
        task_of(fetched),
        dense,
        tmp_path,
        lambda stage, fraction: seen.append((tmp_path / "checkpoint").exists()),
    )
    assert not any(seen)


def test_the_state_of_another_training_or_a_damaged_one_is_not_used(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, "one")
    kept.save("dense", {"step": 3})
    assert kept.load("dense") == {"key": "one", "step": 3}
    assert Checkpoints(tmp_path, "another").load("dense") is None
    assert kept.load("qat") is None
    (tmp_path / "dense.pt").write_bytes((tmp_path / "dense.pt").read_bytes()[:100])
    assert kept.load("dense") is None
    kept.clear()
    assert not tmp_path.exists()


def test_a_state_that_cannot_be_written_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "Not a directory" in Checkpoints(tmp_path / "file" / "folder", "").save("dense", {})
    (tmp_path / f".dense.{os.getpid()}").symlink_to("/dev/full")  # Linux's disk without a free byte
    assert Checkpoints(tmp_path, "").save("dense", {"weights": torch.zeros(100_000)})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_it_is_time_again_after_so_many_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    kept = Checkpoints(tmp_path, "")
    assert not kept.due()
    now += checkpoint.EVERY_S + 1
    assert kept.due()
    kept.save("dense", {})
    assert not kept.due()


def test_a_narrower_network_is_restored_into_a_whole_one() -> None:
    images = torch.randn(4, 1, 28, 28)
    narrow, whole = Program().build("convnet"), Program().build("convnet")
    ChannelPruning(narrow, Pruning("channel", 0.5, "one_shot"), (images,)).finish()
    restore_network(whole, network_state(narrow))
    assert isinstance(whole.conv2, nn.Conv2d)
    assert (whole.conv2.in_channels, whole.conv2.out_channels) == (8, 16)
    with torch.no_grad():
        assert torch.equal(whole.eval()(images), narrow.eval()(images))
    narrowed = ChannelPruning(whole, Pruning("channel", 0.8, "one_shot"), (images,))
    assert narrowed.finish() > 0
