"""Sweeps of tasks whose metric is not accuracy, or not one: front, knee, reference point, confirmation, reports.

The oracle: to minimize the error, 1 - accuracy, is to maximize the accuracy.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.base import Artifact
from runtimes.latency import Comparison, LatencyResult, Timing
from search import pick
from search.command import UsageError
from search.front import comparison, page, pareto, publish
from search.front.card import card
from search.front.choice import choose
from search.front.summary import Summary, read
from search.front.tables import figures, markdown
from search.study.config import Confirm
from search.study.constraint import Constraint
from search.study.metrics import Metrics
from search.sweep.candidates import candidates
from search.sweep.confirmed import Confirmed, front, summarize
from search.sweep.reference import reference_point
from search.tracking import views
from search.trial.record import TrialRecord
from search.trial.results import Baseline, Exported, Judged
from tasks.base import ACCURACY, Metric, TaskInfo
from tasks.mnist.task import RECORDED_WITHOUT
from tests import sweeps
from tests.sweeps import record
from tests.test_metrics import EDGE, IOU
from tests.test_study import study
from trainers.base import DenseSpec

ERROR = Metric("error", "minimize", "%", 100.0, 2, "Error")
OF = {"accuracy": Metrics((ACCURACY,)), "error": Metrics((ERROR,))}
LIMITS = {name: [Constraint(f"{name}_drop", "<=", 0.05)] for name in OF}
shares = st.integers(0, 1000).map(lambda n: n / 1000)
points = st.lists(st.tuples(shares, st.floats(0.1, 2)), min_size=1, max_size=10)


def turned(name: str, accuracy: float) -> float:
    """The metric's value of that accuracy."""
    return accuracy if name == "accuracy" else 1 - accuracy


def trial(number: int, name: str, accuracy: float, latency: float) -> TrialRecord:
    return record(number, metrics={name: turned(name, accuracy), "latency_ms": latency}, feasible=True, violations={})


# -- the search's own figures -----------------------------------------------------------------------------------------


@given(points, st.integers(1, 6))
@settings(max_examples=40)
def test_front_knee_and_candidates_are_the_same_whichever_way_quality_is_counted(
    values: list[tuple[float, float]], most: int
) -> None:
    found = {}
    for name, metrics in OF.items():
        objectives = [name, "latency_ms"]
        table = np.round([[turned(name, accuracy), latency] for accuracy, latency in values], 9)
        directions = metrics.directions(objectives)
        chosen = candidates([trial(i, name, *v) for i, v in enumerate(values)], objectives, Confirm(), metrics)
        found[name] = (
            pareto.front(table, directions).tolist(),
            pareto.hypervolume(table, directions, [turned(name, 0.0), 2.0]),
            [record.number for record in chosen],
        )
    assert found["accuracy"][0] == found["error"][0]
    assert found["accuracy"][1] == pytest.approx(found["error"][1])
    assert found["accuracy"][2] == found["error"][2]


def baseline(metrics: dict[str, float], latency: float = 1.0, size: int = 1000) -> Baseline:
    spec, file = DenseSpec("pytorch", "net"), Artifact(Path("dense.onnx"), "onnx", "0")
    task = TaskInfo("mine", {}, (), (), (), "d")
    return Baseline(spec, Path(), file, metrics, 1000, size, latency, "d", {}, {}, task, Path("examples.npz"))


@given(st.lists(shares, min_size=1, max_size=3), st.lists(st.floats(0.001, 0.2), max_size=2))
def test_the_reference_point_is_worse_than_every_dense_model_by_what_the_study_allows(
    dense: list[float], bounds: list[float]
) -> None:
    found = {}
    for name, metrics in OF.items():
        objectives = [name, f"{name}_drop", "latency_ms", "latency_ratio", "size_bytes", "sparsity"]
        limits = [f"{name}_drop <= {bound}" for bound in bounds] + [f"{name}_drop >= -1", "latency_ms <= 9"]
        wanted = study().model_copy(update={"objectives": objectives, "constraints": limits})
        baselines = [baseline({name: turned(name, accuracy)}, 2.0, 100 + i) for i, accuracy in enumerate(dense)]
        found[name] = reference_point(wanted, metrics, baselines)
    drop = min(bounds, default=0.05)
    assert found["accuracy"][0] == pytest.approx(max(dense) - drop, abs=1e-6)
    assert found["error"][0] == pytest.approx(1 - found["accuracy"][0])
    assert found["error"][1:] == found["accuracy"][1:]
    assert found["error"][1:] == pytest.approx([drop, 2.2, 1.1, 1.1 * (99 + len(dense)), 0.0], rel=1e-5)


