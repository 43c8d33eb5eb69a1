"""Pruning in torch: the cubic ramp, masks, 2:4 patterns, channels; compared with the same steps by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tasks.mnist.pytorch import MODELS, Program
from trainers.base import TrainingError, narrowed
from trainers.pytorch import models, prune
from trainers.recipe import Pruning

torch.set_num_threads(1)
EXAMPLE = torch.zeros(2, 1, 28, 28)
fractions = st.floats(0.0, 1.0)
shapes = st.tuples(st.integers(1, 6), st.integers(1, 19))


def weights_of(shape: tuple[int, ...], seed: int) -> dict[str, torch.Tensor]:
    return {"layer": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}


@given(fractions, fractions, st.floats(0.0, 0.99))
def test_the_ramp_only_tightens_and_ends_at_the_target(one: float, other: float, final: float) -> None:
    assert (prune.ramp(0.0, final), prune.ramp(1.0, final)) == (0.0, final)
    assert prune.ramp(min(one, other), final) <= prune.ramp(max(one, other), final) <= final


def test_the_ramp_is_the_published_cubic() -> None:
    # Zhu & Gupta, equation 1, with s_i = 0, s_f = 0.9: half way an eighth of the way is left.
    assert prune.ramp(0.5, 0.9) == pytest.approx(0.9 - 0.9 * 0.5**3)


@given(shapes, st.floats(0.0, 0.99), st.integers(0, 99))
def test_magnitude_masks_drop_the_smallest_and_as_many_as_asked(
    shape: tuple[int, int], sparsity: float, seed: int
) -> None:
    weights = weights_of(shape, seed) | {"other": torch.randn(7, generator=torch.Generator().manual_seed(seed + 1))}
    masks = prune.magnitude_masks(weights, sparsity)
    every = np.concatenate([w.abs().flatten().numpy() for w in weights.values()])
    kept = np.concatenate([m.flatten().numpy() for m in masks.values()]) == 1
    assert (~kept).sum() == round(sparsity * every.size)
    assert every[~kept].max(initial=0.0) <= every[kept].min(initial=np.inf)
    assert {name: mask.shape for name, mask in masks.items()} == {name: w.shape for name, w in weights.items()}


def test_magnitude_masks_take_no_more_than_asked_of_equal_weights() -> None:
    assert prune.magnitude_masks({"layer": torch.zeros(10)}, 0.3)["layer"].sum() == 7


@given(shapes, st.integers(0, 99))
def test_pattern_masks_keep_two_of_four_neighbours(shape: tuple[int, int], seed: int) -> None:
    weight = weights_of(shape, seed)["layer"]
    mask = prune.pattern_masks({"layer": weight})["layer"]
    for row, kept in zip(weight.abs().numpy(), mask.numpy() == 1, strict=True):
        for start in range(0, len(row), 4):
            group, stays = row[start : start + 4], kept[start : start + 4]
            assert stays.sum() == len(group) - len(group) // 2
            assert group[~stays].max(initial=0.0) <= group[stays].min()


def test_the_neighbours_of_a_convolution_are_its_input_channels() -> None:
    weight = torch.rand(3, 8, 5, 5) + 0.1
    kept = prune.pattern_masks({"conv": weight})["conv"].unflatten(1, (2, 4)).sum(dim=2)
    assert torch.equal(kept, torch.full_like(kept, 2.0))


@settings(max_examples=20)
@given(fractions, st.integers(0, 99))
def test_a_partial_pattern_is_part_of_the_whole_one(share: float, seed: int) -> None:
    weights = weights_of((6, 16), seed)
    partial, whole = (prune.pattern_masks(weights, s)["layer"] for s in (share, 1.0))
    assert torch.all(partial >= whole)
    assert int((partial == 0).sum()) == round(share * 48)


@pytest.mark.parametrize("schedule", ["one_shot", "gradual"])
@pytest.mark.parametrize(("granularity", "wanted"), [("unstructured", 0.8), ("n_m", 0.5)])
def test_masks_hold_through_every_step(granularity: str, schedule: str, wanted: float) -> None:
    model = Program().build("lenet300")
    masked = prune.MaskedPruning(model, Pruning(granularity, 0.8, schedule))
    reached = []
    for step in range(15):
        assert masked.before_step(step, 15) is False
        before = prune.sparsity(masked.weights)
        with torch.no_grad():
            for weight in masked.weights.values():
                weight.add_(torch.randn_like(weight), alpha=0.01)
        masked.after_step()
        assert prune.sparsity(masked.weights) == before
        reached.append(before)
    assert reached == sorted(reached)
    assert reached[9] == pytest.approx(wanted, abs=prune.TOLERANCE)  # the ramp ends after 60 % of the steps
    assert reached[0] == pytest.approx(wanted if schedule == "one_shot" else 0.0, abs=prune.TOLERANCE)
    masks = masked.finish()
    assert all(torch.all(weight[masks[name] == 0] == 0) for name, weight in masked.weights.items())


def test_pruning_works_without_a_step() -> None:
    model = Program().build("lenet300")
    prune.MaskedPruning(model, Pruning("unstructured", 0.7)).finish()
    layers = {name: layer.weight for name, layer in models.prunable(model).items()}
    assert prune.sparsity(layers) == pytest.approx(0.7, abs=1e-4)


def test_one_shot_masks_are_the_smallest_magnitudes_by_hand() -> None:
    model = Program().build("lenet300")
    dense = torch.cat([layer.weight.detach().abs().flatten() for layer in models.prunable(model).values()])
    prune.MaskedPruning(model, Pruning("unstructured", 0.9, "one_shot")).before_step(0, 10)
    sparse = torch.cat([layer.weight.detach().abs().flatten() for layer in models.prunable(model).values()])
    assert torch.equal(sparse, torch.where(dense > dense.sort().values[round(0.9 * len(dense)) - 1], dense, 0.0))


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.62, 0.99])
def test_channels_are_narrowed_as_the_contract_says(name: str, sparsity: float) -> None:
    model = Program().build(name)
    dense = [layer.weight.shape[0] for layer in models.prunable(model).values()]
    narrowing = prune.ChannelPruning(model, Pruning("channel", sparsity, "one_shot"), (EXAMPLE,))
    replaced = narrowing.before_step(0, 10)
    wanted = [narrowed(width, sparsity) for width in dense[:-1]]
    assert [layer.weight.shape[0] for layer in models.prunable(model).values()] == [*wanted, 10]
    assert replaced == (wanted != dense[:-1])
    assert narrowing.finish() == pytest.approx(1 - sum(wanted) / sum(dense[:-1]))
    assert model(EXAMPLE).shape == (2, 10)


def test_gradual_channel_pruning_narrows_in_a_few_steps() -> None:
    model = Program().build("lenet300")
    narrowing = prune.ChannelPruning(model, Pruning("channel", 0.6, "gradual"), (EXAMPLE,))
    replaced = [step for step in range(100) if narrowing.before_step(step, 100)]
    assert replaced == [20, 40, 60]
    assert narrowing.finish() == pytest.approx(1 - (narrowed(300, 0.6) + narrowed(100, 0.6)) / 400)


def test_removing_dead_channels_changes_nothing_the_network_says() -> None:
    torch.manual_seed(0)
    model = Program().build("lenet5").eval()
    images = torch.randn(8, 1, 28, 28)
    with torch.no_grad():
        for layer in list(models.prunable(model).values())[:-1]:
            dead = torch.arange(layer.weight.shape[0]) % 2 == 1
            layer.weight[dead], layer.bias[dead] = 0.0, 0.0
        said = model(images)
    prune.ChannelPruning(model, Pruning("channel", 0.4, "one_shot"), (EXAMPLE,)).finish()
    # 0.4 of 20, 50 and 500 leave 12, 32 and 304: every live channel and some dead ones.
    assert [layer.weight.shape[0] for layer in models.prunable(model).values()] == [12, 32, 304, 10]
    torch.testing.assert_close(model(images), said, atol=1e-5, rtol=1e-5)


def test_a_width_that_is_not_as_asked_for_ends_the_trial() -> None:
    model = Program().build("lenet300")
    narrowing = prune.ChannelPruning(model, Pruning("channel", 0.2, "one_shot"), (EXAMPLE,))
    prune.ChannelPruning(model, Pruning("channel", 0.8, "one_shot"), (EXAMPLE,)).finish()
    with pytest.raises(TrainingError, match=r"layer fc1 has 64 channels after pruning instead of 240"):
        narrowing.finish()


def test_batch_norm_is_estimated_anew_as_the_average_over_the_data() -> None:
    images = torch.randn(500, 1, 28, 28) * 3 + 1
    model = Program().build("convnet")
    first = nn.Sequential(model.get_submodule("conv1")).eval()
    prune.reestimate(model, [(batch,) for batch in images.split(100)])
    norm = model.get_submodule("bn1")
    with torch.no_grad():
        maps = first(images)
    torch.testing.assert_close(norm.running_mean, maps.mean(dim=(0, 2, 3)), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(norm.running_var, maps.var(dim=(0, 2, 3)), atol=1e-2, rtol=1e-2)
    assert norm.momentum == 0.1
