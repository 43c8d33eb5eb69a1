"""A study's figures by name: what the task says of its metrics, and all that follows from it."""

from __future__ import annotations

import math
import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from search.errors import SettingsError
from search.study.metrics import Metrics
from search.sweep.sweep import Sweep
from tasks.base import Metric, TaskInfo, TaskSpec
from tests.test_study import study

RMSE = Metric("rmse", "minimize", "K", 1.0, 3, "RMSE", tolerance=0.5)
IOU = Metric("miou", "maximize", "%", 100.0, 1, "mIoU")
EDGE = Metric("boundary_error", "minimize", "px")
words = st.text(string.ascii_lowercase, min_size=1, max_size=8)
metrics = st.lists(
    st.builds(
        Metric,
        words,
        st.sampled_from(["maximize", "minimize"]),
        st.sampled_from(["", "%", "px"]),
        st.floats(1e-3, 1e3),
        st.integers(0, 6),
        st.text(max_size=12),
        st.floats(1e-3, 10),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda metric: metric.name,
)
values = st.floats(-1e6, 1e6)


def made(listed: list[Metric]) -> Metrics:
    try:
        return Metrics(tuple(listed))
    except ValueError:
        assume(False)
        raise


@given(metrics)
def test_what_is_recorded_with_a_sweep_is_read_back(listed: list[Metric]) -> None:
    assert Metrics.from_json(made(listed).to_json()) == made(listed)


def test_a_sweep_that_was_recorded_without_is_one_of_accuracy_and_a_later_field_is_left_out() -> None:
    assert Metrics.from_json(None) == Metrics()
    assert Metrics().quality == ("accuracy",)
    assert Metrics.from_json('[{"name": "rmse", "direction": "minimize", "shape": "round"}]').minimized("rmse")


@given(metrics, st.data())
def test_a_drop_is_the_loss_of_quality_whatever_the_direction(listed: list[Metric], data: st.DataObject) -> None:
    of = made(listed)
    dense = {name: data.draw(values) for name in of.quality}
    other = {name: data.draw(values) for name in of.quality}
    drops = of.drops(other, dense)
    for name in of.quality:
        worse = other[name] > dense[name] if of.minimized(name) else other[name] < dense[name]
        assert (drops[f"{name}_drop"] > 0) == worse
        assert of.minimized(f"{name}_drop")
    assert of.drops(other, dense, "test_") == {f"test_{name}": drop for name, drop in drops.items()}
    assert set(of.drops(dense, dense).values()) == {0.0}


@given(metrics)
def test_every_name_is_told_apart_and_can_be_searched_unless_it_is_of_the_test_split(listed: list[Metric]) -> None:
    of = made(listed)
    assert len(set(of.shown())) == len(of.shown())
    assert set(of.names()) < set(of.shown())
    assert of.problems(of.names(), [f"{name} <= 1" for name in of.names()]) == []
    assert not set(of.names()) & set(of.test)
    assert len(of.problems(list(of.test), [])) == len(of.test)
    for name in of.shown():
        assert of[f"search/{name}"] == of[name]


def test_how_figures_read() -> None:
    of = Metrics((IOU, RMSE, EDGE))
    assert of["miou"].axis == "Validation mIoU (%)"
    assert of["test_miou"].phrase == "test mIoU"
    assert of["miou_drop"].text(0.0123) == "1.2 points"
    assert of["rmse"].text(3.14159) == "3.142 K"
    assert of["rmse_drop"].title == "RMSE increase"
    assert of["test_boundary_error_drop"].axis == "Test boundary error increase (px)"
    assert [of.short(name) for name in ("miou", "boundary_error", "latency_ms")] == [
        "mIoU",
        "Boundary error",
        "Latency",
    ]
    assert of["on_mars"] == replace(of["latency_ms"], title="On mars", unit="")
    assert of.directions(["miou", "rmse", "size_bytes"]) == ["maximize", "minimize", "minimize"]


def test_mistakes_are_told_all_at_once_with_the_nearest_name() -> None:
    found = Metrics((IOU, RMSE)).problems(["miuo", "latency_ms", "accuracy"], ["rmse_drop <= 1", "size <= 3", "odd"])
    assert [text.partition(";")[0] for text in found] == [
        "study.objectives[0]: 'miuo' is not a metric (did you mean miou?)",
        "study.objectives[2]: 'accuracy' is not a metric",
        "study.constraints[1]: 'size' is not a metric",
    ]
    assert "choose from miou, miou_drop, rmse, rmse_drop, latency_ms" in found[0]


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (["latency_ms"], "'latency_ms' means something else already"),
        (["state"], "'state' means something else already"),
        (["f1", "f1"], "'f1' means something else already"),
        (["f1", "f1_drop"], "'f1_drop' means something else already"),
        (["accuracy", "test_accuracy"], "'test_accuracy' means something else already"),
        (["score_low"], "ends like the end of an interval"),
        ([], "give it at least one"),
    ],
)
def test_a_name_that_means_something_else_is_refused(names: list[str], rule: str) -> None:
    described = TaskInfo("mine", {}, (), (), tuple(map(Metric, names)), "digest")
    with pytest.raises(SettingsError, match=f"task mine: .*{rule}"):
        Metrics.from_info(described)


