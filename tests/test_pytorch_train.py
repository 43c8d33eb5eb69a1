"""The training loop and the losses in torch, against the same steps done by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tasks.base import TaskSpec
from tasks.mnist.data import DataSet, Split, normalized
from tasks.mnist.pytorch import Program, shifted
from tasks.mnist.task import Mnist
from trainers.base import Job, TrainingError
from trainers.pytorch import models, train
from trainers.pytorch.distill import TrainingLoss, soft_loss
from trainers.pytorch.train import Plan, Resident
from trainers.recipe import Distillation, RecipeError

torch.set_num_threads(1)
CPU = torch.device("cpu")
LABELS = torch.tensor([1, 0, 2, 1])


def logits(seed: int, rows: int = 4) -> torch.Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.fixture(scope="module")
def task(fetched: Path) -> Mnist:
    return Mnist(TaskSpec("mnist", train_size=1000, validation_size=500), fetched, lambda stage, fraction: None)


@pytest.fixture(scope="module")
def data(task: Mnist) -> DataSet:
    return task.dataset


@pytest.fixture(scope="module")
def resident(data: DataSet) -> Resident:
    return train.resident(data, CPU)


def job(task: Mnist, folder: Path = Path()) -> Job:
    return Job(task, folder, "onnx", device="cpu")


@pytest.mark.parametrize(("name", "parameters"), [("lenet5", 431_080), ("lenet300", 266_610), ("convnet", 24_058)])
def test_the_networks_have_the_published_sizes(name: str, parameters: int) -> None:
    assert models.trainable(Program().build(name)) == parameters


@given(st.integers(1, 400), st.floats(1e-5, 1.0))
def test_the_learning_rate_warms_up_and_falls(steps: int, peak: float) -> None:
    rates = [train.learning_rate(step, steps, peak) for step in range(steps)]
    warm = max(1, round(train.WARM_UP * steps))
    assert all(0 < rate <= peak * (1 + 1e-9) for rate in rates)
    assert rates[:warm] == sorted(rates[:warm])
    assert rates[warm:] == sorted(rates[warm:], reverse=True)
    assert train.learning_rate(steps, steps, peak) == pytest.approx(0.0, abs=1e-9 * peak) or steps == 1


def test_the_soft_loss_is_hintons_by_hand() -> None:
    student, teacher, temperature = logits(0).double(), logits(1).double(), 4.0
    p = np.exp(teacher.numpy() / temperature)
    p /= p.sum(axis=1, keepdims=True)
    q = np.exp(student.numpy() / temperature)
    q /= q.sum(axis=1, keepdims=True)
    by_hand = temperature**2 * np.mean(np.sum(p * (np.log(p) - np.log(q)), axis=1))
    assert soft_loss(student, teacher, temperature).item() == pytest.approx(by_hand, rel=1e-12)


@given(st.integers(0, 50), st.floats(0.5, 20.0))
def test_the_soft_loss_is_a_divergence(seed: int, temperature: float) -> None:
    teacher = logits(seed).double()
    assert soft_loss(teacher, teacher, temperature).item() == pytest.approx(0.0, abs=1e-9)
    assert soft_loss(logits(seed + 1).double(), teacher, temperature).item() > 0


def test_the_training_loss_mixes_teacher_and_labels_by_alpha() -> None:
    student, teacher, chosen = logits(0, 2), logits(1), torch.tensor([3, 1])
    labelled = nn.functional.cross_entropy(student, LABELS[chosen])
    soft = TrainingLoss(LABELS, Distillation("soft", 2.0, 0.7), teacher)(student, chosen)
    hard = TrainingLoss(LABELS, Distillation("hard", 2.0, 0.7), teacher)(student, chosen)
    taught = nn.functional.cross_entropy(student, teacher[chosen].argmax(dim=1))
    torch.testing.assert_close(soft, 0.7 * soft_loss(student, teacher[chosen], 2.0) + 0.3 * labelled)
    torch.testing.assert_close(hard, 0.7 * taught + 0.3 * labelled)
    assert TrainingLoss(LABELS, Distillation(), None)(student, chosen) == labelled


def test_training_in_float32_is_adam_with_this_schedule_by_hand(
    task: Mnist, resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "half_precision", lambda kind: None)
    loss_of = TrainingLoss(resident.labels, Distillation(), None)
    torch.manual_seed(3)
    fitted = Program().build("lenet300")
    curves = train.fit(fitted, resident, Plan("dense", 2, 1e-3, 300, seed=5), job(task), loss_of)

    torch.manual_seed(3)
    by_hand = Program().build("lenet300")
    adam = torch.optim.Adam(by_hand.parameters())
    shuffler, step, losses = torch.Generator().manual_seed(5), 0, []
    for _ in range(2):
        order = torch.randperm(1000, generator=shuffler)
        for chosen in (order[:300], order[300:600], order[600:900], order[900:]):
            # Eight steps: one to warm up (a tenth, at least one), then the cosine.
            adam.param_groups[0]["lr"] = 1e-3 if step == 0 else 1e-3 * (1 + math.cos(math.pi * (step - 1) / 7)) / 2
            loss = nn.functional.cross_entropy(by_hand(resident.images[chosen]), resident.labels[chosen])
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item() * len(chosen))
            step += 1
    for one, other in zip(fitted.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert [c["loss"] for c in curves] == pytest.approx([sum(losses[:4]) / 1000, sum(losses[4:]) / 1000], rel=1e-4)
    assert curves[-1]["accuracy"] == pytest.approx(train.accuracy(fitted, resident))


def test_half_precision_learns_as_well_as_float32(
    task: Mnist, resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = {}
    for kind in (None, torch.bfloat16):
        monkeypatch.setattr(train, "half_precision", lambda _, kind=kind: kind)
        torch.manual_seed(0)
        model = Program().build("lenet300")
        loss_of = TrainingLoss(resident.labels, Distillation(), None)
        reached[kind] = train.fit(model, resident, Plan("dense", 6, 2e-3, 50, seed=0), job(task), loss_of)[-1]
    assert reached[None]["accuracy"] > 0.85
    assert abs(reached[None]["accuracy"] - reached[torch.bfloat16]["accuracy"]) <= 0.03


def test_a_loss_that_is_not_finite_ends_training_with_the_remedy(task: Mnist, resident: Resident) -> None:
    loss_of = TrainingLoss(resident.labels, Distillation(), None)
    with pytest.raises(TrainingError, match=r"NaN or infinite in dense, step \d+ of 20: lower learning_rate .* 1e\+12"):
        train.fit(Program().build("lenet300"), resident, Plan("dense", 2, 1e12, 100, seed=0), job(task), loss_of)


def test_a_shifted_batch_has_moved_by_at_most_a_pixel() -> None:
    images = torch.randn(3, 1, 28, 28)
    shuffler, seen = torch.Generator().manual_seed(0), set()
    for _ in range(80):
        moved = shifted(images, shuffler)
        inside = moved[:, :, 1:-1, 1:-1]
        matches = [
            (right, down)
            for right in (0, 1, 2)
            for down in (0, 1, 2)
            if torch.equal(inside, images[:, :, down : down + 26, right : right + 26])
        ]
        assert len(matches) == 1
        assert moved.shape == images.shape
        seen.update(matches)
    assert len(seen) == 9


def test_the_resident_images_are_the_normalized_ones(data: DataSet, resident: Resident) -> None:
    assert np.array_equal(resident.images.numpy(), normalized(data.train.images, "NCHW"))
    assert np.array_equal(resident.validation_labels.numpy(), data.validation.labels)
    assert train.resident(data, CPU) is resident
    other = DataSet("mnist", data.train, Split(data.validation.images[:9], data.validation.labels[:9]), "another")
    assert len(train.resident(other, CPU).validation_labels) == 9


@pytest.mark.parametrize("name", ["tpu", "cuda"])
def test_a_device_that_is_not_there_is_refused_with_the_choices(name: str) -> None:
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(RecipeError, match=r"device: .*choose"):
        train.device_of(name)
    assert train.device_of("cpu") == CPU
