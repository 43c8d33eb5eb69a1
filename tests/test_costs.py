"""What compressed networks cost, known once per architecture: of files, of repeats, across sweeps."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import trainers.base
from runtimes.architecture import architecture_of
from runtimes.base import Artifact
from runtimes.latency import Comparison, LatencyResult, Timing
from runtimes.pooling import NARROW, half_width, pooled
from search.storage.costs import Costs
from search.study.config import Study
from search.trial.results import Baseline, Outline
from tasks.base import TaskInfo
from tests import linear
from trainers.base import DenseSpec
from trainers.recipe import Distillation, FineTuning, Pruning, Quantization, Recipe

TIMING = Timing(1.0, 1.1, 0.1, 1000.0)


def network(
    path: Path, width: int = 8, seed: int = 0, zero: bool = False, rows: int = -1, prefix: str = ""
) -> Artifact:
    """A small integer layer with weights of that seed."""
    rng, p = np.random.default_rng(seed), prefix
    weights = rng.integers(-100, 100, (4, width)).astype(np.int8) * (0 if zero else 1)
    constants = {
        f"{p}w": weights,
        f"{p}scale": np.float32(rng.random()),
        f"{p}point": np.int8(rng.integers(0, 5)),
        f"{p}shape": np.array([rows, width], np.int64),
    }
    nodes = [
        helper.make_node("DequantizeLinear", [f"{p}w", f"{p}scale", f"{p}point"], [f"{p}float"]),
        helper.make_node("MatMul", ["input", f"{p}float"], [f"{p}made"], name=f"{p}node"),
        helper.make_node("Reshape", [f"{p}made", f"{p}shape"], ["output"]),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s]) for n, s in (("input", 4), ("output", width))
    ]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], stored), ir_version=10)
    model.metadata_props.add(key="recipe", value=str(seed))
    onnx.save(model, path)
    return Artifact.of(path)


def test_an_architecture_is_the_graph_and_not_the_weights(tmp_path: Path) -> None:
    first = architecture_of(network(tmp_path / "a.onnx"), "onnxruntime")
    alike = [{"seed": 1}, {"zero": True}, {"seed": 2, "prefix": "other"}]
    other = [{"width": 7}, {"rows": 1}]
    for index, (change, equal) in enumerate([(c, True) for c in alike] + [(c, False) for c in other]):
        found = architecture_of(network(tmp_path / f"{index}.onnx", **change), "onnxruntime")  # type: ignore[arg-type]
        assert (found == first) is equal, change


def test_where_zeros_may_count_a_file_is_its_own_architecture(tmp_path: Path) -> None:
    runtime = tmp_path / "mine.py"
    runtime.write_text(
        'FORMAT = "onnx"\n\n\ndef load(artifact, threads, batch=None): ...\n\n\ndef version(): return "1"\n'
    )
    files = [network(tmp_path / f"{seed}.onnx", seed=seed) for seed in (0, 1)]
    assert len({architecture_of(file, str(runtime)) for file in files}) == 1
    assert len({architecture_of(file, str(runtime), zeros=True) for file in files}) == 2
    assert len({architecture_of(file, "onnxruntime", zeros=True) for file in files}) == 1


def result(ratio: float, half: float = 0.02, noisy: str | None = None) -> LatencyResult:
    ends = ratio * math.exp(-half), ratio * math.exp(half)
    made = Comparison(1, 1, TIMING, TIMING, ratio, *ends, 24, 20, 1.0, "tight", noisy)
    return LatencyResult((made,), {"cpu": "a CPU"})


@given(st.lists(st.tuples(st.floats(0.05, 5.0), st.floats(0.01, 0.5)), min_size=1, max_size=8))
def test_repeats_lie_around_their_mean_and_never_make_it_less_certain_than_the_best(
    found: list[tuple[float, float]],
) -> None:
    results = [result(ratio, half) for ratio, half in found]
    made = pooled(results).comparisons[0]
    ratios = [ratio for ratio, _ in found]
    assert min(ratios) * (1 - 1e-9) <= made.ratio <= max(ratios) * (1 + 1e-9)
    assert made.ratio_low <= made.ratio <= made.ratio_high
    assert half_width(made) >= NARROW * (1 - 1e-9)


def test_repeats_that_agree_narrow_the_interval_and_those_that_do_not_widen_it() -> None:
    one = half_width(result(1.0, 0.04).comparisons[0])
    alike = half_width(pooled([result(1.0, 0.04)] * 4).comparisons[0])
    apart = half_width(pooled([result(ratio, 0.04) for ratio in (0.7, 1.0, 1.4)]).comparisons[0])
    assert alike == pytest.approx(one / 2)
    assert apart > 2 * one
    with pytest.raises(ValueError, match="none to pool"):
        pooled([])


def study(tmp_path: Path, **changes: Any) -> Study:
    return linear.config(tmp_path, **changes).study


def baseline(root: Path, cpu: str = "a CPU") -> Baseline:
    task = TaskInfo("t", {}, (), (), (), "data", "code")
    file = root / "dense.onnx"
    file.write_bytes(b"dense")
    environment = {"cpu": cpu, "cores": 2, "runtime": "onnxruntime", "runtime_version": "1"}
    spec = DenseSpec("pytorch", "lenet300")
    return Baseline(
        spec=spec,
        dense_folder=root,
        artifact=Artifact.of(file),
        metrics={"accuracy": 0.9},
        samples=100,
        size_bytes=1000,
        latency_ms=0.1,
        data_digest="data",
        versions={},
        environment=environment,
        task=task,
        examples=file,
        architecture="dense",
    )


def test_what_is_measured_is_known_in_the_next_sweep_on_the_same_hardware_alone(tmp_path: Path) -> None:
    first = Costs(tmp_path, study(tmp_path))
    assert first.latencies(baseline(tmp_path)) == {}
    first.add(baseline(tmp_path), "narrow", result(0.3))
    first.add(baseline(tmp_path), "wide", result(0.9, 0.2))  # too uncertain to be used
    again = Costs(tmp_path, study(tmp_path))
    assert again.latencies(baseline(tmp_path)) == {"narrow": result(0.3)} == first.latencies(baseline(tmp_path))
    assert again.latencies(baseline(tmp_path, "another CPU")) == {}
    assert Costs(tmp_path, study(tmp_path, latency={"batch": [8]})).latencies(baseline(tmp_path)) == {}
    for _ in range(60):
        again.add(baseline(tmp_path), "wide", result(0.9, 0.2))
    assert set(again.latencies(baseline(tmp_path))) == {"narrow", "wide"}


def test_a_line_that_was_cut_off_costs_that_line(tmp_path: Path) -> None:
    costs = Costs(tmp_path, study(tmp_path))
    for index in range(3):
        costs.add(baseline(tmp_path), f"a{index}", result(0.5))
    (file,) = (tmp_path / "cache" / "costs").iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(
        lines[0] + b"[1]\n" + json.dumps({"architecture": "x", "result": {}}).encode() + b"\n" + lines[1][:40]
    )
    damaged = Costs(tmp_path, study(tmp_path))
    assert set(damaged.latencies(baseline(tmp_path))) == {"a0"}
    damaged.add(baseline(tmp_path), "later", result(0.5))
    assert set(Costs(tmp_path, study(tmp_path)).latencies(baseline(tmp_path))) == {"a0", "later"}


def test_recipes_that_differ_in_their_training_alone_share_an_outline(tmp_path: Path) -> None:
    base = Recipe("lenet300", pruning=Pruning("channel", 0.5), quantization=Quantization("static_int8"))
    alike = [
        replace(base, seed=7),
        replace(base, quantization=Quantization("qat_int8")),
        replace(base, distillation=Distillation("soft", 3.0, 0.5)),
        replace(base, finetuning=FineTuning(epochs=9, learning_rate=1e-2)),
        replace(base, pruning=Pruning("channel", 0.5, "one_shot")),
    ]
    other = [
        replace(base, pruning=Pruning("channel", 0.6)),
        replace(base, quantization=Quantization()),
        replace(base, model="lenet5"),
    ]
    costs = Costs(tmp_path, study(tmp_path))
    costs.sketch(baseline(tmp_path), base, Outline("narrow", {"size_bytes": 5.0}))
    again = Costs(tmp_path, study(tmp_path))
    assert [again.outline(baseline(tmp_path), r) for r in alike] == [Outline("narrow", {"size_bytes": 5.0})] * 5
    assert {again.outline(baseline(tmp_path), recipe) for recipe in other} == {None}


def test_a_second_sweep_measures_no_architecture_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers.base, "load", lambda name: linear.LinearTrainer())
    changes: dict[str, Any] = {"latency": {"max_seconds": 0.5, "target_rel_ci": 0.9}, "confirm": {"seeds": 0}}
    first = linear.searched(linear.config(root, **changes))
    measured = [record.environment["latency_of"] for record in first.records()]
    assert measured == ["its own file"] * 2
    second = linear.searched(linear.config(root, **changes).model_copy(update={"fresh": True}))
    assert second.name != first.name
    assert [r.environment["latency_of"] for r in second.records()] == ["files of its architecture"] * 2
    for before, after in zip(first.records(), second.records(), strict=True):
        assert after.metrics["latency_ratio"] == before.metrics["latency_ratio"]
