"""The known metrics equal scikit-learn's, whatever the batches; weights of a user's onto a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies
from safetensors.torch import save_file
from sklearn import metrics as sk
from torch import nn

from tasks import scorers, weights
from tasks.base import Batch, Port, TaskError

LOGITS = Port("logits", ("batch", 4), kind="logits")
VALUES = Port("values", ("batch",))


def scored(name: str, port: Port, outputs: np.ndarray, targets: Any, cut: int, inputs: Any = None) -> float:
    """The metric over two batches, cut at `cut`."""
    scorer = scorers.scorer([scorers.METRICS[name]], [port], lambda t: t)
    for rows in (slice(None, cut), slice(cut, None)):
        if len(outputs[rows]):
            given_inputs = {"x": outputs[rows]} if inputs is None else {k: v[rows] for k, v in inputs.items()}
            cut_targets = tuple(t[rows] for t in targets) if isinstance(targets, tuple) else targets[rows]
            scorer.add({port.name: outputs[rows]}, Batch(given_inputs, cut_targets))
    return scorer.result()[name]


@given(strategies.integers(0, 2**31), strategies.integers(2, 60), strategies.integers(0, 60))
@settings(max_examples=40)
def test_classification_equals_scikit_learn(seed: int, rows: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    outputs, targets = rng.normal(size=(rows, 8)).astype(np.float32), rng.integers(0, 8, rows)
    port, found = Port("logits", ("batch", 8), kind="logits"), outputs.argmax(1)
    assert scored("accuracy", port, outputs, targets, cut) == pytest.approx(sk.accuracy_score(targets, found))
    top5 = sk.top_k_accuracy_score(targets, outputs, k=5, labels=np.arange(8))
    assert scored("top5", port, outputs, targets, cut) == pytest.approx(top5)
    f1 = sk.f1_score(targets, found, average="macro", labels=sorted({*targets, *found}), zero_division=0)
    assert scored("f1", port, outputs, targets, cut) == pytest.approx(f1)
    iou = sk.jaccard_score(targets, found, average="macro", labels=sorted({*targets, *found}), zero_division=0)
    assert scored("miou", port, outputs, targets, cut) == pytest.approx(iou)


@given(strategies.integers(0, 2**31), strategies.integers(1, 40), strategies.integers(0, 40))
@settings(max_examples=25)
def test_regression_equals_scikit_learn(seed: int, rows: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    outputs, targets = rng.normal(size=(rows, 1)), rng.normal(size=rows)
    pairs = {
        "mse": sk.mean_squared_error(targets, outputs[:, 0]),
        "rmse": sk.root_mean_squared_error(targets, outputs[:, 0]),
        "mae": sk.mean_absolute_error(targets, outputs[:, 0]),
    }
    for name, expected in pairs.items():
        assert scored(name, VALUES, outputs, targets, cut) == pytest.approx(expected)


@given(strategies.integers(0, 2**31), strategies.integers(0, 60))
@settings(max_examples=25)
def test_ndcg_equals_scikit_learn_by_group_and_by_row(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    scores, relevance = rng.normal(size=(5, 12)), rng.integers(0, 4, (5, 12)) + (np.arange(12) == 0)
    gains = 2.0**relevance - 1
    expected = np.mean([sk.ndcg_score(gains[i : i + 1], scores[i : i + 1], k=10) for i in range(5)])
    assert scored("ndcg", Port("s", ("batch", 12)), scores, relevance, min(cut, 5)) == pytest.approx(expected)
    order = rng.permutation(60)
    user = np.repeat(np.arange(5), 12)[order]
    flat, wanted = scores.reshape(-1)[order], relevance.reshape(-1)[order]
    assert scored("ndcg", VALUES, flat, (wanted, user), cut) == pytest.approx(expected)
    assert scored("ndcg", VALUES, flat, wanted, cut, {"user": user, "item": order}) == pytest.approx(expected)


def test_dense_maps_leave_out_labels_that_are_no_class() -> None:
    outputs = np.zeros((2, 3, 4, 4))
    outputs[:, 1] = 1
    targets = np.ones((2, 4, 4), np.int64)
    targets[0, 0] = 255
    targets[1, 0] = -1
    port = Port("map", ("batch", 3, 4, 4), kind="logits", axis=1)
    assert scored("miou", port, outputs, targets, 1) == 1.0
    targets[0, 1, 0] = 0
    assert scored("miou", port, outputs, targets, 1) == pytest.approx(23 / 24 / 2)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(TaskError, match=r"the output values is \[4\] and the targets are \[4, 2\]"):
        scored("mse", VALUES, np.zeros(4), np.zeros((4, 2)), 4)
    with pytest.raises(TaskError, match="gives classes of shape"):
        scored("accuracy", LOGITS, np.zeros((4, 4)), np.zeros((4, 2), np.int64), 4)


def _net(classes: int = 3) -> nn.Module:
    return nn.ModuleDict({"body": nn.Linear(4, 5), "fc": nn.Linear(5, classes)})


@pytest.mark.parametrize(
    "form", ["safetensors", "state_dict", "checkpoint", "wrapped", "compiled", "inner", "backbone"]
)
def test_weights_in_every_usual_form(form: str, tmp_path: Path) -> None:
    source, model = _net(), _net()
    state: Any = dict(source.state_dict())
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    else:
        state = {
            "state_dict": state,
            "checkpoint": {"epoch": 3, "state_dict": {f"model.{k}": v for k, v in state.items()}, "lr": 0.1},
            "wrapped": {f"module.{k}": v for k, v in state.items()},
            "compiled": {f"_orig_mod.module.{k}": v for k, v in state.items()},
            "inner": {"model": state, "optimizer": {"step": torch.zeros(1)}},
            "backbone": {**{f"model.{k}": v for k, v in state.items()}},
        }[form]
        torch.save(state, path)
    assert weights.fit(model, path, ["fc"]) == ()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in source.state_dict().items())


def test_a_head_of_other_classes_starts_fresh_and_is_named(tmp_path: Path) -> None:
    source, model = _net(10), _net(3)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    before = model["fc"].weight.clone()
    assert weights.fit(model, tmp_path / "w.pt", ["fc"]) == ("fc",)
    assert torch.equal(model["body"].weight, source["body"].weight)
    assert torch.equal(model["fc"].weight, before)
    with pytest.raises(TaskError, match=r"shapes differ: fc.weight is \[10, 5\] and must be \[3, 5\], fc.bias"):
        weights.fit(model, tmp_path / "w.pt")


def test_code_in_a_weights_file_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"fc.weight": Trap()}, tmp_path / "w.pt")
    with pytest.raises(TaskError, match="it holds Python objects beside weights"):
        weights.read(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()
