"""What makes few bytes in training, function by function: scores, densities, grids, rates, codebooks, affine copies."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainers.pytorch import affine, codebook, density, grid, scores


def trained_a_little(steps: int = 30) -> tuple[nn.Linear, torch.optim.Adam, torch.Tensor]:
    """A layer whose inputs have very different sizes, its optimizer, the mean squared gradient of its weight."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 3)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-5)
    squares = torch.zeros(3, 6)
    for _ in range(steps):
        inputs = torch.randn(64, 6) * torch.tensor([0.01, 0.1, 1.0, 2.0, 4.0, 8.0])
        optimizer.zero_grad()
        layer(inputs).square().mean().backward()
        assert layer.weight.grad is not None
        squares = 0.999 * squares + 0.001 * layer.weight.grad**2
        optimizer.step()
    return layer, optimizer, squares / (1 - 0.999**steps)


def test_second_moments_are_what_adam_saw() -> None:
    layer, optimizer, squares = trained_a_little()
    found = scores.second_moments(optimizer, {"weight": layer.weight})["weight"]
    torch.testing.assert_close(found, squares)
    fresh = nn.Parameter(torch.ones(2))
    ones = scores.second_moments(torch.optim.Adam([fresh]), {"a": fresh})["a"]
    torch.testing.assert_close(ones, torch.ones(2))


def test_fisher_scores_order_weights_by_what_their_loss_costs() -> None:
    """For a quadratic loss the score with exponent 1/2 orders exactly as the loss that a removal adds."""
    torch.manual_seed(1)
    curvature, weight = torch.rand(200) + 0.01, torch.randn(200)
    cost = curvature * weight**2
    score = scores.fisher_score(weight, curvature, 0.5)
    assert torch.equal(score.argsort(), cost.argsort())
    torch.testing.assert_close(scores.fisher_score(weight, curvature, 0.0), weight.abs())


def test_the_group_exponent_prefers_weights_of_strong_rows_and_columns() -> None:
    weight = torch.ones(4, 5)
    weight[1] = 3.0
    weight[:, 2] = 2.0
    weight[1, 2] = 1.0
    score = scores.grouped(weight.abs(), weight, 1.0)
    assert score[0, 0] < score[0, 2] / 2
    assert torch.equal(scores.grouped(weight.abs(), weight, 0.0), weight.abs())
    kernel = torch.randn(4, 3, 2, 2)
    rows = kernel.pow(2).sum((1, 2, 3)).sqrt()
    columns = kernel.pow(2).sum((0, 2, 3)).sqrt()
    expected = kernel.abs() * (rows / rows.mean()).view(4, 1, 1, 1) * (columns / columns.mean()).view(1, 3, 1, 1)
    torch.testing.assert_close(scores.grouped(kernel.abs(), kernel, 1.0), expected)


@given(st.sampled_from(density.SCHEDULES), st.floats(0.001, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_density_falls_from_the_start_to_the_end(schedule: str, final: float, one: float, other: float) -> None:
    early, late = sorted([one, other])
    values = [density.density(progress, final, schedule) for progress in (0.0, early, late, 1.0)]
    assert values[0] == pytest.approx(1.0)
    assert values[-1] == pytest.approx(final)
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(values))
    assert density.density(7.0, final, schedule) == pytest.approx(final)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="'linear' is not valid; choose from cubic, exponential"):
        density.density(0.5, 0.1, "linear")


@given(st.integers(0, 1000), st.floats(0.001, 1))
@settings(max_examples=50)
def test_masks_keep_the_very_number_of_the_best_weights(seed: int, share: float) -> None:
    torch.manual_seed(seed)
    tensors = {"a": torch.rand(7, 5), "b": torch.rand(3, 2, 3, 3), "c": torch.zeros(10)}
    masks = density.masks_of(tensors, share)
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept == density.kept_count(35 + 54 + 10, share)
    least = min(float(score[masks[name] > 0].min()) for name, score in tensors.items() if masks[name].any())
    most = max((float(s[masks[n] == 0].max()) for n, s in tensors.items() if not masks[n].all()), default=-1.0)
    assert least >= most


def test_what_is_kept_is_judged_relative_to_itself() -> None:
    """Half a point more than 0.5 % is twice as much: an absolute bound of half a point would let it pass."""
    assert density.within(0.00505, 0.005)
    assert not density.within(0.01, 0.005)


