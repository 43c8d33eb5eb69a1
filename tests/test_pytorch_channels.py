"""Channels and heads that are removed: rounded, whole groups, the same answers as not listening to them."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks.zoo import NETWORKS
from tasks.mnist.pytorch import MODELS, Program
from trainers.base import TrainingError, narrowed
from trainers.pytorch import models
from trainers.pytorch.allocation import Size, across, by_sensitivity, lower_hull, uniform
from trainers.pytorch.capture import outputs_of
from trainers.pytorch.channels import ChannelPruning, sensitivity, shape
from trainers.pytorch.export import relative_error
from trainers.pytorch.importance import Activation, Importance, Taylor, accumulate_gradients
from trainers.pytorch.recover import correct_biases, least_squares, reestimate
from trainers.recipe import Pruning

torch.set_num_threads(1)
EXAMPLE = torch.zeros(2, 1, 28, 28)
HALF = Pruning("channel", 0.5, "one_shot")


def built(name: str) -> nn.Module:
    """A network of the zoo with batch norm statistics that are not the start's."""
    torch.manual_seed(0)
    model = NETWORKS[name].build()
    reestimate(model, [NETWORKS[name].example(4)])
    return model.eval()


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.62, 0.99])
def test_channels_are_narrowed_as_the_contract_says(name: str, sparsity: float) -> None:
    model = Program().build(name)
    dense = [layer.weight.shape[0] for layer in models.prunable(model).values()]
    narrowing = ChannelPruning(model, Pruning("channel", sparsity, "one_shot"), (EXAMPLE,))
    replaced = narrowing.before_step(0, 10)
    wanted = [narrowed(width, sparsity) for width in dense[:-1]]
    assert [layer.weight.shape[0] for layer in models.prunable(model).values()] == [*wanted, 10]
    assert replaced == (wanted != dense[:-1])
    assert narrowing.finish() == pytest.approx(1 - sum(wanted) / sum(dense[:-1]))
    assert model(EXAMPLE).shape == (2, 10)


def test_gradual_channel_pruning_narrows_in_a_few_steps() -> None:
    model = Program().build("lenet300")
    narrowing = ChannelPruning(model, Pruning("channel", 0.6, "gradual"), (EXAMPLE,))
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
    ChannelPruning(model, Pruning("channel", 0.4, "one_shot"), (EXAMPLE,)).finish()
    # 0.4 of 20, 50 and 500 leave 12, 32 and 304: every live channel and some dead ones.
    assert [layer.weight.shape[0] for layer in models.prunable(model).values()] == [12, 32, 304, 10]
    torch.testing.assert_close(model(images), said, atol=1e-5, rtol=1e-5)


def test_a_width_that_is_not_as_asked_for_ends_the_trial() -> None:
    model = Program().build("lenet300")
    narrowing = ChannelPruning(model, Pruning("channel", 0.2, "one_shot"), (EXAMPLE,))
    ChannelPruning(model, Pruning("channel", 0.8, "one_shot"), (EXAMPLE,)).finish()
    with pytest.raises(TrainingError, match=r"layer fc1 has 64 channels after pruning instead of 240"):
        narrowing.finish()


# Parameters left at half the channels; what must stay is between these.
NARROWED = {
    "resnet18": (0.24, 0.27), "mobilenet_v3": (0.25, 0.28), "squeezenet": (0.24, 0.27), "shufflenet_v2": (0.75, 0.9),
    "regnet_y": (0.24, 0.27), "unet": (0.24, 0.27), "autoencoder": (0.24, 0.3), "conv3d": (0.25, 0.3),
    "m5": (0.25, 0.32), "vit_tiny": (0.5, 0.6), "bert": (0.6, 0.75), "gpt2": (0.6, 0.75), "swin": (0.5, 0.6),
}  # fmt: skip


