"""Two sweeps of one study: what moved beyond noise, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from search import compare
from search.front import insight
from search.front.summary import read
from tests.linear import LinearTrainer, config, searched


def test_two_sweeps_of_the_same_do_not_differ_and_a_worse_one_is_told(
    planted: LinearTrainer, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Not by latency: a machine that is busy for one of the sweeps would tell them apart.
    same = config(root, objectives=["accuracy"])
    searched(same)
    assert compare.main(["study=lucky", f"root={root}"]) == 2
    assert "lucky has one sweep; make another with fresh=true" in capsys.readouterr().err
    searched(same.model_copy(update={"fresh": True}))
    assert compare.main(["study=lucky", f"root={root}"]) == 0
    said = capsys.readouterr().out
    assert "no difference beyond noise" in said
    assert "lucky-001" in said
    assert "lucky-002" in said
    # 300 images instead of 3,000: a worse front
    task = {"name": "mnist", "train_size": 300, "validation_size": 500}
    changed = config(root, objectives=["accuracy"], task=task).model_copy(update={"fresh": True})
    searched(changed)
    assert compare.main(["study=lucky", f"root={root}", "sweep=lucky-001", "sweep=lucky-003"]) == 0
    said = capsys.readouterr().out
    assert "worse beyond noise" in said
    assert "- trial 0 of lucky-001, dense fp32" in said
    name, curve = read(root, "lucky").earlier or ("none", None)
    assert name == "lucky-002"
    assert curve is not None
    assert curve["number"].tolist() == [0, 1]
    assert read(root, "lucky", "lucky-001").earlier is None
    drawn = insight.hypervolume(read(root, "lucky"))
    assert drawn is not None
    assert [trace.name for trace in drawn.data] == ["lucky-003", "lucky-002"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["root=x"], "study: missing"),
        (["study=a", "sweep=b"], "sweep: 1 given; name two"),
        (["study=a", "swep=b"], "swep=b: no such argument (did you mean sweep=?)"),
    ],
)
def test_usage_errors(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(words) == 2
    assert says in capsys.readouterr().err