def test_each_metric_has_a_tolerance_of_its_own_where_the_study_sets_no_bound() -> None:
    metrics = Metrics((IOU, replace(EDGE, tolerance=1.5)))
    wanted = study().model_copy(update={"objectives": ["miou", "boundary_error"], "constraints": []})
    dense = baseline({"miou": 0.8, "boundary_error": 4.0})
    assert reference_point(wanted, metrics, [dense]) == pytest.approx([0.75, 5.5])
    unsaid = Metrics((IOU, EDGE))
    assert reference_point(wanted, unsaid, [dense]) == pytest.approx([0.75, 4.2])  # a twentieth of 4 pixels
    assert reference_point(wanted, unsaid, [baseline({"miou": 0.8, "boundary_error": 0.0})])[1] > 0


# -- confirmation -----------------------------------------------------------------------------------------------------


def timed(ratio: float) -> LatencyResult:
    """A measurement with that ratio, 2 % certain."""
    one = Timing(ratio, ratio, 0.0, 1.0)
    return LatencyResult((Comparison(1, 1, one, one, ratio, 0.98 * ratio, 1.02 * ratio, 9, 9, 1.0, "tight", None),), {})


def confirmed(name: str, number: int, seeds: list[tuple[float, float]], dense: float, ratio: float = 0.5) -> Confirmed:
    """A candidate of those (validation, test) accuracies, one pair per seed."""
    built = [
        Exported(Artifact(Path(f"{seed}.onnx"), "onnx", ""), 100, {name: turned(name, own)}, 1.0, 0.5, 0.5, {}, [])
        for seed, (own, _) in enumerate(seeds)
    ]
    test = [{name: turned(name, accuracy)} for accuracy in (dense, *(test for _, test in seeds))]
    judged = Judged(test, 500, [timed(1.0), *(timed(ratio) for _ in seeds)])
    limits = [Constraint(f"{name}_drop", "<=", 0.1)]
    return summarize(limits, OF[name], record(number), baseline({name: turned(name, dense)}), built, judged)


pairs = st.lists(st.tuples(shares, shares), min_size=1, max_size=5)


@given(pairs, shares)
def test_confirmed_figures_are_the_same_whichever_way_quality_is_counted(
    seeds: list[tuple[float, float]], dense: float
) -> None:
    one, other = (confirmed(name, 0, seeds, dense) for name in OF)
    for prefix, samples in (("", 1000), ("test_", 500)):
        mean, low, high = one.metrics[f"{prefix}accuracy"]
        assert other.metrics[f"{prefix}error"] == pytest.approx((1 - mean, 1 - high, 1 - low))
        assert high - low >= 2 / samples - 1e-9  # a share of so many samples is known no better
        drop = one.metrics[f"{prefix}accuracy_drop"]
        assert other.metrics[f"{prefix}error_drop"] == pytest.approx(drop)
        assert drop[0] == pytest.approx(dense - mean)
    assert other.chosen == one.chosen
    assert {other.feasible, one.feasible} == {one.metrics["accuracy_drop"][0] - 0.1 <= 0}


@given(st.lists(st.tuples(pairs, st.floats(0.1, 2)), min_size=1, max_size=5))
@settings(max_examples=40)
def test_the_confirmed_front_is_the_same_too(tried: list[tuple[list[tuple[float, float]], float]]) -> None:
    kept = []
    for name, metrics in OF.items():
        found = [confirmed(name, i, seeds, 0.9, ratio) for i, (seeds, ratio) in enumerate(tried)]
        found = [_rounded(replace(point, feasible=True)) for point in found]
        kept.append([point.on_front for point in front(found, [name, "latency_ratio"], metrics)])
    assert kept[0] == kept[1]


def _rounded(point: Confirmed) -> Confirmed:
    """1 - x - (1 - y) is not quite y - x: the ends of equal intervals must stay equal."""
    metrics = {name: (round(m[0], 9), round(m[1], 9), round(m[2], 9)) for name, m in point.metrics.items()}
    return replace(point, metrics=metrics)


