"""Low-rank changes: equal to the sum by hand, gone in the file, and zeros stay zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from tests.tiny_task import Regions
from trainers.base import Dense, DenseSpec, Job, Teacher, check, task_digest
from trainers.pytorch import models
from trainers.pytorch.lora import LowRank, low_rank
from trainers.pytorch.trainer import Trainer
from trainers.recipe import Distillation, FineTuning, Pruning, Recipe, RecipeError

torch.set_num_threads(1)


class Mixed(nn.Module):
    """Every kind of weight that changes, and an LSTM, which does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 8, 3, groups=1), nn.ConvTranspose2d(8, 6, 2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.lstm, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        rows = self.up(self.conv(maps)).flatten(2).transpose(1, 2)
        rows = rows + self.attention(rows, rows, rows, need_weights=False)[0]
        return self.head(self.lstm(rows)[0][:, -1])


def test_what_is_trained_is_the_sum_by_hand_and_then_a_plain_weight() -> None:
    torch.manual_seed(0)
    model, given = Mixed().train(), torch.randn(4, 3, 8, 8)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    exact = model(given).detach()
    frozen = models.weights_to_freeze(model, ("head",))
    with low_rank(model, frozen, 2) as changed:
        assert sorted(changed) == ["attention.in_proj_weight", "attention.out_proj.weight", "conv.weight", "up.weight"]
        models.freeze(model, frozen)
        torch.testing.assert_close(model(given), exact, atol=1e-6, rtol=1e-5)
        optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            model(given).square().mean().backward()
            optimizer.step()
        parts = {name: part for name, part in model.named_modules() if isinstance(part, LowRank)}
        sums = {}
        for name, part in parts.items():
            owner = name.split(".parametrizations.")
            weight = f"{owner[0]}.{owner[1].split('.')[0]}"
            sums[weight] = before[weight] + (part.b.detach() @ part.a.detach()).reshape(before[weight].shape)
        trained = model(given).detach()
    assert sorted(sums) == sorted(changed)
    after = dict(model.named_parameters())
    assert set(after) == set(before), "nothing is left of the parametrization"
    for name, wanted in sums.items():
        torch.testing.assert_close(after[name].detach(), wanted, atol=1e-7, rtol=0)
        assert torch.linalg.matrix_rank((after[name] - before[name]).flatten(1), atol=1e-5) == 2
    torch.testing.assert_close(model(given), trained, atol=1e-6, rtol=1e-5)
    for name in ("lstm.weight_ih_l0", "lstm.weight_hh_l0"):
        assert torch.equal(after[name], before[name])
    for name in ("head.weight", "conv.bias"):
        assert not torch.equal(after[name], before[name])


@pytest.fixture(scope="module")
def task() -> Regions:
    return Regions()


@pytest.fixture(scope="module")
def dense(task: Regions, tmp_path_factory: pytest.TempPathFactory) -> Dense:
    spec = DenseSpec("pytorch", "given", task=task_digest(task.info()))
    return Trainer().dense(spec, Job(task, tmp_path_factory.mktemp("dense"), "onnx", device="cpu"))


def tuned(**changes: object) -> FineTuning:
    return FineTuning(epochs=2, batch_size=40, trainable="lora", lora_rank=3, learning_rate=1e-2, **changes)  # type: ignore[arg-type]


def test_a_trial_changes_weights_by_that_rank_and_its_file_has_no_further_operators(
    task: Regions, dense: Dense, tmp_path: Path
) -> None:
    plain = Recipe("given", finetuning=FineTuning(epochs=0))
    lora = Recipe("given", distillation=Distillation("soft", 2.0, 0.1), finetuning=tuned())
    found = []
    for name, recipe in (("plain", plain), ("lora", lora)):
        (tmp_path / name).mkdir()
        job = Job(task, tmp_path / name, "onnx", device="cpu")
        made = Trainer().compress(recipe, dense, Teacher.of(dense), job)
        found.append(onnx.load(made.file).graph)
    assert "lora: 2 weights are changed by matrices of rank 3" in made.notes
    assert [node.op_type for node in found[0].node] == [node.op_type for node in found[1].node]
    pairs = [
        [numpy_helper.to_array(tensor) for tensor in graph.initializer if list(tensor.dims) == [16, 16, 1, 1]]
        for graph in found
    ]
    (before,), (after,) = pairs
    assert np.linalg.matrix_rank((after - before).reshape(16, 16), tol=1e-5) == 3
    assert made.curves[-1]["loss"] < made.curves[0]["loss"]


@pytest.mark.parametrize("granularity", ["unstructured", "channel"])
def test_it_is_pruned_before_and_stays_so(task: Regions, dense: Dense, tmp_path: Path, granularity: str) -> None:
    recipe = Recipe("given", pruning=Pruning(granularity, 0.5), finetuning=tuned())
    made = Trainer().compress(recipe, dense, None, Job(task, tmp_path, "onnx", device="cpu"))
    assert made.pruned == pytest.approx(0.5, abs=0.02)
    assert made.sparsity >= 0.45


def test_recipes_that_do_the_same_are_the_same() -> None:
    gradual, at_once = (
        Recipe("given", pruning=Pruning("channel", 0.5, schedule), finetuning=tuned())
        for schedule in ("gradual", "one_shot")
    )
    assert gradual.digest() == at_once.digest()
    ranks = [Recipe("given", pruning=Pruning("channel", 0.5), finetuning=FineTuning(lora_rank=r)) for r in (2, 8)]
    assert ranks[0].digest() == ranks[1].digest()
    old = Recipe("given", pruning=Pruning("channel", 0.5), finetuning=FineTuning())
    assert "lora_rank" not in old.essence()["finetuning"]


def test_what_cannot_be_is_refused(task: Regions, dense: Dense, tmp_path: Path) -> None:
    recipe = Recipe("given", pruning=Pruning("unstructured", 0.5, score="fisher"), finetuning=tuned())
    with pytest.raises(RecipeError, match="lora trains no weight itself"):
        Trainer().compress(recipe, dense, None, Job(task, tmp_path, "onnx", device="cpu"))
    with pytest.raises(RecipeError, match="the tensorflow trainer has no 'lora'; choose from all, norm_bias_head"):
        check(Recipe("patches", "tensorflow", pruning=Pruning("unstructured", 0.5), finetuning=tuned()), task.info())
    with pytest.raises(RecipeError, match=r"finetuning\.lora_rank: 0 must lie between 1 and 1024"):
        FineTuning(lora_rank=0)
