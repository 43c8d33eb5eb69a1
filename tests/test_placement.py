"""Which layers stay float: the choice by gains and costs, and what each layer costs in a network."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.mnist.pytorch import Program
from trainers.placement import choose
from trainers.pytorch import quantize
from trainers.pytorch.export import relative_error
from trainers.pytorch.sensitivity import drops, quantized_layers

torch.set_num_threads(1)
layers = st.lists(st.tuples(st.floats(-1, 1), st.floats(-0.1, 1)), max_size=7)


@given(layers, st.floats(0, 2))
def test_the_choice_is_within_the_drop_and_near_the_best_one(values: list[tuple[float, float]], limit: float) -> None:
    gains = {f"layer{i}": gain for i, (gain, _) in enumerate(values)}
    costs = {f"layer{i}": cost for i, (_, cost) in enumerate(values)}
    found = choose(gains, costs, limit)
    assert found.drop <= limit
    assert all(gains[name] > 0 for name in gains if name not in found.keep_float)
    best = max(
        sum(gain for chosen, (gain, _) in zip(picked, values, strict=True) if chosen)
        for picked in product((False, True), repeat=len(values))
        if sum(max(0.0, cost) for chosen, (_, cost) in zip(picked, values, strict=True) if chosen) <= limit
    )
    assert found.gain >= best - max(0.0, *gains.values()) if gains else found.gain == 0


def test_slower_layers_stay_float_and_dear_ones_go_last() -> None:
    gains = {"stem": -0.1, "middle": 1.0, "wide": 2.0, "head": 0.5}
    found = choose(gains, {"stem": 0.0, "middle": 0.002, "wide": 0.001, "head": 0.5}, max_drop=0.01)
    assert found.keep_float == ("stem", "head")
    assert found.gain == pytest.approx(3.0)
    assert found.drop == pytest.approx(0.003)


def test_a_layer_without_a_measured_drop_is_named() -> None:
    with pytest.raises(ValueError, match="no drop is known for head"):
        choose({"head": 1.0}, {}, 0.1)


def test_the_layer_that_integers_hurt_is_found() -> None:
    torch.manual_seed(0)
    model, images = Program().build("lenet5").eval(), torch.randn(64, 1, 28, 28)
    with torch.no_grad():
        model.get_parameter("conv2.weight")[:, 0] *= 300.0  # one input channel takes all of each row's 255 steps
        model.get_parameter("conv1.weight")[0] /= 300.0
        exact = model(images).numpy()
    prepared = quantize.prepare(model, [(images,)])
    assert set(quantized_layers(prepared)) == {"conv1", "conv2", "fc1", "fc2"}

    def score(network: torch.fx.GraphModule) -> float:
        with torch.no_grad():
            return -relative_error(network(images).numpy(), exact)

    whole = score(prepared)
    found = drops(prepared, score)
    assert max(found, key=lambda name: found[name]) == "conv2"
    assert score(prepared) == whole
    kept = choose(dict.fromkeys(found, 1.0), found, max_drop=0.05).keep_float
    assert kept == ("conv2",)
    better = quantize.prepare(model, [(images,)], keep_float=kept)
    assert score(better) > whole