def test_a_record_of_an_older_version_is_gone_not_an_error(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"weights")
    made = Exported(Artifact.of(file), 7, {"error": 0.1}, 1.0, 0.5, 0.5, {}, [])
    assert Exported.restore(made.to_dict()) == made
    older = {key: value for key, value in made.to_dict().items() if key != "metrics"} | {"accuracy": 0.9}
    assert Exported.restore(older) is None
    dense = replace(baseline({"error": 0.1}), artifact=Artifact.of(file)).to_dict()
    assert Baseline.restore({key: value for key, value in dense.items() if key != "metrics"} | {"accuracy": 1}) is None


# -- recorded sweeps --------------------------------------------------------------------------------------------------

RECORDS = [record(0, reference="dense"), *(record(n) for n in range(1, 4))]


def told(name: str, off: float = 0.0) -> list[TrialRecord]:
    """RECORDS with their quality counted as `name`, and `off` better than they were."""
    made = []
    for each in RECORDS:
        rest = {key: value for key, value in each.metrics.items() if not key.startswith("accuracy")}
        accuracy, drop = each.metrics["accuracy"] + off, each.metrics["accuracy_drop"] - off
        metrics = {name: turned(name, accuracy), f"{name}_drop": drop} | rest
        made.append(replace(each, metrics=metrics, violations={f"{name}_drop <= 0.012": drop - 0.012}))
    return made