@pytest.mark.parametrize("name", NARROWED)
def test_networks_are_narrowed_and_run_at_any_batch(name: str) -> None:
    network, model = NETWORKS[name], built(name)
    before = [each.shape for each in outputs_of(model(*network.example(3)))]
    dense = sum(p.numel() for p in model.parameters())
    narrowing = ChannelPruning(model, HALF, network.example(2), network.keep)
    removed = narrowing.finish()
    low, high = NARROWED[name]
    assert low <= sum(p.numel() for p in model.parameters()) / dense <= high
    assert 0 < removed <= 0.55
    assert [each.shape for each in outputs_of(model(*network.example(3)))] == before
    layers = narrowing.coverage().layers
    assert all(each.now < each.before or each.whole or each.before <= 8 for each in layers)
    assert json.loads(json.dumps(narrowing.coverage().to_dict()))["layers"][0]["layer"] == layers[0].layer


def test_both_heads_keep_their_width() -> None:
    model = built("two_heads")
    ChannelPruning(model, HALF, NETWORKS["two_heads"].example(2)).finish()
    assert [tuple(each.shape) for each in model(*NETWORKS["two_heads"].example(2))] == [(2, 20), (2, 8)]
    assert model.get_submodule("trunk.0").out_channels == 16


def test_named_modules_keep_their_width() -> None:
    model = built("resnet18")
    narrowing = ChannelPruning(model, HALF, NETWORKS["resnet18"].example(2), keep=["layer1"])
    narrowing.finish()
    kept = {each.layer for each in narrowing.coverage().layers if each.layer.startswith("layer1.")}
    assert all(model.get_submodule(name).out_channels == 64 for name in kept)
    assert model.get_submodule("conv1").out_channels == 64  # adds to what layer1 gives
    assert model.get_submodule("layer2.0.conv1").out_channels == 64


@pytest.mark.parametrize(
    ("name", "counts"), [("vit_tiny", ("num_heads", "attn_dim")), ("bert", ("num_attention_heads", "all_head_size"))]
)
def test_whole_heads_go_and_their_number_is_written_back(name: str, counts: tuple[str, str]) -> None:
    network, model = NETWORKS[name], built(name)
    attention = next(m for m in model.modules() if hasattr(m, counts[0]) and hasattr(m, counts[1]))
    heads, width = (getattr(attention, each) for each in counts)
    size = width // heads
    for _, heads_left in ((0, heads), (1, heads)):
        assert getattr(attention, counts[0]) == heads_left
    narrowing = ChannelPruning(model, HALF, network.example(2), network.keep)
    narrowing.finish()
    left = getattr(attention, counts[0])
    assert left == max(1, round(heads / 2))
    assert getattr(attention, counts[1]) == left * size
    assert {unit.kind for unit in narrowing.units} == {"channels", "heads"}


def test_the_least_important_heads_go() -> None:
    network, model = NETWORKS["bert"], built("bert")
    attention = model.get_submodule("network.bert.encoder.layer.0.attention")
    value, output = attention.get_submodule("self.value"), attention.get_submodule("output.dense")
    with torch.no_grad():  # heads 1 and 2 of 4 say nothing
        value.weight[16:48], value.bias[16:48], output.weight[:, 16:48] = 0.0, 0.0, 0.0
        kept = value.weight[[*range(16), *range(48, 64)]].clone()
        inputs = network.example(2)
        before = model(*inputs)[0].numpy()
    keep = [f"network.bert.encoder.layer.{i}.{part}" for i in (0, 1) for part in ("intermediate", "output")]
    keep += ["network.bert.encoder.layer.1", "network.bert.pooler", *network.keep]
    ChannelPruning(model, HALF, inputs, keep).finish()
    assert torch.equal(value.weight, kept)
    assert relative_error(model(*inputs)[0].detach().numpy(), before) < 1e-5


