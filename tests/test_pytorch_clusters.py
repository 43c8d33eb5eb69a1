"""Few distinct values per weight tensor in the PyTorch trainer: exact, trained, and in the exported file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from packing.measure import download_bytes
from runtimes import onnxruntime
from runtimes.base import Artifact
from tasks.base import TaskSpec
from tasks.mnist.pytorch import Program
from tasks.mnist.task import Mnist
from trainers.base import DenseSpec, Job
from trainers.pytorch.clusters import Shared, share
from trainers.pytorch.masks import HeldMasks
from trainers.pytorch.trainer import Trainer
from trainers.recipe import FineTuning, Pruning, Quantization, Recipe, RecipeError


@given(seed=st.integers(0, 100), clusters=st.sampled_from((8, 16, 32)), density=st.floats(0.0, 1.0))
@settings(max_examples=25, deadline=None)
def test_every_weight_is_the_nearest_of_few_values_and_zeros_stay(seed: int, clusters: int, density: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(40, 30, generator=rng) * (torch.rand(40, 30, generator=rng) < density)
    shared = Shared(values, clusters)
    with torch.no_grad():
        shared.centres += 0.2 * torch.randn(shared.centres.shape, generator=rng)  # as training moves them, past others
        found = shared(values)
    assert torch.equal(found[values == 0], values[values == 0])
    assert len(found[values != 0].unique()) <= clusters
    error = (values[..., None] - shared.centres).abs().min(-1).values
    torch.testing.assert_close((found - values).abs()[values != 0], error[values != 0])


def test_gradients_reach_the_shared_values_and_the_weights() -> None:
    values = torch.tensor([0.0, 1.0, 1.1, -2.0], requires_grad=True)
    shared = Shared(values.detach(), 2)
    (shared(values) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    low, high = shared.centres.grad[shared.centres.detach().argsort()]
    assert (float(low), float(high)) == (4.0, 5.0)
    assert values.grad is not None
    assert values.grad[1:].tolist() == [2.0, 3.0, 4.0]


def test_masks_hold_and_the_values_stay_in_the_network() -> None:
    torch.manual_seed(0)
    model = Program().build("lenet300")
    masks = {"fc1.weight": (torch.rand_like(model.get_parameter("fc1.weight")) < 0.1).float()}
    with torch.no_grad():
        model.get_parameter("fc1.weight").mul_(masks["fc1.weight"])

    def fit(held: HeldMasks) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(8, 1, 28, 28)).square().mean().backward()
            optimizer.step()
            held.after_step()

    share(model, 8, masks, fit)
    weight = model.get_parameter("fc1.weight")
    assert not weight[masks["fc1.weight"] == 0].any()
    assert len(weight.unique()) <= 9
    assert len(model.get_parameter("fc3.weight").unique()) <= 8


def test_a_file_of_few_values_takes_fewer_bytes_and_says_what_the_network_said(fetched: Path, tmp_path: Path) -> None:
    task = Mnist(TaskSpec("mnist", train_size=600, validation_size=200), fetched, lambda stage, fraction: None)

    def job(name: str) -> Job:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        return Job(task, folder, "onnx", device="cpu", threads=1)

    dense = Trainer().dense(DenseSpec("pytorch", "lenet300", 1, 2e-3, 50), job("dense"))
    recipe = Recipe("lenet300", pruning=Pruning("unstructured", 0.9), finetuning=FineTuning(1, batch_size=50))
    clustered = replace(recipe, quantization=Quantization(clusters=8))
    plain, few = (Trainer().compress(each, dense, None, job(each.digest())) for each in (recipe, clustered))
    for tensor in onnx.load(few.file).graph.initializer:
        if len(tensor.dims) > 1:
            assert len(np.unique(numpy_helper.to_array(tensor))) <= 9
    assert few.sparsity == pytest.approx(0.9, abs=0.01)
    assert download_bytes(few.file.read_bytes()) < 0.6 * download_bytes(plain.file.read_bytes())
    session = onnxruntime.load(Artifact.of(few.file), threads=1)
    said = session.run({"input": task.data("validation").batch(np.arange(few.rows)).inputs["input"]})["logits"]
    np.testing.assert_allclose(said, few.outputs["logits"], atol=1e-4, rtol=1e-4)
    with pytest.raises(RecipeError, match="8 with qat_int8, which has a grid of its own"):
        Trainer().compress(replace(clustered, quantization=Quantization("qat_int8", 8)), dense, None, job("bad"))