def again(root: Path, name: str, record: TrialRecord) -> dict[str, Any]:
    """What confirming the trial finds: a little worse than the search, 0.1 % certain, worse still on the test split."""
    accuracy = turned(name, record.metrics[name]) - 0.001
    means = dict(record.metrics) | {name: turned(name, accuracy), f"test_{name}": turned(name, accuracy - 0.001)}
    means = {key: value for key, value in means.items() if not key.endswith(("_low", "_high"))}
    ends = {key: (value, value - 0.001 * abs(value), value + 0.001 * abs(value)) for key, value in means.items()}
    ends[name] = (means[name], means[name] - 0.001, means[name] + 0.001)
    return {"number": record.number, "metrics": ends, "on_front": True, "chosen": str(root / "model.onnx"), "seeds": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies `accuracy` and `error` that found the same, the second sweep 0.01 better in quality; `street`, of two
    metrics; `maximize` and `minimize`, of a score that is the more the better in the one and the worse in the other.
    """
    root = sweeps.store(tmp_path_factory.mktemp("mlruns"))
    (root / "model.onnx").write_bytes(b"a model file")
    patched = pytest.MonkeyPatch()
    patched.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, metrics in OF.items():
        for number, off in ((1, 0.0), (2, 0.01)):
            made = told(name, off)
            objectives, reference = [name, "latency_ms"], [turned(name, 0.9), 0.132]
            tracking = sweeps.sweep(root, name, made, objectives, reference, metrics, number)
            tracking.log_confirmed(f"{name}-{number:03d}", [again(root, name, made[n]) for n in (1, 3)])
    made = [_street(each) for each in RECORDS]
    sweeps.sweep(root, "street", made, ["miou", "latency_ms", "boundary_error"], (), Metrics((IOU, EDGE)))
    for direction in ("maximize", "minimize"):
        made = [replace(r, metrics={"score": i / 10, "latency_ms": 1.0}, violations={}) for i, r in enumerate(RECORDS)]
        metrics = Metrics((Metric("score", direction),))
        sweeps.sweep(root, direction, made, ["score", "latency_ms"], (0.5, 2.0), metrics)
    patched.undo()
    return root


def _street(each: TrialRecord) -> TrialRecord:
    rest = {key: value for key, value in each.metrics.items() if not key.startswith("accuracy")}
    drop = each.metrics["accuracy_drop"]
    quality = {"miou": 0.8 - drop, "miou_drop": drop, "boundary_error": 3 + 5 * drop, "boundary_error_drop": 5 * drop}
    return replace(each, metrics=quality | rest, violations={"miou_drop <= 0.012": drop - 0.012})


def test_a_recorded_sweep_shows_the_same_front_whichever_way_quality_is_counted(root: Path) -> None:
    one, other = (read(root, name, f"{name}-001") for name in OF)
    assert other.front["number"].tolist() == one.front["number"].tolist() == [1, 3]
    assert other.knee is not None
    assert one.knee is not None
    assert other.knee["number"] == one.knee["number"]
    assert other.hypervolume["hypervolume"].tolist() == pytest.approx(one.hypervolume["hypervolume"].tolist())
    assert one.hypervolume["hypervolume"].iloc[-1] > 0


def test_two_sweeps_compare_the_same_and_the_better_one_is_better(root: Path) -> None:
    found = {}
    for name in OF:
        older, newer = (read(root, name, f"{name}-{number:03d}") for number in (1, 2))
        compared = comparison.compare(older, newer)
        found[name] = compared.verdict, compared.gained["number"].tolist(), compared.hypervolume
        assert comparison.compare(newer, older).verdict == "worse beyond noise"
    assert found["error"][:2] == found["accuracy"][:2] == ("better beyond noise", [1, 3])
    assert found["error"][2] == pytest.approx(found["accuracy"][2])


def test_table_page_and_figures_are_in_the_tasks_names(root: Path) -> None:
    summary = read(root, "error", "error-001")
    text = markdown(summary)
    assert "| Error | in search | Test error |" in text
    assert "Error is on the validation split" in text
    assert "validation error" in text
    shown = page.page(summary)
    assert "Validation error against latency" in shown
    rows = figures(summary)
    assert {"error", "error_drop", "test_error", "search/error"} <= set(rows)
    assert json.loads(rows.to_json(orient="records"))[0]["error"] == pytest.approx(rows["error"].iloc[0])
    for words in (text, re.sub("<script>.*?</script>", "", shown, flags=re.S), ",".join(map(str, rows))):
        assert "ccuracy" not in words
    view = views.chart_view("error-001", summary.metrics, summary.objectives, summary.trials)
    assert ("latency_ms", "error") in _axes(view)
    assert "metrics.`error`" in view["selectedColumns"]
    assert "ccuracy" not in json.dumps(view)


def _axes(view: dict[str, Any]) -> list[tuple[str, str]]:
    return [(chart["xaxis"]["key"], chart["yaxis"]["key"]) for chart in view["compareRunCharts"] if "xaxis" in chart]


def test_two_metrics_both_have_their_columns_charts_and_best(root: Path) -> None:
    summary = read(root, "street")
    text = markdown(summary)
    assert "| mIoU | Boundary error | Latency |" in text
    assert "mIoU and boundary error are on the validation split" in text
    assert summary.pairs == [("latency_ms", "miou"), ("boundary_error", "miou")]
    assert "Best: validation boundary error" in page.page(summary)
    figures_of = publish.highlights(summary)
    assert figures_of["front/best_miou"] == summary.front["miou"].max()
    assert figures_of["front/best_boundary_error"] == summary.front["boundary_error"].min()


def chosen(summary: Summary, *words: str) -> pd.Series:
    asked = pick.arguments([f"study={summary.study}", *words])
    return choose(summary, asked.limits, asked.settings["by"], certain=False)


def test_pick_bounds_and_orders_by_the_tasks_metrics(root: Path, tmp_path: Path) -> None:
    one, other = (read(root, name, f"{name}-001") for name in OF)
    best = chosen(one, "by=accuracy")
    assert chosen(other, "by=error")["number"] == best["number"] == 1
    bound = float(best["accuracy"]) - 1e-6
    assert chosen(one, f"accuracy>={bound}")["number"] == chosen(other, f"error<={1 - bound}")["number"] == 1
    with pytest.raises(UsageError, match=r"'accuracy' is not a metric; choose from error, error_drop"):
        chosen(other, "accuracy>=0.9")
    with pytest.raises(UsageError, match=r"no point of the front meets it; nearest is trial 1"):
        chosen(other, "error<=0.0001")
    (tmp_path / "model.onnx").write_bytes(b"a file")
    said_of = card(other, best.rename({"accuracy": "error"}), tmp_path / "model.onnx", RECORDED_WITHOUT)
    assert f"- Licence: {RECORDED_WITHOUT.license}\n" in said_of
    unstated = replace(RECORDED_WITHOUT, license="")
    assert "- Licence: not stated; ask where" in card(other, best, tmp_path / "model.onnx", unstated)
    assert "| Validation error |" in said_of
    assert "ccuracy" not in said_of


def test_equal_names_may_mean_the_opposite_in_another_study(root: Path) -> None:
    """Read by one process, one after the other: nothing is kept of the first."""
    more, less = read(root, "maximize"), read(root, "minimize")
    assert more.front["score"].tolist() == [0.3]
    assert less.front["score"].tolist() == [0.0]
    assert read(root, "maximize").front["score"].tolist() == [0.3]
    with pytest.raises(UsageError, match=r"searched to maximize score.*searched to minimize score"):
        comparison.compare(more, less)
