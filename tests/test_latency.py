"""Paired latency: the interval's statistics on drawn timings, the measuring process on real files."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtimes import latency, pace
from runtimes.base import Artifact, ArtifactError
from runtimes.interleave import Estimate, warning
from runtimes.interval import BETWEEN_PROCESSES, least_disturbed, quiet_blocks, ratio_interval, slow_phase
from runtimes.latency import NARROWEST, LatencyError, LatencyResult, LatencySpec, measure, measure_many

pytestmark = pytest.mark.usefixtures("own_locks")

QUICK = LatencySpec(max_seconds=0.5, min_blocks=5, target_rel_ci=0.2)


def drawn(rng: np.random.Generator, blocks: int, ratio: float) -> np.ndarray:
    """Block levels [blocks, 2] of a candidate that takes `ratio` of the baseline: common drift, heavy-tailed noise."""
    drift = np.exp(np.cumsum(rng.normal(0, 0.01, blocks)))
    noise = np.exp(0.01 * rng.standard_t(3, (blocks, 2)))
    return np.asarray(1000 * drift[:, None] * noise * np.array([ratio, 1.0]))


def chain(path: Path, layers: int, width: int = 64) -> Artifact:
    """`layers` square matrix products and ReLUs on float32 [batch, width]."""
    rng = np.random.default_rng(layers)
    nodes, tensors, last = [], [], "inputs"
    for layer in range(layers):
        tensors.append(numpy_helper.from_array(rng.normal(0, 0.1, (width, width)).astype(np.float32), f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"product{layer}"]))
        last = f"relu{layer}"
        nodes.append(helper.make_node("Relu", [f"product{layer}"], [last]))
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch", width]) for end in ("inputs", last)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return Artifact.of(path)


@pytest.fixture
def baseline(tmp_path: Path) -> Artifact:
    return chain(tmp_path / "baseline.onnx", 2)


def test_the_interval_covers_the_true_ratio_and_is_narrow() -> None:
    rng = np.random.default_rng(0)
    covered, halves = 0, []
    for _ in range(400):
        ratio, low, high = ratio_interval(drawn(rng, 16, 0.5), rng, between=0)
        assert low < ratio < high
        covered += low <= 0.5 <= high
        halves.append((high - low) / 2 / 0.5)
    assert covered >= 0.93 * 400
    assert np.median(halves) < 0.03


def test_the_interval_still_covers_with_stopping_when_tight() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(150):
        times = drawn(rng, 96, 1.0)
        for count in range(LatencySpec().min_blocks, 97, 4):
            _, low, high = ratio_interval(times[:count], rng, between=0)
            if (high - low) / 2 <= 0.0065:
                break
        covered += low <= 1 <= high
    assert covered >= 0.92 * 150


def test_swapping_the_files_inverts_ratio_and_interval() -> None:
    times = drawn(np.random.default_rng(2), 20, 0.7)
    ratio, low, high = ratio_interval(times, np.random.default_rng(0))
    swapped = ratio_interval(times[:, ::-1], np.random.default_rng(0))
    assert swapped == pytest.approx((1 / ratio, 1 / high, 1 / low))


def test_a_single_wild_block_does_not_move_the_ratio() -> None:
    times = drawn(np.random.default_rng(3), 20, 0.7)
    wild = times.copy()
    wild[4, 0] *= 50
    assert ratio_interval(wild, np.random.default_rng(0))[0] == pytest.approx(0.7, rel=0.02)


def test_no_interval_is_narrower_than_what_processes_differ_by() -> None:
    _, low, high = ratio_interval(np.full((50, 2), 5.0), np.random.default_rng(0))
    assert np.log(high / low) / 2 == pytest.approx(1.96 * BETWEEN_PROCESSES)
    assert np.log(high / low) / 2 < NARROWEST


def test_equal_blocks_give_an_interval_without_width() -> None:
    assert ratio_interval(np.full((6, 2), 5.0), np.random.default_rng(0), between=0) == pytest.approx((1, 1, 1))


def test_slow_phases_are_left_out() -> None:
    rng = np.random.default_rng(4)
    times = np.array([300.0, 1000.0]) * rng.normal(1, 0.005, (40, 2))
    slow = np.zeros(40, dtype=bool)
    slow[10:25] = True
    times[slow] *= [1.45, 1.22]  # one core shared with a neighbour: not both files suffer alike
    counts = quiet_blocks(times)
    assert not counts[slow].any()
    assert counts[~slow].sum() >= 20
    assert ratio_interval(times[counts], rng)[0] == pytest.approx(0.3, rel=0.01)


def test_a_slow_phase_as_long_as_the_measurement_is_seen_by_what_is_known() -> None:
    times = np.array([435.0, 1220.0]) * np.random.default_rng(5).normal(1, 0.005, (30, 2))
    assert quiet_blocks(times).any()
    assert not quiet_blocks(times, np.array([np.nan, 1000.0])).any()
    assert quiet_blocks(times, np.array([np.nan, np.nan])).any()


def test_a_slow_phase_that_outlasts_the_measurement_widens_the_interval_to_the_calm_ratio() -> None:
    # As measured on one machine: baseline in µs -> ratio of a file that fits the cache, calm first.
    calm, phases = (113.0, 0.450), ((127.0, 0.431), (139.2, 0.392), (145.4, 0.370), (154.0, 0.356))
    assert slow_phase(np.full(8, 1.04 * calm[0]), calm[0]) == 0
    for taken, ratio in phases:
        assert slow_phase(np.full(8, taken), calm[0]) >= np.log(calm[1] / ratio)
    assert slow_phase(np.full(8, 500.0), np.nan) == 0


def test_where_hardly_any_block_is_quiet_the_best_are_taken() -> None:
    times = np.array([435.0, 1220.0]) * np.random.default_rng(6).normal(1, 0.005, (20, 2))
    times[[3, 8, 9, 17]] = [300.0, 1000.0]
    chosen = least_disturbed(times, 5)
    assert chosen[[3, 8, 9, 17]].all()
    assert chosen.sum() == 5
    assert ratio_interval(times[chosen], np.random.default_rng(0))[0] == pytest.approx(0.3, rel=1e-6)


def test_leaving_out_slow_phases_favours_no_file() -> None:
    times = drawn(np.random.default_rng(6), 40, 1.0)
    assert np.array_equal(quiet_blocks(times), quiet_blocks(times[:, ::-1]))


def test_pace_remembers_the_fastest_of_the_last_twenty(baseline: Artifact, own_locks: Path) -> None:
    assert np.isnan(pace.known(baseline, "one"))
    for taken in (90.0, *[100.0] * 19):
        pace.note(baseline, "one", taken)
    assert pace.known(baseline, "one") == 90
    pace.note(baseline, "one", 110.0)
    assert pace.known(baseline, "one") == 100
    assert np.isnan(pace.known(baseline, "other"))
    for damaged in ("{", "[1]", '{"one": 3}', '{"one": ["x"]}'):
        next(own_locks.glob("pace-*.json")).write_text(damaged)
        assert np.isnan(pace.known(baseline, "one"))


def test_measure_tells_ratio_spread_and_environment(baseline: Artifact, tmp_path: Path) -> None:
    result = measure("onnxruntime", chain(tmp_path / "long.onnx", 40), baseline, QUICK)
    (found,) = result.comparisons
    assert found.ratio_low <= result.latency_ratio <= found.ratio_high
    assert result.latency_ratio > 1  # 20 times the work
    assert result.latency_ms == found.candidate.p50_ms > found.baseline.p50_ms > 0
    assert found.candidate.p95_ms >= found.candidate.p50_ms
    assert found.candidate.throughput < found.baseline.throughput
    assert found.blocks >= max(5, found.undisturbed)
    assert found.stopped in ("tight", "time")
    where = result.environment
    assert where["cpu"]
    assert where["cores"] == os.cpu_count()
    assert len(where["affinity"]) == 1
    assert where["runtime"] == "onnxruntime"
    assert where["runtime_version"][0].isdigit()
    assert LatencyResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_no_framework_is_in_the_measuring_process(baseline: Artifact) -> None:
    assert measure("onnxruntime", baseline, baseline, QUICK).environment["frameworks"] == []


def test_the_torch_runtime_is_seen_to_be_in_there(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "double.pt2"

    class Double(torch.nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs * 2

    torch.export.save(torch.export.export(Double(), (torch.zeros(1, 4),)), path)
    result = measure("torch", Artifact.of(path), Artifact.of(path), QUICK)
    assert result.environment["frameworks"] == ["torch"]


def test_every_batch_size_and_number_of_threads_is_measured(baseline: Artifact) -> None:
    spec = LatencySpec(batch=(1, 8), threads=(1, 2), max_seconds=0.2, min_blocks=5)
    result = measure("onnxruntime", baseline, baseline, spec)
    measured = [(each.batch, each.threads) for each in result.comparisons]
    assert measured == [(1, 1), (1, 2), (8, 1), (8, 2)]


def test_many_candidates_keep_their_order(baseline: Artifact, tmp_path: Path) -> None:
    candidates = [chain(tmp_path / "longer.onnx", 60), baseline, chain(tmp_path / "long.onnx", 15)]
    ratios = [result.latency_ratio for result in measure_many("onnxruntime", candidates, baseline, QUICK)]
    assert ratios[0] > ratios[2] > ratios[1]


def test_it_stops_when_the_interval_is_tight(baseline: Artifact) -> None:
    spec = LatencySpec(target_rel_ci=0.9, max_seconds=60, min_blocks=5)
    (found,) = measure("onnxruntime", baseline, baseline, spec).comparisons
    assert found.stopped == "tight"
    assert found.noisy is None
    assert found.undisturbed >= 5


def test_it_stops_when_time_is_up_and_says_how_noisy_it_was(baseline: Artifact) -> None:
    result = measure("onnxruntime", baseline, baseline, LatencySpec(target_rel_ci=0.015, max_seconds=0.01))
    (found,) = result.comparisons
    assert found.stopped == "time"
    narrow = found.undisturbed >= 5 and found.ratio_high - found.ratio_low <= 2 * 0.015 * found.ratio
    assert len(result.noisy) == (not narrow)  # a calm machine needs no more time


def test_the_warning_of_a_noisy_machine_names_interval_and_remedy() -> None:
    found = Estimate(1.02, 0.95, 1.1, np.ones(12, bool), undisturbed=4)
    said = warning(found, LatencySpec(), seconds=4.0)
    assert said is not None
    assert "ratio 1.020, 95 % interval 0.950 to 1.100 after 4.0 s, 4 of 12 blocks undisturbed (asked: ±3 %)" in said
    assert "raise latency.max_seconds" in said
    assert warning(Estimate(1.0, 0.99, 1.01, np.ones(12, bool), undisturbed=12), LatencySpec(), 4.0) is None


def test_a_broken_file_is_an_artifact_error(baseline: Artifact, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match=r"broken\.onnx: ONNX Runtime .* cannot load it"):
        measure("onnxruntime", Artifact.of(tmp_path / "broken.onnx"), baseline, QUICK)


def test_a_format_of_another_runtime_is_refused(baseline: Artifact) -> None:
    with pytest.raises(ArtifactError, match=r"torch loads \.pt2 files, not \.onnx"):
        measure("torch", baseline, baseline, QUICK)


def test_an_unknown_runtime_is_refused_with_the_choices(baseline: Artifact) -> None:
    with pytest.raises(ValueError, match="'onnx' is not a runtime; choose from onnxruntime"):
        measure("onnx", baseline, baseline, QUICK)


def measuring() -> list[psutil.Process]:
    """The measuring processes of this one; other tests leave children of other kinds."""
    return [child for child in psutil.Process().children() if "runtimes.interleave" in child.cmdline()]


def test_a_killed_measuring_process_is_a_clear_error_and_frees_the_host(baseline: Artifact, own_locks: Path) -> None:
    caught: list[BaseException] = []

    def run() -> None:
        try:
            measure("onnxruntime", baseline, baseline, LatencySpec(min_blocks=10**6, max_seconds=60))
        except LatencyError as problem:
            caught.append(problem)

    caller = threading.Thread(target=run)
    caller.start()
    while not (children := measuring()):
        time.sleep(0.01)
    with (own_locks / "room").open() as room:
        with pytest.raises(BlockingIOError):
            fcntl.flock(room, fcntl.LOCK_SH | fcntl.LOCK_NB)  # no training step may run now
        children[0].kill()
        caller.join()
        fcntl.flock(room, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert "was ended by SIGKILL" in str(caught[0])


def test_a_warmed_process_serves_one_measurement_and_its_death_costs_nothing(baseline: Artifact) -> None:
    latency.warm("onnxruntime")
    first = latency._warmed
    latency.warm("onnxruntime")
    assert first is not None
    assert latency._warmed is first
    assert measure("onnxruntime", baseline, baseline, QUICK).latency_ratio > 0
    assert latency._warmed is None
    assert first.poll() == 0
    latency.warm("onnxruntime")
    assert latency._warmed is not None
    latency._warmed.kill()
    latency._warmed.wait()
    assert measure("onnxruntime", baseline, baseline, QUICK).latency_ratio > 0
    assert not measuring()


def test_a_failing_measuring_process_is_a_clear_error() -> None:
    with pytest.raises(LatencyError, match="failed with exit status 1: KeyError: 'spec'"):
        latency._ask({}, limit=60)


def test_a_measuring_process_without_an_answer_in_time_is_ended() -> None:
    with pytest.raises(LatencyError, match="no answer within 0 s"):
        latency._ask({}, limit=0.01)
    assert not measuring()


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("batch", (), "whole numbers of at least 1"),
        ("threads", (1, 0), "whole numbers of at least 1"),
        ("target_rel_ci", 0.01, r"between 0\.015 .* and 1"),
        ("max_seconds", 0.0, "above 0 seconds"),
        ("min_blocks", 2, "at least 5"),
    ],
)
def test_a_spec_that_cannot_be_measured_is_refused(field: str, value: object, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"latency\.{field}: .*{rule}"):
        LatencySpec(**{field: value})  # type: ignore[arg-type]
