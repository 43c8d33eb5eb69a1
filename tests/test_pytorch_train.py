"""The training loop and the losses in torch, against the same steps done by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tasks.base import Port, TaskSpec
from tasks.mnist.pytorch import Program, shifted
from tasks.mnist.task import Mnist
from tests.tiny_task import Regions
from trainers.base import Job, Teacher, TrainingError
from trainers.pytorch import device, distill, models, train
from trainers.pytorch.course import Course, open_course
from trainers.pytorch.data import DeviceBatch
from trainers.pytorch.distill import TrainingLoss, divergence, soft_loss
from trainers.pytorch.train import Plan
from trainers.recipe import Distillation, RecipeError

torch.set_num_threads(1)
CPU = torch.device("cpu")
LABELS = torch.tensor([1, 0, 2, 1])
LOGITS = (Port("logits", ("batch", 3), kind="logits"),)


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape or (4, 3), generator=torch.Generator().manual_seed(seed)) * 3


def batch_of(rows: list[int]) -> DeviceBatch:
    chosen = torch.tensor(rows)
    return DeviceBatch({}, LABELS[chosen], chosen)


@pytest.fixture(scope="module")
def task(fetched: Path) -> Mnist:
    return Mnist(TaskSpec("mnist", train_size=1000, validation_size=500), fetched, lambda stage, fraction: None)


def job(task: Any, folder: Path = Path("/nowhere"), **more: Any) -> Job:
    return Job(task, folder, "onnx", device="cpu", **more)


def course_of(task: Any, model: nn.Module, **more: Any) -> Course:
    return open_course(model, job(task, **more), CPU, "")


def mnist_loss() -> TrainingLoss:
    return TrainingLoss(Program(), (Port("logits", ("batch", 10), kind="logits"),))


def built(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Program().build(name).train()


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


def test_the_soft_loss_of_a_map_is_that_of_its_pixels() -> None:
    student, teacher = logits(0, 2, 3, 4, 5), logits(1, 2, 3, 4, 5)
    by_pixel = soft_loss(student.movedim(1, -1).reshape(-1, 3), teacher.movedim(1, -1).reshape(-1, 3), 2.5)
    torch.testing.assert_close(soft_loss(student, teacher, 2.5), by_pixel)
    last = soft_loss(student.movedim(1, -1), teacher.movedim(1, -1), 2.5, axis=3)
    torch.testing.assert_close(last, by_pixel)


def test_several_outputs_are_learned_together() -> None:
    ports = (Port("map", ("batch", 3, "h"), kind="logits"), Port("value", ("batch",)))
    student, teacher = ({"map": logits(i, 2, 3, 4), "value": logits(i + 2, 2)} for i in (0, 1))
    distance = nn.functional.mse_loss(student["value"], teacher["value"])
    soft = divergence(ports, student, teacher, Distillation("soft", 2.0, 0.5))
    torch.testing.assert_close(soft, soft_loss(student["map"], teacher["map"], 2.0) + distance)
    hard = divergence(ports, student, teacher, Distillation("hard", 1.0, 0.5))
    torch.testing.assert_close(hard, nn.functional.cross_entropy(student["map"], teacher["map"].argmax(1)) + distance)


def test_the_training_loss_mixes_teacher_and_labels_by_alpha() -> None:
    student, teacher, batch = logits(0, 2, 3), logits(1), batch_of([3, 1])
    labelled = nn.functional.cross_entropy(student, batch.targets)
    lecture = distill.Cached({"logits": teacher.numpy()}, CPU)

    def loss(kind: str) -> torch.Tensor:
        return TrainingLoss(Program(), LOGITS, Distillation(kind, 2.0, 0.7), lecture)({"logits": student}, batch)

    taught = nn.functional.cross_entropy(student, teacher[batch.rows].argmax(dim=1))
    torch.testing.assert_close(loss("soft"), 0.7 * soft_loss(student, teacher[batch.rows], 2.0) + 0.3 * labelled)
    torch.testing.assert_close(loss("hard"), 0.7 * taught + 0.3 * labelled)
    assert TrainingLoss(Program(), LOGITS)({"logits": student}, batch) == labelled


def test_outputs_that_stay_on_disk_teach_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {"logits": logits(1).numpy()}
    kept = distill.Cached(outputs, CPU)(batch_of([2, 0]))["logits"]
    monkeypatch.setattr(distill, "ON_DEVICE", 0)
    assert torch.equal(distill.Cached(outputs, CPU)(batch_of([2, 0]))["logits"], kept)


def test_a_tasks_own_distillation_is_used() -> None:
    class Own(Program):
        def distill(self, student: Any, teacher: Any, how: Distillation) -> torch.Tensor:
            return how.temperature * (student["logits"] - teacher["logits"]).abs().sum()

    lecture = distill.Cached({"logits": logits(1).numpy()}, CPU)
    student, batch = logits(0, 2, 3), batch_of([3, 1])
    found = TrainingLoss(Own(), LOGITS, Distillation("soft", 2.0, 1.0), lecture)({"logits": student}, batch)
    torch.testing.assert_close(found, 2 * (student - logits(1)[[3, 1]]).abs().sum())


def test_label_smoothing_is_the_losss_own_or_refused() -> None:
    student, batch = logits(0, 2, 3), batch_of([3, 1])
    smooth = TrainingLoss(Program(), LOGITS, label_smoothing=0.2)({"logits": student}, batch)
    torch.testing.assert_close(smooth, nn.functional.cross_entropy(student, batch.targets, label_smoothing=0.2))
    task = Regions()
    with pytest.raises(RecipeError, match=r"finetuning\.label_smoothing: 0\.2, but the task's loss takes none; write"):
        TrainingLoss(task.program("pytorch"), task.info().outputs, label_smoothing=0.2)


def by_hand(task: Mnist, model: nn.Module) -> list[float]:
    """Two epochs of batches of 300 with Adam; the losses, each times its samples."""
    adam = torch.optim.Adam(model.parameters())
    (everything,) = course_of(task, model).train.batches([torch.arange(1000)], job(task))
    shuffler, step, losses = torch.Generator().manual_seed(5), 0, []
    for _ in range(2):
        order = torch.randperm(1000, generator=shuffler)
        for chosen in (order[:300], order[300:600], order[600:900], order[900:]):
            # Eight steps: one to warm up (a tenth, at least one), then the cosine.
            adam.param_groups[0]["lr"] = 1e-3 if step == 0 else 1e-3 * (1 + math.cos(math.pi * (step - 1) / 7)) / 2
            images, labels = everything.inputs["input"][chosen], everything.targets[chosen]
            loss = nn.functional.cross_entropy(model(images), labels)
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item() * len(chosen))
            step += 1
    return losses


class Unaugmented(Program):
    def augments(self, stage: str, step: int) -> bool:
        return False


@pytest.mark.parametrize("micro_batch", [0, 70])
def test_training_in_float32_is_adam_with_this_schedule_by_hand(
    task: Mnist, monkeypatch: pytest.MonkeyPatch, micro_batch: int
) -> None:
    monkeypatch.setattr(device, "half_precision", lambda kind: None)
    fitted, same = built("lenet300", 3), built("lenet300", 3)
    course = course_of(task, fitted)
    plan = Plan("dense", 2, 1e-3, 300, seed=5, micro_batch=micro_batch)
    curves = train.fit(fitted, course, plan, TrainingLoss(Unaugmented(), task.info().outputs))
    losses = by_hand(task, same)
    for one, other in zip(fitted.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert [c["loss"] for c in curves] == pytest.approx([sum(losses[:4]) / 1000, sum(losses[4:]) / 1000], rel=1e-4)
    assert curves[-1]["accuracy"] == course.evaluator.metrics(fitted, course.validation)["accuracy"]
    assert course.notes == ["training data: 3 MB on cpu"]


@pytest.mark.parametrize(("epochs", "steps", "shares"), [(0.25, 5, [0.25]), (1.5, 30, [1, 0.5]), (0.01, 1, [0.05])])
def test_a_fraction_of_an_epoch_is_a_complete_schedule(
    task: Mnist, epochs: float, steps: int, shares: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []

    class Watched(Program):
        def optimizer(self, network: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
            made = torch.optim.SGD(network.parameters(), lr=learning_rate)
            made.register_step_pre_hook(lambda made, *_: rates.append(made.param_groups[0]["lr"]))
            return made

    model = built("lenet300")
    loss_of = TrainingLoss(Watched(), task.info().outputs)
    curves = train.fit(model, course_of(task, model), Plan("dense", epochs, 1e-2, 50, seed=0), loss_of)
    assert rates == [train.learning_rate(step, steps, 1e-2) for step in range(steps)]
    assert [c["epochs"] for c in curves] == pytest.approx(shares)


def test_without_epochs_nothing_is_trained(task: Mnist) -> None:
    model, same = built("lenet300"), built("lenet300")
    assert train.fit(model, course_of(task, model), Plan("fine-tune", 0, 1e-3, 50, seed=0), mnist_loss()) == []
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), same.parameters(), strict=True))


def test_half_precision_learns_as_well_as_float32(task: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = {}
    for kind in (None, torch.bfloat16):
        monkeypatch.setattr(device, "half_precision", lambda _, kind=kind: kind)
        model = built("lenet300")
        plan = Plan("fine-tune", 6, 2e-3, 50, seed=0)
        reached[kind] = train.fit(model, course_of(task, model), plan, mnist_loss())[-1]
    assert reached[None]["accuracy"] > 0.85
    assert abs(reached[None]["accuracy"] - reached[torch.bfloat16]["accuracy"]) <= 0.03


def test_a_loss_that_is_not_finite_ends_training_with_the_remedy(task: Mnist) -> None:
    model = built("lenet300")
    with pytest.raises(TrainingError, match=r"NaN or infinite in dense, step \d+ of 20: lower learning_rate .* 1e\+12"):
        train.fit(model, course_of(task, model), Plan("dense", 2, 1e12, 100, seed=0), mnist_loss())


class Crowded(nn.Module):
    """A network on a device that has room for `room` samples at once while training."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.inner, self.room = built("lenet300"), room
        self.seen: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.append(len(images))
            if len(images) > self.room:
                raise torch.OutOfMemoryError("out of memory")
        return self.inner(images)