def test_what_would_change_the_answers_is_put_back() -> None:
    class Shuffled(nn.Module):
        """The channels of `first` are reversed before `last` reads them, by an index that no graph shows."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 16)
            self.head = nn.Linear(16, 3)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            hidden = self.first(rows)
            hidden = torch.stack([hidden[:, i] for i in reversed(range(hidden.shape[1]))], 1)
            return self.head(torch.relu(self.last(hidden)))

    torch.manual_seed(0)
    model, rows = Shuffled().eval(), torch.randn(2, 8)
    before = model(rows)
    narrowing = ChannelPruning(model, HALF, (rows,))
    narrowing.narrow(0.5)
    first, last, _ = narrowing.coverage().layers
    assert (first.now, last.now) == (16, 8)
    assert first.whole
    whole = copy.deepcopy(model)
    assert whole(rows).shape == before.shape


def test_frozen_parameters_stay_frozen() -> None:
    model = built("resnet18").requires_grad_(False)
    ChannelPruning(model, HALF, NETWORKS["resnet18"].example(2)).finish()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_widths_are_known_without_training() -> None:
    network, model = NETWORKS["resnet18"], built("resnet18")
    widths = shape(model, network.example(2), HALF)
    assert model.get_submodule("conv1").out_channels == 64
    ChannelPruning(model, HALF, network.example(2)).finish()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert widths == {name: layer.weight.shape[0] for name, layer in layers.items()}


# Importance and allocation.
def dead_halves(model: nn.Module) -> dict[str, set[int]]:
    """Make every second channel of the hidden layers of LeNet-5 dead on the way out; which those are."""
    hidden = list(models.prunable(model).items())[:-1]
    for _, layer in hidden:
        with torch.no_grad():
            layer.weight[1::2], layer.bias[1::2] = 0.0, 0.0
    return {name: set(range(1, layer.weight.shape[0], 2)) for name, layer in hidden}


@pytest.mark.parametrize("kind", ["taylor", "activation"])
def test_dead_channels_are_the_least_important(kind: str) -> None:
    torch.manual_seed(0)
    model, images = Program().build("lenet5"), torch.randn(8, 1, 28, 28)
    dead = dead_halves(model)
    if kind == "taylor":
        accumulate_gradients(model, [images], lambda network, batch: network(batch).square().mean())
        importance: Importance = Taylor()
    else:
        importance = Activation(model, [(images,)])
    narrowing = ChannelPruning(model, Pruning("channel", 0.4, "one_shot"), (EXAMPLE,), importance=lambda _: importance)
    narrowing.judge()
    with narrowing.network.read():
        scores = {unit.name: unit.scores(narrowing.importance) for unit in narrowing.units}
    narrowing.finish()
    for name, channels in dead.items():
        assert torch.all(scores[name][sorted(channels)] == 0)
        gone = sorted(set(range(2 * len(channels))) - set(narrowing.network.kept[name]))
        assert gone
        assert torch.all(scores[name][gone] == 0)  # dead ones, and live ones that are silent on these images
    assert torch.all(scores["conv1"][::2] > 0)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from([4, 16])), min_size=1, max_size=6),
    st.floats(0.0, 0.99),
    st.integers(0, 99),
)
def test_every_allocation_keeps_to_the_steps(shapes: list[tuple[int, int]], sparsity: float, seed: int) -> None:
    sizes = {f"layer{i}": Size(step * count, step) for i, (count, step) in enumerate(shapes)}
    draw = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(size.dense, generator=draw).tolist() for name, size in sizes.items()}
    losses = {
        name: {size.dense: 0.0, size.step: float(torch.rand(1, generator=draw))}
        if size.dense > size.step
        else {size.dense: 0.0}
        for name, size in sizes.items()
    }
    dense, largest = sum(size.dense for size in sizes.values()), max(size.step for size in sizes.values())
    for widths in (uniform(sizes, sparsity), across(sizes, scores, sparsity), by_sensitivity(sizes, losses, sparsity)):
        assert all(sizes[name].step <= width <= sizes[name].dense for name, width in widths.items())
        assert all(width % sizes[name].step == 0 for name, width in widths.items())
    least_left = sum(size.step for size in sizes.values())
    wanted = max(least_left, (1 - sparsity) * dense)
    assert abs(sum(by_sensitivity(sizes, losses, sparsity).values()) - wanted) <= largest


def test_across_layers_the_smallest_relative_scores_go() -> None:
    sizes = {"weak": Size(8, 4), "strong": Size(8, 4)}
    scores = {"weak": [1.0] * 4 + [9.0] * 4, "strong": [500.0] * 8}
    assert across(sizes, scores, 0.25) == {"weak": 4, "strong": 8}


def test_by_sensitivity_what_costs_the_least_loss_goes_first() -> None:
    sizes = {"cheap": Size(16, 4), "dear": Size(16, 4)}
    losses = {"cheap": {16: 1.0, 12: 1.01, 8: 1.02, 4: 3.0}, "dear": {16: 1.0, 12: 1.5, 8: 2.0, 4: 3.0}}
    assert by_sensitivity(sizes, losses, 0.25) == {"cheap": 8, "dear": 16}
    assert by_sensitivity(sizes, losses, 0.5) == {"cheap": 8, "dear": 8}


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(-5, 5)), min_size=2, max_size=12, unique_by=lambda p: p[0]))
def test_the_lower_hull_lies_below_all_points_and_its_slopes_rise(points: list[tuple[int, float]]) -> None:
    hull = lower_hull(sorted((float(x), y) for x, y in points))
    slopes = [(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in itertools.pairwise(hull)]
    assert slopes == sorted(slopes)
    for x, y in points:
        (x0, y0), (x1, y1) = next((a, b) for a, b in itertools.pairwise(hull) if a[0] <= x <= b[0])
        assert y >= y0 + (y1 - y0) * (x - x0) / (x1 - x0) - 1e-9


def test_the_layer_that_matters_keeps_its_channels() -> None:
    torch.manual_seed(0)
    model, images = Program().build("lenet5"), torch.randn(64, 1, 28, 28)
    with torch.no_grad():
        wanted = model(images)
        for parameter in (model.get_parameter("conv2.weight"), model.get_parameter("conv2.bias")):
            parameter[10:] = 0.0  # 40 of 50 channels say nothing
        wanted = model(images)

    def loss(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network(images) - wanted).square().mean())

    pruning = Pruning("channel", 0.06, "one_shot")
    losses = sensitivity(ChannelPruning(model, pruning, (EXAMPLE,)), loss)
    assert set(losses) == {"conv1", "conv2", "fc1"}
    assert losses["conv2"][12] == pytest.approx(losses["conv2"][50], abs=1e-9)
    assert losses["conv1"][4] > 0
    narrowing = ChannelPruning(model, pruning, (EXAMPLE,), allocation="sensitivity", losses=losses)
    narrowing.finish()
    assert model.get_submodule("conv2").weight.shape[0] <= 20
    assert model.get_submodule("fc1").weight.shape[0] == 500


# Recovery.
@pytest.mark.parametrize("fit", [least_squares, correct_biases])
def test_fitting_to_the_dense_layers_brings_answers_back(fit: object) -> None:
    torch.manual_seed(0)
    dense = Program().build("lenet5").eval()
    model = copy.deepcopy(dense)
    smooth = torch.nn.functional.avg_pool2d(torch.randn(64, 1, 60, 60), 3, 2, 0)[:, :, :28, :28]
    narrowing = ChannelPruning(model, HALF, (EXAMPLE,))
    narrowing.finish()
    with torch.no_grad():
        exact = dense(smooth).numpy()
        before = relative_error(model(smooth).numpy(), exact)
        fitted = fit(model, dense, [(smooth[:32],)], narrowing.network.kept)  # type: ignore[operator]
        after = relative_error(model(smooth).numpy(), exact)  # half of them unseen
    assert fitted == 4
    assert after < (0.5 if fit is least_squares else 0.95) * before


def test_batch_norm_is_estimated_anew_as_the_average_over_the_data() -> None:
    images = torch.randn(500, 1, 28, 28) * 3 + 1
    model = Program().build("convnet")
    first = nn.Sequential(model.get_submodule("conv1")).eval()
    reestimate(model, [(batch,) for batch in images.split(100)])
    norm = model.get_submodule("bn1")
    with torch.no_grad():
        maps = first(images)
    torch.testing.assert_close(norm.running_mean, maps.mean(dim=(0, 2, 3)), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(norm.running_var, maps.var(dim=(0, 2, 3)), atol=1e-2, rtol=1e-2)
    assert norm.momentum == 0.1