def test_what_a_study_alone_says_of_its_metrics() -> None:
    photos = TaskSpec(model="torchvision:resnet18", data="imagefolder:photos")
    assert Metrics.of(TaskSpec("mnist")) == Metrics.of(photos) == Metrics()
    assert Metrics.of(TaskSpec("tests.regression:Regression")) is None
    logged = Metrics.of(TaskSpec(model="mine.py:Net", data="mine.py:Data", metric="val_loss"))
    assert logged is not None
    assert logged.minimized("val_loss")
    assert Metrics.from_info(TaskInfo("mine", {}, (), (), (RMSE,), "digest")).quality == ("rmse",)


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_what_cannot_be_searched_by_is_named(value: float | None) -> None:
    figures = {"latency_ms": 1.0} | ({} if value is None else {"rmse": value})
    said = Metrics((RMSE,)).unusable(figures, ["latency_ms", "rmse"])
    assert said.startswith("rmse: not measured; there are latency_ms" if value is None else f"rmse: is {value:g}")
    assert not Metrics((RMSE,)).unusable({"rmse": 1.0}, ["rmse"])


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_fraction_is_counted_in_samples(validation: int, test: int) -> None:
    steps = Metrics((IOU, RMSE)).steps(validation, test)
    assert steps["miou"] == steps["miou_drop"] == 1 / validation
    assert steps["test_miou"] == steps["test_miou_drop"] == 1 / test
    assert not any("rmse" in name for name in steps)


def test_a_sweep_keeps_its_metrics_and_is_not_continued_with_others(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    mine = study().model_copy(update={"objectives": ["rmse", "latency_ms"], "constraints": ["rmse_drop <= 0.1"]})
    sweep = Sweep.open(mine, url, metrics=Metrics((RMSE,)))
    assert sweep.directions == ["minimize", "minimize"]
    assert sweep.study.metric_names == ["rmse", "latency_ms"]  # what optuna-dashboard shows
    assert Metrics.from_json(sweep.study.user_attrs["pare.metrics"]) == Metrics((RMSE,))
    Sweep.open(mine, url, metrics=Metrics((replace(RMSE, title="Root mean square"),)))  # said otherwise, meant the same
    turned = Metrics((replace(RMSE, direction="maximize"),))
    with pytest.raises(SettingsError, match="metric rmse: was minimize, now maximize"):
        Sweep.open(mine, url, metrics=turned)
    assert Sweep.open(mine, url, fresh=True, metrics=turned).directions == ["maximize", "minimize"]
