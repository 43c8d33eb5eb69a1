"""The comparison with a script written without Pare: its figures, and a tiny one that really runs."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import start
from benchmarks.plain import figures, runs
from benchmarks.plain.figures import Settled
from benchmarks.plain.runs import TASKS, Setup
from search.front import pareto

ROOT = Path(__file__).parent.parent
POINTS = st.lists(st.tuples(st.floats(0.9, 1), st.floats(0.01, 1.5), st.floats(0.01, 1.5)), max_size=12)


def trained(at: float, *values: float) -> Settled:
    return Settled(at, "trained", (values[0], values[1], values[2]), f"{at}")


@given(POINTS)
def test_what_is_announced_is_what_grows_the_front(points: list[tuple[float, float, float]]) -> None:
    trials = [trained(float(i), *point) for i, point in enumerate(points)]
    shown = figures.announced(trials, 0.95)
    for index, trial in enumerate(trials):
        assert trial.values is not None
        before = [p for p in points[:index] if p[0] >= 0.95]
        beaten = any(p[0] >= trial.values[0] and p[1] <= trial.values[1] and p[2] <= trial.values[2] for p in before)
        assert (index in shown) == (trial.values[0] >= 0.95 and not beaten)
    assert set(figures.last_front(trials, 0.95)) <= set(shown)


@given(POINTS)
def test_the_curve_ends_at_the_volume_of_all_and_never_falls(points: list[tuple[float, float, float]]) -> None:
    times = [float(len(points) - i) for i in range(len(points))]  # given out of order
    curve = figures.curve(times, points, 0.9)
    assert [at for at, _ in curve] == sorted(times)
    volumes = [volume for _, volume in curve]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(volumes))
    if points:
        whole = pareto.hypervolume(np.array(points), figures.DIRECTIONS, (0.9, 1.0, 1.0)) / 0.1
        assert volumes[-1] == pytest.approx(whole)
        assert 0 <= whole <= 1 + 1e-9


def test_a_level_is_reached_when_it_first_is() -> None:
    curve = [(2.0, 0.1), (5.0, 0.4), (9.0, 0.4), (11.0, 0.6)]
    assert figures.time_to(curve, 0.4) == 5.0
    assert figures.time_to(curve, 0.41) == 11.0
    assert figures.time_to(curve, 0.7) == math.inf
    assert figures.time_to([], 0.1) == math.inf


def search(settled: list[tuple[str, int]], curve: list[tuple[float, float]], test: float) -> dict[str, object]:
    trials = [Settled(float(i), state) for state, count in settled for i in range(count)]
    return {"counts": figures.counted(trials), "curve": curve, "test_share": test}


def test_the_ratio_is_to_the_plain_scripts_own_time_to_its_last_volume() -> None:
    plain = search([("trained", 10), ("failed", 1)], [(60.0, 0.3), (400.0, 0.5)], 0.45)
    pare = search([("trained", 20), ("stopped", 30), ("copied", 5)], [(20.0, 0.4), (80.0, 0.55)], 0.5)
    found = figures.compared(plain, pare, 10.0)
    assert found["settled_ratio"] == 5.0  # trained or stopped, neither copies nor failures
    assert found["trained_ratio"] == 2.0
    assert found["pare_settled_per_hour"] == 300.0
    assert found["time_ratio"] == 80.0 / 400.0
    assert found["test_volume_difference"] == pytest.approx(0.05)
    assert figures.compared(pare, plain, 10.0)["time_ratio"] == math.inf
    assert math.isnan(figures.compared(search([], [], 0.0), search([], [], 0.0), 1.0)["time_ratio"])


def test_the_median_of_seeds_has_the_interval_of_the_sign_test() -> None:
    assert figures.median_interval([3, 1, 2, 5, 4]) == (3, 1, 5, 0.9375)
    middle, low, high, coverage = figures.median_interval(list(range(1, 18)))
    assert (middle, low, high) == (9, 5, 13)
    assert coverage == pytest.approx(0.951, abs=1e-3)
    assert figures.median_interval([0.1, math.inf, 0.2])[:3] == (0.2, 0.1, math.inf)
    assert figures.median_interval([7.0]) == (7.0, 7.0, 7.0, 0.0)


def test_wilsons_interval_of_an_accuracy() -> None:
    assert figures.wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert figures.wilson(1.0, 10_000)[0] == pytest.approx(0.99962, abs=1e-5)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_both_search_the_same_space_from_the_same_references(task: str, tmp_path: Path) -> None:
    setup = Setup(TASKS[task], 3, tmp_path)
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "weights.safetensors").touch()
    told = runs.settings(setup, {"dense_folder": str(tmp_path / "dense")}, tmp_path)
    study = setup.config().study
    assert told["recipe"] == study.recipe
    assert study.recipe["quantization"]["scheme"] == {"choices": ["none", "static_int8"]}
    assert len(told["references"]) == len(study.references)
    assert (study.seed, study.confirm.seeds, study.early_stopping.name) == (3, 0, "gain")


def test_steps_of_the_start_are_read_off_the_searchs_output() -> None:
    lines = [
        "smoke: Tiny; shows that everything works.",
        "smoke-001: 0 of 8 trials done; everything is kept in /root",
        "  baseline pytorch/lenet300: dense 33 %",
        "  baseline pytorch/lenet300: measure 0 %",
        "baseline pytorch/lenet300: accuracy 92.60 %, 0.0152 ms, 982 kB",
    ]
    assert [start.step_of(line) for line in lines] == [*start.STEPS[:2], start.STEPS[0], *start.STEPS[2:4]]


@pytest.mark.cluster
@pytest.mark.timeout(900)  # three searches of half a minute, on a busy machine with long starts
def test_a_tiny_comparison_is_carried_out_and_goes_on_where_it_was_interrupted(fetched: Path, tmp_path: Path) -> None:
    small = ["study.task.train_size=1000", "study.task.validation_size=300", "study.dense.epochs=4"]
    loose = 'study.constraints=["accuracy_drop <= 0.9"]'
    command = [sys.executable, "-m", "benchmarks.plain", "--task", "lenet300", "--minutes", "0.5"]
    command += ["--into", str(tmp_path), *small, loose]
    done = subprocess.run([*command, "--seeds", "1"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "settled_ratio" in done.stdout
    file = tmp_path / "lenet300.json"
    found = json.loads(file.read_text())
    known = found["seeds"]["0"]
    assert known["judged"]["plain"]["counts"]["trained"] >= 1
    for name in ("plain", "pare"):  # a busy machine may leave Pare's workers no time to train one
        judged = known["judged"][name]
        assert bool(judged["front"]) == bool(judged["counts"]["trained"])
        assert all(0 <= volume <= 1 for _, volume in judged["curve"])  # 0: slower and no smaller than the dense file
    del known["judged"], known["pare"]
    file.write_text(json.dumps(found))
    again = subprocess.run([*command, "--seeds", "1"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "seed 0: pare" in again.stdout
    assert "seed 0: plain" not in again.stdout
    assert json.loads(file.read_text())["seeds"]["0"]["plain"] == known["plain"]
    other = subprocess.run([*command[:-1], "--seeds", "1"], cwd=ROOT, capture_output=True, text=True)
    assert other.returncode
    assert "was begun with other words" in other.stderr
