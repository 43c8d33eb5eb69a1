"""A real sweep of a depthwise network whose integer version is slower: who is marked, where it is shown, who is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from search import status
from search.front.summary import read
from search.run import carry_out
from search.storage.database import address
from search.study.config import check
from search.sweep.sweep import Sweep
from search.tracking.tracking import Tracking

# Hardly any arithmetic, and between any two layers an activation without an integer kernel: every layer has its
# numbers made integers and floats again.
MINE = """
import numpy as np
import torch
from torch import nn


def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.Hardswish()]
    for _ in range(6):
        layers += [nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.GELU(), nn.Conv2d(16, 16, 1), nn.Hardswish()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))


def data(split):
    draw = np.random.default_rng(len(split))
    labels = draw.integers(0, 2, 400)
    images = draw.normal(0, 1, (400, 1, 12, 12)).astype(np.float32)
    images[:, 0, :6] += 2.0 * labels[:, None, None]
    return images, labels
"""


@pytest.mark.cluster
def test_what_is_slower_is_marked_with_its_operators_and_what_may_be_placed_is_not_slower(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    schemes = {"plain": "none", "placed": "static_int8", "forced": "qat_int4"}
    study = {
        "name": "slower",
        "objectives": ["accuracy", "latency_ms"],
        "runtime": "onnxruntime",
        "task": {"name": str(tmp_path / "mine.py")},
        "dense": {"epochs": 2, "batch_size": 40},
        "recipe": {
            "model": "mine",
            "quantization": {"scheme": {"choices": list(schemes.values())}},
            "finetuning": {"qat_epochs": 1, "batch_size": 40},
        },
        "references": {name: {"quantization": {"scheme": scheme}} for name, scheme in schemes.items()},
        "latency": {"max_seconds": 4.0},
        "early_stopping": "none",
        "confirm": {"seeds": 0},
        "budget": {"trials": 3},
    }
    asked = check({"study": study, "executor": {"name": "inline"}, "root": root, "tracking": {"layers": False}})
    name, _ = carry_out(asked)
    said = capsys.readouterr().out

    plain, placed, forced = Sweep.open(asked.study, address(root)).records()
    assert [record.state for record in (plain, placed, forced)] == ["complete"] * 3
    for record in (plain, placed, forced):
        assert bool(record.not_faster) == (record.metrics["latency_ratio_low"] > 1.0)
    assert forced.metrics["latency_ratio"] > 1.2
    assert "times the time of the dense fp32 file: " in forced.not_faster
    assert "QuantizeLinear +" in forced.not_faster
    assert "integer operators take" in placed.environment["notes"]
    assert placed.metrics["latency_ratio"] < 0.8 * forced.metrics["latency_ratio"]

    assert f"[not faster: {forced.not_faster[:20]}" in " ".join(said.split())
    summary = read(root, "slower", name)
    row = summary.trials.set_index("number").loc[forced.number]
    assert row["not_faster"] == forced.not_faster
    assert (
        Tracking(root, "slower").trials(name).set_index("number").loc[forced.number, "not_faster"] == row["not_faster"]
    )
    html = (root / f"reports/{name}/report.html").read_text()
    assert "<span class=tag>not faster</span>" in html
    assert forced.not_faster in html
    assert status.main(["study=slower", f"root={root}"]) == 0
    assert f"trial {forced.number}, QAT int4: {forced.not_faster[:20]}" in capsys.readouterr().out
