"""Papers' figures stand beside the confirmed front: test split against test split, ratios with what they are of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest

from search.front import page, papers, picture, published, tables
from search.front.summary import Summary, read
from tests import sweeps
from tests.sweeps import record

WHOLE = 1_724_320  # bytes
PAPERS = {
    "Larger": {"accuracy": 0.98, "float32_ratio": 100.0},
    "Smaller": {"accuracy": 0.95, "float32_ratio": 2000.0},
    "In bytes": {"accuracy": 0.97, "download_bytes": 2500.0},
    "Of speed": {"accuracy": 0.99, "latency_ms": 0.1},
}


def packed(number: int) -> dict[str, float]:
    """The trial's file takes 1, 2, 3 ... kB; the more, the better it is."""
    size = 1000.0 * (number + 1)
    return {"accuracy": 0.96 + 0.005 * number, "download_bytes": size, "float32_ratio": WHOLE / size}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = sweeps.store(tmp_path_factory.mktemp("mlruns"))
    (root / "model.onnx").write_bytes(b"a model file")
    objectives, reference = ("accuracy", "download_bytes"), (0.9, 10_000.0)
    records = [replace(record(n), metrics=record(n).metrics | packed(n), feasible=True) for n in range(4)]
    for study, settings in (("beside", {"published": PAPERS}), ("searched", {"published": PAPERS}), ("alone", {})):
        patched = pytest.MonkeyPatch()
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking = sweeps.sweep(root, study, records, objectives, reference, settings=settings)
        if study == "beside":
            tracking.log_confirmed("beside-001", [again(root, n) for n in (0, 1, 2)])
        patched.undo()
    return root


def again(root: Path, number: int) -> dict[str, object]:
    """Confirmed: on the test split a point better than on validation."""
    means = packed(number) | {"test_accuracy": packed(number)["accuracy"] + 0.01}
    means["float32_ratio"] *= 1.001  # a mean over files that differ in length
    metrics = {name: (mean, 0.999 * mean, 1.001 * mean) for name, mean in means.items()}
    return {"number": number, "metrics": metrics, "on_front": True, "chosen": str(root / "model.onnx"), "seeds": 3}


@pytest.fixture
def summary(root: Path, monkeypatch: pytest.MonkeyPatch) -> Summary:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return read(root, "beside")


def test_a_paper_is_beaten_by_one_trial_in_both_figures_or_not_at_all(summary: Summary) -> None:
    (found,) = published.beside(summary)
    assert (found.x, found.y, found.denominator) == ("download_bytes", "test_accuracy", WHOLE)
    assert found.papers["Larger"] == pytest.approx((WHOLE / 100, 0.98))
    assert set(found.papers) == {"Larger", "Smaller", "In bytes"}, "a paper that says nothing of bytes has no place"
    # Ours: 0.970 in 1 kB, 0.975 in 2, 0.980 in 3. 2000 times smaller is 862 bytes, which nothing here reaches.
    assert found.beaten == ["Larger", "In bytes"]
    assert published.sentence(summary, found) == (
        "In test accuracy and download size at once: at least as good as Larger, In bytes; not as good as Smaller."
    )
    assert [line for line in tables.below(summary) if "at least as good as Larger, In bytes" in line]


def test_the_page_lists_every_point_and_says_what_ratios_are_of(summary: Summary) -> None:
    shown = page.page(summary)
    assert "of 1,724,320 bytes" not in shown.partition("Beside published results")[0]
    beside = shown.partition("<h2>Beside published results</h2>")[2].partition("<h2>All trials")[0]
    assert "than 1,724,320 bytes, the dense model&#x27;s float32 weights and biases" in beside
    for expected in ("Larger", "100×", "Smaller", "2,000×", "trial 0", "1,724×", "97.00"):
        assert expected in beside
    figure = papers.chart(summary, published.beside(summary)[0])
    drawn = dict(zip(figure.data[0].text, zip(figure.data[0].x, figure.data[0].y, strict=True), strict=True))
    assert drawn["In bytes"] == pytest.approx((2.5, 97.0)), "in the units that the axes name"
    assert list(figure.data[1].x) == pytest.approx([1.0, 2.0, 3.0])


def test_the_picture_has_a_panel_more(root: Path, summary: Summary, tmp_path: Path) -> None:
    alone = read(root, "alone")
    assert published.beside(alone) == []
    assert "published" not in page.page(alone)
    for name, each in (("beside", summary), ("alone", alone)):
        picture.draw(each, tmp_path / f"{name}.png")
    wide, narrow = (matplotlib.image.imread(tmp_path / f"{name}.png").shape for name in ("beside", "alone"))
    assert wide[1] == pytest.approx(2 * narrow[1], rel=0.02)


def test_what_is_not_confirmed_says_that_it_is_not_of_the_test_split(root: Path, summary: Summary) -> None:
    searched = read(root, "searched")
    (found,) = published.beside(searched)
    assert found.y == "accuracy"
    assert "ours are not confirmed on it yet" in published.sentence(searched, found)
