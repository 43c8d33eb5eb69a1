"""Trainers of other packages: found by address or entry point, and held to the same contract as ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pare.testing.trainers import TrainerContract
from tests.outside import softmax
from trainers import base
from trainers.recipe import RecipeError


class TestSoftmax(TrainerContract):
    trainer, task, model = softmax.NAME, staticmethod(softmax.digits), "linear"
    learned = 0.8

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _fetched(cls, fetched: Path) -> None:
        """MNIST lies in the cache."""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution whose entry point names the trainer."""
    about = tmp_path / "softmax_trainer-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: softmax-trainer\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{base.GROUP}]\nsoftmax = {softmax.NAME}\nbroken = no.such.module:X\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    base._foreign.cache_clear()
    yield
    base._foreign.cache_clear()


def test_a_trainer_is_found_by_its_entry_point(installed: None) -> None:
    assert base.names() == ("pytorch", "tensorflow", "onnx", "broken", "softmax")
    assert base.capabilities("softmax") is softmax.Trainer.CAPABILITIES
    assert isinstance(base.load("softmax"), softmax.Trainer)


def test_one_that_cannot_be_imported_says_why(installed: None) -> None:
    with pytest.raises(RecipeError, match=r"trainer: 'broken' cannot be used: No module named 'no'"):
        base.load("broken")
    with pytest.raises(RecipeError, match=r"'tests.outside.softmax:Nothing' cannot be used: .* has no attribute"):
        base.capabilities("tests.outside.softmax:Nothing")


def test_an_unknown_one_is_refused_with_the_choices() -> None:
    with pytest.raises(RecipeError, match="trainer: 'jax' is not valid; choose from pytorch, tensorflow, onnx"):
        base.capabilities("jax")