def test_without_room_for_a_batch_training_goes_on_with_parts_of_it(
    task: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "half_precision", lambda kind: None)
    told: list[str] = []
    crowded, free = Crowded(40), built("lenet300")
    course = course_of(task, crowded, progress=lambda stage, fraction: told.append(stage))
    plan = Plan("fine-tune", 1, 1e-3, 100, seed=1)
    curves = train.fit(crowded, course, plan, mnist_loss())
    wanted = train.fit(free, course_of(task, free), plan, mnist_loss())
    assert crowded.seen[:6] == [100, 50, 25, 25, 25, 25]
    assert set(crowded.seen[6:]) == {25}
    assert curves[0]["loss"] == pytest.approx(wanted[0]["loss"], rel=1e-4)
    for one, other in zip(crowded.inner.parameters(), free.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
    said = [
        f"fine-tune: out of memory, {now} samples at once instead of {before}" for before, now in ((100, 50), (50, 25))
    ]
    assert [note for note in course.notes if "memory" in note] == said
    assert [stage for stage in told if "memory" in stage] == said


def test_without_room_for_one_sample_training_ends_with_the_remedy(task: Mnist) -> None:
    model = Crowded(0)
    with pytest.raises(TrainingError, match="fine-tune: the cpu has no room for one sample; free its memory"):
        train.fit(model, course_of(task, model), Plan("fine-tune", 1, 1e-3, 8, seed=1), mnist_loss())


def test_evaluation_takes_fewer_samples_at_once_where_there_is_no_room(task: Mnist) -> None:
    class Narrow(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > 150:
                raise torch.OutOfMemoryError("out of memory")
            return images.flatten(1)[:, 300:310]

    course = course_of(task, Narrow())
    course.evaluator.rows = 500
    found = course.evaluator.all_outputs(Narrow(), course.validation, 10**9)
    assert found is not None
    (whole,) = course.validation.batches([torch.arange(500)], job(task))
    assert np.array_equal(found["logits"], whole.inputs["input"].flatten(1)[:, 300:310].numpy())
    assert course.evaluator.rows == 125


def test_the_average_of_the_weights_is_what_the_model_takes(task: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "half_precision", lambda kind: None)
    followed: list[list[torch.Tensor]] = []

    class Followed(Unaugmented):
        def optimizer(self, network: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
            made = torch.optim.SGD(network.parameters(), lr=learning_rate)
            made.register_step_post_hook(
                lambda *_: followed.append([each.detach().clone() for each in network.parameters()])
            )
            return made

    model = built("convnet")
    average = [each.detach().clone() for each in model.parameters()]
    course, plan = course_of(task, model), Plan("fine-tune", 1, 0.05, 100, seed=1, average=0.7)
    curves = train.fit(model, course, plan, TrainingLoss(Followed(), task.info().outputs))
    for step, weights in enumerate(followed, start=1):
        decay = min(0.7, (1 + step) / (10 + step))
        average = [decay * kept + (1 - decay) * now for kept, now in zip(average, weights, strict=True)]
    assert len(followed) == 10
    for kept, wanted in zip(model.parameters(), average, strict=True):
        torch.testing.assert_close(kept, wanted, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(followed[-1][0], average[0])
    assert curves[-1]["accuracy"] == course.evaluator.metrics(model, course.validation)["accuracy"]


def test_weight_decay_spares_biases_and_norms() -> None:
    made = train._adam(built("convnet"), Plan("dense", 1, 1e-3, 10, 0, weight_decay=0.05))
    assert isinstance(made, torch.optim.AdamW)
    dims = [{(each.dim() > 1) for each in group["params"]} for group in made.param_groups]
    assert dims == [{True}, {False}]
    assert [group["weight_decay"] for group in made.param_groups] == [0.05, 0.0]
    assert sum(each.numel() for group in made.param_groups for each in group["params"]) == 24_058


def test_what_is_not_trained_stays_as_it_is(task: Mnist) -> None:
    model, before = built("convnet"), built("convnet").state_dict()
    models.freeze(model, models.weights_to_freeze(model, Program().keep(model)))
    train.fit(model, course_of(task, model), Plan("fine-tune", 0.5, 1e-2, 100, seed=1), mnist_loss())
    changed = {name for name, _ in model.named_parameters() if not torch.equal(model.state_dict()[name], before[name])}
    assert changed == {"fc.weight", "fc.bias", *(f"bn{i}.{what}" for i in (1, 2, 3) for what in ("weight", "bias"))}


def test_a_task_of_maps_and_values_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Regions()
    program = task.program("pytorch")
    torch.manual_seed(0)
    model = program.build("patches").train()
    course = course_of(task, model)
    curves = train.fit(model, course, Plan("dense", 8, 1e-2, 40, seed=0), TrainingLoss(program, task.info().outputs))
    assert curves[-1]["pixel_accuracy"] > 0.95 > 0.8 > curves[0]["pixel_accuracy"]
    assert curves[-1]["share_error"] < 0.1


def test_a_live_teacher_teaches_as_its_outputs_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "half_precision", lambda kind: None)
    task = Regions()
    program, info = task.program("pytorch"), task.info()
    teacher = program.build("given")
    course = course_of(task, teacher)
    outputs = course.evaluator.all_outputs(teacher, course.train, 10**9)
    students = []
    for taught in (Teacher(outputs), Teacher(None, None)):
        torch.manual_seed(1)
        student = program.build("patches").train()
        lecture = distill.lecture_of(taught, job(task), CPU, teacher)
        assert lecture is not None
        loss_of = TrainingLoss(program, info.outputs, Distillation("soft", 2.0, 1.0), lecture)
        assert loss_of.augments == (taught.outputs is None)
        train.fit(student, course, Plan("fine-tune", 1, 1e-2, 50, seed=0), loss_of)
        found = course.evaluator.all_outputs(student.eval(), course.validation, 10**9)
        assert found is not None
        students.append(found)
    for port in info.outputs:
        np.testing.assert_allclose(students[0][port.name], students[1][port.name], atol=1e-3, rtol=1e-3)


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


@pytest.mark.parametrize("name", ["tpu", "cuda"])
def test_a_device_that_is_not_there_is_refused_with_the_choices(name: str) -> None:
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(RecipeError, match=r"device: .*choose"):
        device.device_of(name)
    assert device.device_of("cpu") == CPU
