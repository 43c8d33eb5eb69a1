"""Masks in torch: the cubic ramp, magnitudes, 2:4 patterns, every kind of layer; compared with the same by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.zoo import NETWORKS
from tasks.mnist.pytorch import Program
from trainers.base import TrainingError
from trainers.pytorch import masks, models
from trainers.pytorch.ramp import ramp
from trainers.recipe import Pruning

torch.set_num_threads(1)
fractions = st.floats(0.0, 1.0)
shapes = st.tuples(st.integers(1, 6), st.integers(1, 19))


def weights_of(shape: tuple[int, ...], seed: int) -> dict[str, torch.Tensor]:
    return {"layer": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}


@given(fractions, fractions, st.floats(0.0, 0.99))
def test_the_ramp_only_tightens_and_ends_at_the_target(one: float, other: float, final: float) -> None:
    assert (ramp(0.0, final), ramp(1.0, final)) == (0.0, final)
    assert ramp(min(one, other), final) <= ramp(max(one, other), final) <= final


def test_the_ramp_is_the_published_cubic() -> None:
    # Zhu & Gupta, equation 1, with s_i = 0, s_f = 0.9: half way an eighth of the way is left.
    assert ramp(0.5, 0.9) == pytest.approx(0.9 - 0.9 * 0.5**3)


@given(shapes, st.floats(0.0, 0.99), st.integers(0, 99))
def test_magnitude_masks_drop_the_smallest_and_as_many_as_asked(
    shape: tuple[int, int], sparsity: float, seed: int
) -> None:
    weights = weights_of(shape, seed) | {"other": torch.randn(7, generator=torch.Generator().manual_seed(seed + 1))}
    found = masks.magnitude_masks(weights, sparsity)
    every = np.concatenate([w.abs().flatten().numpy() for w in weights.values()])
    kept = np.concatenate([m.flatten().numpy() for m in found.values()]) == 1
    assert (~kept).sum() == round(sparsity * every.size)
    assert every[~kept].max(initial=0.0) <= every[kept].min(initial=np.inf)
    assert {name: mask.shape for name, mask in found.items()} == {name: w.shape for name, w in weights.items()}


def test_magnitude_masks_take_no_more_than_asked_of_equal_weights() -> None:
    assert masks.magnitude_masks({"layer": torch.zeros(10)}, 0.3)["layer"].sum() == 7


@given(shapes, st.integers(0, 99))
def test_pattern_masks_keep_two_of_four_neighbours(shape: tuple[int, int], seed: int) -> None:
    weight = weights_of(shape, seed)["layer"]
    mask = masks.pattern_masks({"layer": weight})["layer"]
    for row, kept in zip(weight.abs().numpy(), mask.numpy() == 1, strict=True):
        for start in range(0, len(row), 4):
            group, stays = row[start : start + 4], kept[start : start + 4]
            assert stays.sum() == len(group) - len(group) // 2
            assert group[~stays].max(initial=0.0) <= group[stays].min()


def test_the_neighbours_of_a_convolution_are_its_input_channels() -> None:
    weight = torch.rand(3, 8, 5, 5) + 0.1
    kept = masks.pattern_masks({"conv": weight})["conv"].unflatten(1, (2, 4)).sum(dim=2)
    assert torch.equal(kept, torch.full_like(kept, 2.0))


@settings(max_examples=20)
@given(fractions, st.integers(0, 99))
def test_a_partial_pattern_is_part_of_the_whole_one(share: float, seed: int) -> None:
    weights = weights_of((6, 16), seed)
    partial, whole = (masks.pattern_masks(weights, s)["layer"] for s in (share, 1.0))
    assert torch.all(partial >= whole)
    assert int((partial == 0).sum()) == round(share * 48)


@pytest.mark.parametrize("schedule", ["one_shot", "gradual"])
@pytest.mark.parametrize(("granularity", "wanted"), [("unstructured", 0.8), ("n_m", 0.5)])
def test_masks_hold_through_every_step(granularity: str, schedule: str, wanted: float) -> None:
    model = Program().build("lenet300")
    masked = masks.MaskedPruning(model, Pruning(granularity, 0.8, schedule))
    reached = []
    for step in range(15):
        assert masked.before_step(step, 15) is False
        before = masks.sparsity(masked.weights)
        with torch.no_grad():
            for weight in masked.weights.values():
                weight.add_(torch.randn_like(weight), alpha=0.01)
        masked.after_step()
        assert masks.sparsity(masked.weights) == before
        reached.append(before)
    assert reached == sorted(reached)
    assert reached[9] == pytest.approx(wanted, abs=0.005)  # the ramp ends after 60 % of the steps
    assert reached[0] == pytest.approx(wanted if schedule == "one_shot" else 0.0, abs=0.005)
    final = masked.finish()
    assert all(torch.all(weight[final[name] == 0] == 0) for name, weight in masked.weights.items())


def test_pruning_works_without_a_step() -> None:
    model = Program().build("lenet300")
    masks.MaskedPruning(model, Pruning("unstructured", 0.7)).finish()
    layers = {name: layer.weight for name, layer in models.prunable(model).items()}
    assert masks.sparsity(layers) == pytest.approx(0.7, abs=1e-4)


def test_one_shot_masks_are_the_smallest_magnitudes_by_hand() -> None:
    model = Program().build("lenet300")
    dense = torch.cat([layer.weight.detach().abs().flatten() for layer in models.prunable(model).values()])
    masks.MaskedPruning(model, Pruning("unstructured", 0.9, "one_shot")).before_step(0, 10)
    sparse = torch.cat([layer.weight.detach().abs().flatten() for layer in models.prunable(model).values()])
    assert torch.equal(sparse, torch.where(dense > dense.sort().values[round(0.9 * len(dense)) - 1], dense, 0.0))


@pytest.mark.parametrize("sparsity", [0.99, 0.998])
def test_very_sparse_networks_are_reached_to_the_very_weight(sparsity: float) -> None:
    model = Program().build("lenet5")
    masked = masks.MaskedPruning(model, Pruning("unstructured", 0.99))
    masked.pruning = type(masked.pruning)("unstructured", min(sparsity, 0.99))
    object.__setattr__(masked.pruning, "sparsity", sparsity)
    masked.finish()
    total = sum(weight.numel() for weight in masked.weights.values())
    assert sum(int(w.count_nonzero()) for w in masked.weights.values()) == total - round(sparsity * total)


@pytest.mark.parametrize(
    ("sparsity", "zeros", "passes"), [(0.998, 9970, False), (0.998, 9980, True), (0.5, 5050, True)]
)
def test_the_sparsity_reached_is_judged_by_what_is_kept(sparsity: float, zeros: int, passes: bool) -> None:
    weights = {"layer": torch.cat([torch.zeros(zeros), torch.ones(10_000 - zeros)])}
    if passes:
        masks._assert_reached(weights, sparsity)
    else:
        with pytest.raises(TrainingError, match=r"0\.9980 was asked for and 0\.9970 was reached"):
            masks._assert_reached(weights, sparsity)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("m5", {"Conv1d", "Linear"}),
        ("conv3d", {"Conv3d", "Linear"}),
        ("autoencoder", {"Conv2d", "ConvTranspose2d"}),
        ("lstm", {"LSTM", "Linear"}),
        ("gru", {"GRU", "Linear"}),
        ("attention", {"MultiheadAttention", "NonDynamicallyQuantizableLinear", "Linear"}),
        ("ncf", {"Linear"}),
        ("gpt2", {"Linear"}),
        ("wav2vec2", {"Conv1d", "Linear", "ParametrizedConv1d"}),
    ],
)
@pytest.mark.parametrize("granularity", ["unstructured", "n_m"])
def test_masks_reach_every_kind_of_layer(name: str, kinds: set[str], granularity: str) -> None:
    model = NETWORKS[name].build()
    expected = {type(m).__name__ for m in model.modules()} & kinds
    masked = masks.MaskedPruning(model, Pruning(granularity, 0.8))
    final = masked.finish()
    assert expected <= {type(model.get_submodule(each.rpartition(".")[0])).__name__ for each in final} | {
        "ParametrizedConv1d"
    }
    held = masks.HeldMasks(model, final)
    with torch.no_grad():
        for weight in held.weights:
            weight.add_(1.0)
    held.after_step()
    wanted = 0.8 if granularity == "unstructured" else 0.5
    assert masks.sparsity(masked.weights) == pytest.approx(wanted, abs=0.03)


def test_neighbours_of_a_transposed_convolution_are_its_inputs_too() -> None:
    weight = torch.rand(8, 3, 2, 2) + 0.1
    kept = masks.pattern_masks({"up": weight}, transposed={"up"})["up"].unflatten(0, (2, 4)).sum(dim=1)
    assert torch.equal(kept, torch.full_like(kept, 2.0))


def test_coverage_counts_all_parameters() -> None:
    ncf = NETWORKS["ncf"].build()
    tables = 200 * 32 + 300 * 32
    found = masks.coverage(ncf)
    assert (found.parameters, found.others["Embedding"]) == (sum(p.numel() for p in ncf.parameters()), tables)
    assert found.share == pytest.approx((64 * 64 + 32 * 64 + 32) / found.parameters)
    assert "not Embedding 16,000" in found.describe()
    assert masks.coverage(ncf, embeddings=True).maskable == found.maskable + tables
    assert masks.coverage(NETWORKS["lstm"].build()).share > 0.9


def test_a_table_that_a_layer_shares_is_masked_only_as_an_embedding() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)
            self.head.weight = self.table.weight

    assert set(masks.maskable(Tied())) == {"layer.weight"}
    assert set(masks.maskable(Tied(), embeddings=True)) == {"table.weight", "layer.weight"}
