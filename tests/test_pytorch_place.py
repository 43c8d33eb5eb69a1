"""Integers where they pay: what becomes of a recipe when a layer is dear or slow, and how a slow file is marked."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from runtimes.base import Artifact
from runtimes.latency import Comparison, LatencyResult, Timing
from search.trial.costly import not_faster
from search.trial.timing import FileTimer
from tasks.mnist.pytorch import Program
from tests.onnx_task import Told
from tests.sweeps import record
from tests.tiny_task import Regions
from trainers.base import Dense, DenseSpec, Job, task_digest
from trainers.pytorch import course
from trainers.pytorch.export import export
from trainers.pytorch.place import placed
from trainers.pytorch.trainer import Trainer
from trainers.recipe import FineTuning, Quantization, Recipe

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def task() -> Regions:
    return Regions()


@pytest.fixture(scope="module")
def dense(task: Regions, tmp_path_factory: pytest.TempPathFactory) -> Dense:
    spec = DenseSpec("pytorch", "given", task=task_digest(task.info()))
    return Trainer().dense(spec, Job(task, tmp_path_factory.mktemp("dense"), "onnx", device="cpu"))


def kinds(file: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(file).graph.node)


@pytest.mark.parametrize("scheme", ["static_int8", "qat_int8"])
def test_integers_that_are_slower_give_way_to_small_floats(
    task: Regions, dense: Dense, tmp_path: Path, scheme: str
) -> None:
    recipe = Recipe("given", quantization=Quantization(scheme), finetuning=FineTuning(qat_epochs=1, batch_size=40))
    made = {}
    for name, seconds in (("slow", [1.3, 1.2, 1.0]), ("fast", [0.8, 0.9, 1.0])):
        folder = tmp_path / name
        folder.mkdir()
        timer = Told([seconds])
        job = Job(task, folder, "onnx", device="cpu", timer=timer, decisions=folder / "decisions")
        made[name] = Trainer().compress(recipe, dense, None, job)
        assert timer.asked == [3]  # its convolutions are narrow
    assert "QuantizeLinear" not in kinds(made["slow"].file)
    assert "QuantizeLinear" in kinds(made["fast"].file)
    said = "float arithmetic, weights int8: integer operators take 1.30 times the time of float on a test"
    assert said in made["slow"].notes
    assert not any("float" in note for note in made["fast"].notes)


class Separable(nn.Module):
    """A plain convolution, a depthwise one, a pointwise one, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth, self.point = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.point(torch.relu(self.depth(torch.relu(self.stem(pixels)))))).mean((2, 3)))


class Shown:
    """A course for a network without a task: what `placed` asks of one."""

    def __init__(self, job: Job) -> None:
        self.job, self.info = job, replace(Regions().info(), inputs=(), outputs=())

    def note(self, text: str) -> None:
        raise AssertionError(text)


@pytest.mark.parametrize(
    ("seconds", "keep", "integer"),
    [
        ([0.9, 0.9, 0.89, 1.0], (), True),
        ([1.4, 0.9, 1.1, 1.0], ("depth",), True),
        ([0.9, 0.9, 0.7, 1.0], ("stem", "depth", "point"), True),
        ([1.4, 1.4, 1.4, 1.0], (), False),
    ],
)
def test_depthwise_and_narrow_convolutions_stay_float_where_that_is_faster(
    tmp_path: Path, seconds: list[float], keep: tuple[str, ...], integer: bool
) -> None:
    torch.manual_seed(0)
    model, timer = Separable().eval(), Told([seconds])
    shown = Shown(Job(Regions(), tmp_path, "onnx", timer=timer, decisions=tmp_path / "decisions"))
    recipe = Recipe("separable", quantization=Quantization("static_int8"))
    batches = [(torch.randn(8, 3, 12, 12),)]
    found = placed(recipe, shown, model, lambda: model, batches)  # type: ignore[arg-type]
    assert (found.keep_float, found.integer) == (keep, integer)
    # The decision is kept: a second look measures nothing.
    assert placed(recipe, shown, model, lambda: model, batches) == found  # type: ignore[arg-type]
    assert timer.asked == [4]


def test_a_dear_layer_stays_float(task: Regions, dense: Dense, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "CALIBRATION_ROWS", 64)
    recipe = Recipe("given", quantization=Quantization("static_int8", max_drop=1e-9))
    made = Trainer().compress(recipe, dense, None, Job(task, tmp_path, "onnx", device="cpu"))
    loose = tmp_path / "loose"
    loose.mkdir()
    other = Trainer().compress(
        Recipe("given", quantization=Quantization("static_int8", max_drop=0.9)), dense, None,
        Job(task, loose, "onnx", device="cpu"),
    )  # fmt: skip
    assert kinds(made.file)["QuantizeLinear"] < kinds(other.file)["QuantizeLinear"]
    assert any("float" in note for note in made.notes)
    assert not any("float" in note for note in other.notes)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two networks for one input, the second with convolutions of its own."""
    torch.manual_seed(0)
    folder, images = tmp_path_factory.mktemp("files"), torch.randn(2, 1, 28, 28)
    made = []
    for name in ("lenet300", "lenet5"):
        made.append(folder / f"{name}.onnx")
        export(Program().build(name).eval(), (images,), made[-1], {})
    return made


def measured(low: float) -> LatencyResult:
    timing = Timing(1.0, 1.0, 0.1, 1000.0)
    compared = Comparison(1, 1, timing, timing, low + 0.1, low, low + 0.2, 9, 9, 1.0, "tight", None)
    return LatencyResult((compared,), {})


def test_a_slower_file_is_marked_with_the_operators_that_cost_it(files: list[Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "examples.npz", input=np.zeros((1, 1, 28, 28), np.float32))
    slow, fast = (Artifact.of(file) for file in reversed(files))
    assert not_faster("onnxruntime", slow, fast, tmp_path / "examples.npz", measured(0.95)) == ""
    said = not_faster("onnxruntime", slow, fast, tmp_path / "examples.npz", measured(1.2))
    assert said.startswith("1.30 times the time of the dense fp32 file: ")
    assert "Conv" in said
    marked = record(3, environment={"not_faster": said})
    assert marked.title.endswith(" [not faster]")
    assert marked.tags()["pare.not_faster"] == said
    assert "not faster" not in record(3).title
    assert "pare.not_faster" not in record(3).tags()


def test_files_are_timed_side_by_side(files: list[Path]) -> None:
    from tasks.base import Batch

    class Digits:
        def data(self, split: str) -> Digits:
            return self

        def batch(self, rows: np.ndarray) -> Batch:
            return Batch({"input": np.zeros((len(rows), 1, 28, 28), np.float32)})

    timer = FileTimer("onnxruntime", Digits())  # type: ignore[arg-type]
    assert timer.target.startswith("onnxruntime on ")
    found = timer(files)
    assert len(found) == 2
    assert all(0 < seconds < 1 for seconds in found)