@given(st.integers(0, 1000), st.sampled_from([1, 3, 7, 15]))
@settings(max_examples=40)
def test_values_on_a_grid_are_step_times_integer_to_the_bit(seed: int, levels: int) -> None:
    torch.manual_seed(seed)
    values = torch.randn(40, 6) * (torch.rand(40, 6) < 0.5)
    made = grid.Grid(values, levels)
    found, integers = made(values), made.integers(values)
    assert integers.abs().max() <= levels
    step = made.step
    assert float(step.half()) == float(step), "exact in float16"
    assert torch.equal(found.detach(), integers.float() * step)
    assert torch.equal(found[values == 0].detach(), torch.zeros(int((values == 0).sum())))


def test_the_first_step_is_the_best_of_a_fine_search() -> None:
    torch.manual_seed(0)
    values = torch.randn(3000)
    step = grid.initial_step(values, 3)

    def error(s: float) -> float:
        return float(((values / s).round().clamp(-3, 3) * s - values).square().sum())

    assert error(step) <= 1.01 * min(error(0.2 + 0.002 * i) for i in range(600))
    assert grid.initial_step(torch.zeros(4), 3) == 1.0


def test_gradients_pass_through_the_grid_and_reach_its_step() -> None:
    """Of the step as LSQ (arXiv:1902.08153) defines it; of the values where they lie inside the range."""
    values = torch.tensor([0.4, -1.2, 9.0, 0.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    made = grid._OnGrid.apply(values, step, 3, 3)
    made.sum().backward()
    assert values.grad is not None
    assert step.grad is not None
    assert values.grad.tolist() == [1, 1, 0, 1]
    by_hand = (1 - 0.8) + (-2 + 2.4) + 3 + 0
    assert float(step.grad) == pytest.approx(by_hand / math.sqrt(3 * 3))


def test_a_network_on_grids_learns_and_is_left_on_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    inputs, labels = torch.randn(256, 8), torch.randint(0, 3, (256,))
    names = [name for name, _ in model.named_parameters()]
    plain = copy.deepcopy(model)
    grids = grid.attach(model, 3, names)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.1
    steps = {name: float(each.step) for name, each in grids.items()}
    before = model(inputs)
    grid.detach(model, names)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert torch.equal(model(inputs), before)
    for name, parameter in model.named_parameters():
        integers = parameter.detach() / steps[name]
        assert torch.equal(integers, integers.round())
        assert integers.abs().max() <= (grid.BIAS_LEVELS if parameter.dim() == 1 else 3)


def test_a_codebook_finds_the_clusters_that_are_there() -> None:
    torch.manual_seed(0)
    truth = torch.tensor([-1.0, -0.25, 0.4, 2.0])
    values = truth[torch.randint(0, 4, (400,))] + 0.01 * torch.randn(400)
    values[::3] = 0
    torch.testing.assert_close(codebook.codebook(values, 4), truth, atol=0.02, rtol=0)
    found = codebook.on_codebook(values, truth)
    assert set(found.tolist()) == {0.0, *truth.tolist()}
    assert torch.equal(found == 0, values == 0)
    assert float((found - values).abs().max()) < 0.06


def test_entropy_makes_a_codebook_smaller() -> None:
    torch.manual_seed(0)
    values = torch.randn(4000)
    plain, short = codebook.codebook(values, 16), codebook.codebook(values, 16, trade=0.05)
    assert len(plain) == 16
    assert len(short) < 16

    def entropy(centres: torch.Tensor) -> float:
        counts = codebook.on_codebook(values, centres).unique(return_counts=True)[1].float()
        return float(-(counts / counts.sum() * torch.log2(counts / counts.sum())).sum())

    assert entropy(short) < entropy(plain) - 0.5
    assert len(codebook.codebook(torch.zeros(5), 4)) == 1


def test_affine_copies_move_each_image_a_little_and_always_the_same() -> None:
    torch.manual_seed(0)
    images = torch.zeros(64, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 10:18, 12:16] = 200
    first, again, other = (affine.affine_copy(images, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype is torch.uint8
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    mass = first.float().sum((1, 2, 3))
    centre = torch.stack([(first[:, 0] * axis).sum((1, 2)) / mass for axis in (y, x)], 1)
    away = (centre - torch.tensor([13.5, 13.5])).abs()
    assert float(away.max()) < 2.0 + 1.0, "by 2 pixels at most, and what turning adds"
    assert float(away.mean()) > 0.3
    assert float((mass / images[0].sum() - 1).abs().max()) < 0.35


def test_without_any_movement_an_image_stays_as_it_is() -> None:
    images = torch.rand(5, 3, 9, 7)
    still = affine.affine_copy(images, 0, affine.Affine(0, 0, 0, 0))
    torch.testing.assert_close(still, images)
