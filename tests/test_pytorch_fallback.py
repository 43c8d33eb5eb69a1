"""A network that torch.export cannot capture: its float file by TorchScript, its integers by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from runtimes.base import Artifact
from search.trial.evaluate import quality
from tasks.base import TaskError
from tests.tiny_task import Regions, torch_program
from trainers.base import Dense, DenseSpec, Job, task_digest
from trainers.pytorch.trainer import Trainer
from trainers.recipe import FineTuning, Pruning, Quantization, Recipe

torch.set_num_threads(1)


def built(decide: str) -> nn.Module:
    """The task's network, which looks at what it found before it answers."""
    inner = torch_program().build("given")

    class ByTorch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, picture: torch.Tensor, colour: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if picture.abs().max() > 100.0:  # raw pixels
                picture = picture / 255.0
            found: tuple[torch.Tensor, torch.Tensor] = self.inner(picture, colour)
            return found

    class ByNumpy(ByTorch):
        def forward(self, picture: torch.Tensor, colour: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            largest = float(np.abs(picture.numpy()).max())
            found: tuple[torch.Tensor, torch.Tensor] = self.inner(picture / largest, colour)
            return found

    return (ByTorch if decide == "torch" else ByNumpy)().eval()


class Deciding(Regions):
    """`decide`: by torch, which TorchScript compiles, or by numpy, which nothing does."""

    def __init__(self, decide: str) -> None:
        super().__init__()
        self.decide = decide

    def program(self, trainer: str) -> Any:
        program: Any = super().program(trainer)
        program.build = lambda model: built(self.decide)
        program.keep = lambda network: ("inner.map", "inner.share")
        return program


def compressed(decide: str, folder: Path, scheme: str, **parts: Any) -> tuple[Deciding, Any]:
    task = Deciding(decide)
    (folder / "dense").mkdir()
    spec = DenseSpec("pytorch", "given", task=task_digest(task.info()))
    dense: Dense = Trainer().dense(spec, Job(task, folder / "dense", "onnx", device="cpu"))
    recipe = Recipe("given", quantization=Quantization(scheme), finetuning=FineTuning(epochs=1, batch_size=80), **parts)
    return task, Trainer().compress(recipe, dense, None, Job(task, folder, "onnx", device="cpu"))


@pytest.mark.parametrize("scheme", ["none", "static_int8", "qat_int8"])
def test_it_is_exported_and_quantized_all_the_same_and_the_way_is_told(scheme: str, tmp_path: Path) -> None:
    task, made = compressed("torch", tmp_path, scheme, pruning=Pruning("channel", 0.4, "one_shot"))
    operators = [node.op_type for node in onnx.load(made.file).graph.node]
    assert "If" in operators
    assert any("exported by TorchScript's compiler" in note for note in made.notes)
    assert ("QuantizeLinear" in operators) == (scheme != "none")
    told = [note for note in made.notes if note.startswith("int8 by onnxruntime.quantization")]
    assert len(told) == (scheme != "none")
    assert all("decides by the values of its data: `if picture.abs().max() > 100.0:" in note for note in told)
    assert any("after training" in note for note in told) == (scheme == "qat_int8")
    metrics, agreement = quality("onnxruntime", Artifact.of(made.file), made, task, lambda: None)
    assert agreement > 0.9
    assert metrics["pixel_accuracy"] > 0.3
    assert made.pruned > 0.2


def test_what_no_exporter_reads_fails_with_the_users_line(tmp_path: Path) -> None:
    with pytest.raises(TaskError) as raised:
        compressed("numpy", tmp_path, "static_int8")
    file, line = raised.value.place.rsplit(":", 1)
    assert (file, "largest = float(") == (__file__, Path(file).read_text().splitlines()[int(line) - 1].strip()[:16])
