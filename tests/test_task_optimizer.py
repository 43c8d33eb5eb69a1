"""An optimizer of one's own: a LightningModule's configure_optimizers, or a function of the user's file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.base import Task, TaskError, TaskSpec
from tasks.load import load, problems
from tests import own_cases
from trainers.base import DenseSpec, Job, TrainingError
from trainers.pytorch.trainer import Trainer
from trainers.recipe import FineTuning, Pruning, Quantization, Recipe

CONFIGURED = """
    def configure_optimizers(self):
        bias = [p for name, p in self.named_parameters() if p.dim() == 1]
        weight = [p for name, p in self.named_parameters() if p.dim() > 1]
        optimizer = torch.optim.SGD([{"params": weight, "lr": 0.1}, {"params": bias, "lr": 0.2}], momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}


class Data("""


def configured(folder: Path, configure: str = CONFIGURED) -> TaskSpec:
    """(d) of docs/own-model.md, with an optimizer; the network is the module, or its child where `self.layers` is."""
    spec = own_cases.lightning(folder)
    file = folder / "lit.py"
    file.write_text(file.read_text().replace("\n\nclass Data(", configure, 1))
    return dataclasses.replace(spec, optimizer="configure_optimizers")


def job(task: Task, folder: Path) -> Job:
    """What a trainer is given, in a folder of its own."""
    folder.mkdir()
    return Job(task, folder, "onnx", device="cpu")


@pytest.mark.parametrize("child", [False, True])
def test_what_lightning_configures_trains_every_stage(
    child: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = configured(tmp_path)
    if child:
        text = (tmp_path / "lit.py").read_text().replace("(self(x), y)", "(self.layers(x), y)")
        (tmp_path / "lit.py").write_text(text)
    used: list[list[float]] = []
    step = torch.optim.SGD.step

    def seen(self: torch.optim.SGD, *args: object) -> object:
        used.append([group["lr"] for group in self.param_groups])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", seen)
    task = load(spec, tmp_path / "cache", own_cases.quiet)
    name = task.info().models["pytorch"][0]
    dense = Trainer().dense(
        DenseSpec("pytorch", name, epochs=2, learning_rate=0.05, batch_size=32), job(task, tmp_path / "dense")
    )
    stages = {"dense": len(used)}
    tuning = FineTuning(epochs=1, qat_epochs=1, learning_rate=0.05, batch_size=32)
    recipe = Recipe(name, pruning=Pruning("channel", 0.5), quantization=Quantization("qat_int8"), finetuning=tuning)
    Trainer().compress(recipe, dense, None, job(task, tmp_path / "trial"))
    assert stages["dense"] == 8  # two epochs of four batches
    assert len(used) == 8 + 4 + 4
    assert max(lr for lrs in used for lr in lrs) == pytest.approx(0.05)  # the recipe's, for the largest group
    assert all(bias == pytest.approx(2 * weight) for weight, bias in used)


OWN = """

def optimizer(model, learning_rate):
    return torch.optim.Adam(model.parameters(), learning_rate, betas=(0.5, 0.99))
"""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("", "", None),
        ("model.parameters()", "nn.Linear(2, 2).parameters()", "holds other parameters than those of the network"),
        ("return torch", "torch", r"optimizer\(\) returned NoneType; return a torch.optim.Optimizer"),
        ("return torch", "return 1 / 0 and torch", r"ZeroDivisionError.*unet.py:\d+"),
    ],
)
def test_a_function_of_the_file(old: str, new: str, says: str | None, tmp_path: Path) -> None:
    (tmp_path / "unet.py").write_text(own_cases.SEGMENTER + OWN.replace(old, new))
    task = load(TaskSpec(name="unet.py", folder=str(tmp_path)), tmp_path / "cache", own_cases.quiet)
    spec = DenseSpec("pytorch", task.info().models["pytorch"][0], epochs=1, batch_size=20)
    if says is None:
        Trainer().dense(spec, job(task, tmp_path / "dense"))
        return
    with pytest.raises((TaskError, TrainingError), match=says):
        Trainer().dense(spec, job(task, tmp_path / "dense"))


def test_a_variable_of_that_name_is_not_the_tasks(tmp_path: Path) -> None:
    (tmp_path / "unet.py").write_text(own_cases.SEGMENTER + "\noptimizer = torch.optim.Adam(model().parameters())\n")
    task = load(TaskSpec(name="unet.py", folder=str(tmp_path)), tmp_path / "cache", own_cases.quiet)
    assert not hasattr(task.program("pytorch"), "optimizer")


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"pruning": Pruning("unstructured", 0.5, score="fisher")}, "fisher needs Adam's moments; the task has SGD"),
        (
            {"pruning": Pruning("unstructured", 0.5), "finetuning": FineTuning(epochs=1, weight_decay=0.1)},
            "an optimizer of its own, which sets",
        ),
    ],
)
def test_what_needs_our_adam_is_refused(recipe: dict[str, Any], says: str, tmp_path: Path) -> None:
    task = load(configured(tmp_path), tmp_path / "cache", own_cases.quiet)
    name = task.info().models["pytorch"][0]
    dense = Trainer().dense(DenseSpec("pytorch", name, epochs=1, batch_size=32), job(task, tmp_path / "dense"))
    with pytest.raises(TrainingError, match=says):
        Trainer().compress(Recipe(name, **recipe), dense, None, job(task, tmp_path / "trial"))


def test_several_optimizers_and_mistakes_in_the_study_are_told(tmp_path: Path) -> None:
    two = CONFIGURED.replace('{"optimizer": optimizer, "lr_scheduler": torch', "[optimizer, optimizer]\n        {torch")
    two = two.replace("(optimizer, 1)}", "(optimizer, 1)}")
    spec = configured(tmp_path, two)
    task = load(spec, tmp_path / "cache", own_cases.quiet)
    program = task.program("pytorch")
    network = program.build(task.info().models["pytorch"][0])
    with pytest.raises(TaskError, match=r"configure_optimizers\(\) returned 2 optimizers; return one"):
        program.optimizer(network, 0.1)
    (said,) = problems(dataclasses.replace(spec, optimizer="configure"))
    assert said == "optimizer: 'configure' is not valid; write FILE.py:NAME or configure_optimizers"
    (said,) = problems(dataclasses.replace(own_cases.onnx(tmp_path), optimizer="lit.py:Net"))
    assert "not trained by PyTorch; leave it out" in said
