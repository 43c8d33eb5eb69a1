"""The ONNX trainer: what becomes of a graph, and when integers give way to floats."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tasks.base import Task, TaskSpec
from tasks.load import load
from tests.onnx_task import Told, bars
from trainers.base import Dense, DenseSpec, Job, task_digest
from trainers.onnx import channels, run
from trainers.onnx.optimize import optimized
from trainers.onnx.static import SETS
from trainers.onnx.trainer import Trainer
from trainers.recipe import Pruning, Quantization, Recipe, RecipeError


@pytest.fixture(scope="module")
def task() -> Task:
    return bars(targets=False)


@pytest.fixture(scope="module")
def dense(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Dense:
    folder = tmp_path_factory.mktemp("dense")
    return Trainer().dense(DenseSpec("onnx", "bars", task=task_digest(task.info())), Job(task, folder, "onnx"))


def compressed(task: Task, dense: Dense, folder: Path, timer: Told | None = None, **parts: object) -> tuple:
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(task, folder, "onnx", timer=timer, decisions=folder.parent / "decisions" if timer else None)
    made = Trainer().compress(Recipe("bars", "onnx", **parts), dense, None, job)  # type: ignore[arg-type]
    said = run.outputs(made.file.read_bytes(), run.batches(task.data("validation"), np.arange(made.rows), job.pause))
    return made, onnx.load(made.file), task.agreement(said, made.outputs)


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_an_old_opset_becomes_a_modern_one_and_says_the_same(task: Task, dense: Dense) -> None:
    given = onnx.load(task.program("onnx").file("bars"))
    made = onnx.load(dense.folder / "model.onnx")
    assert [each.version for each in given.opset_import] == [12]
    assert [each.version for each in made.opset_import if not each.domain] == [17]
    samples = list(run.batches(task.data("validation"), np.arange(20), lambda leaving=None: None))
    assert run.relative_error(run.outputs(made, samples), run.outputs(given, samples)) < 1e-5


def test_every_node_gets_a_name_of_its_own() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["b"], name="Relu_a")]
    nodes.append(helper.make_node("Neg", ["b"], ["y"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy"]
    graph = helper.make_graph(nodes, "three", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made, notes = optimized(model, [{"x": np.ones((2, 2), np.float32)}])
    names = [node.name for node in made.graph.node]
    assert len(set(names)) == len(names)
    assert notes == []


def test_channels_given_to_others_say_more_than_channels_cut_off(task: Task, dense: Dense) -> None:
    model = onnx.load(dense.folder / "model.onnx")
    samples = run.calibration(task.data("train"), 256, lambda leaving=None: None)
    fresh = run.calibration(task.data("validation"), 256, lambda leaving=None: None)
    exact = run.outputs(model, fresh)
    errors = []
    for reconstruction in (channels._reconstruction, lambda values, kept: _nothing(values, kept)):
        narrow = onnx.ModelProto()
        narrow.CopyFrom(model)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(channels, "_reconstruction", reconstruction)
            removed, whole = channels.narrow(narrow, 0.5, samples)
            assert removed is not None
        assert removed > 0.4
        assert list(whole) == ["head"]
        onnx.checker.check_model(narrow)
        errors.append(run.relative_error(run.outputs(narrow, fresh), exact))
    assert errors[0] < 0.6 * errors[1]


def _nothing(values: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gone = values.shape[1] - len(kept)
    return np.zeros((len(kept), gone)), np.zeros(gone)


def test_channels_that_join_stay_and_are_said() -> None:
    draw = np.random.default_rng(0)
    weights = {name: draw.normal(size=(8, 8)).astype(np.float32) for name in ("w1", "w2", "w3")}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="one"),
        helper.make_node("MatMul", ["x", "w2"], ["b"], name="two"),
        helper.make_node("Add", ["a", "b"], ["c"], name="sum"),
        helper.make_node("MatMul", ["c", "w3"], ["y"], name="three"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]) for name in "xy"]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    model = helper.make_model(helper.make_graph(nodes, "joins", ends[:1], ends[1:], stored), ir_version=8)
    samples = [{"x": draw.normal(size=(16, 8)).astype(np.float32)}]
    removed, whole = channels.narrow(model, 0.5, samples)
    assert removed is None
    assert whole == {
        "one": "its channels reach Add",
        "two": "its channels reach Add",
        "three": "its channels are an output of the network",
    }


def sharp(folder: Path) -> Task:
    """A file whose first layer reads a small signal beside a huge value that means nothing: 8 bits cannot hold both."""
    draw = np.random.default_rng(0)
    x = draw.normal(0, 0.1, (400, 8)).astype(np.float32)
    x[:, 0] = draw.uniform(-100, 100, 400)
    weights = {"w1": draw.normal(size=(8, 32)), "w2": draw.normal(size=(32, 4))}
    weights["w1"][0] = 0
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="sharp"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "w2"], ["logits"], name="plain"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", w]) for n, w in (("x", 8), ("logits", 4))]
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "sharp", ends[:1], ends[1:], stored)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / "sharp.onnx")
    np.savez(folder / "x.npz", x=x)
    return load(TaskSpec(model="sharp.onnx", data="npz:x.npz", folder=str(folder)), folder / "cache")


def test_what_may_change_decides_what_stays_float(tmp_path: Path) -> None:
    task = sharp(tmp_path)
    spec = DenseSpec("onnx", "sharp", task=task_digest(task.info()))
    dense = Trainer().dense(spec, Job(task, tmp_path, "onnx"))
    agreements = []
    for max_drop, note in ((0.0, ()), (0.05, ("stays float, within max_drop 0.05: sharp",))):
        folder = tmp_path / f"drop{max_drop}"
        folder.mkdir()
        recipe = Recipe("sharp", "onnx", quantization=Quantization("static_int8", max_drop=max_drop))
        made = Trainer().compress(recipe, dense, None, Job(task, folder, "onnx"))
        assert made.notes == note
        rows = run.batches(task.data("validation"), np.arange(made.rows), lambda leaving=None: None)
        agreements.append(task.agreement(run.outputs(made.file.read_bytes(), rows), made.outputs))
    assert agreements[0] < 0.7
    assert agreements[1] >= 0.9


@pytest.mark.parametrize(
    ("seconds", "integer", "note"),
    [
        ([0.9, 0.9, 1.2, 1.0], True, ""),
        ([1.5, 0.9, 1.2, 1.0], True, "layers alone"),
        ([1.5, 1.4, 1.2, 1.0], False, "integer operators take 1.50 times the time of float on a test"),
    ],
)
def test_integers_that_are_slower_give_way(
    task: Task, dense: Dense, tmp_path: Path, seconds: list[float], integer: bool, note: str
) -> None:
    timer = Told([seconds])
    recipe = Quantization("static_int8")
    made, model, agreement = compressed(task, dense, tmp_path / "one", timer, quantization=recipe)
    assert timer.asked == [len(SETS) + 1]
    assert ("QuantizeLinear" in kinds(model)) == integer
    assert note in "; ".join(made.notes)
    assert agreement > 0.97
    # What was decided by time is decided once: the second time nothing is measured, and the file is the same.
    again, _, _ = compressed(task, dense, tmp_path / "two", timer, quantization=recipe)
    assert again.file.read_bytes() == made.file.read_bytes()
    plain, _, _ = compressed(task, dense, tmp_path / "plain")
    assert made.file.stat().st_size < 0.5 * plain.file.stat().st_size


def test_dynamic_integers_that_are_slower_give_way(task: Task, dense: Dense, tmp_path: Path) -> None:
    made, model, _ = compressed(
        task, dense, tmp_path / "slow", Told([[2.0, 1.0]]), quantization=Quantization("dynamic_int8")
    )
    assert made.notes == ("float arithmetic, weights int8: dynamic_int8 takes 2.00 times the time of float on a test",)
    assert "MatMulInteger" not in kinds(model)
    made, model, _ = compressed(
        task, dense, tmp_path / "fast" / "it", Told([[0.5, 1.0]]), quantization=Quantization("dynamic_int8")
    )
    assert "MatMulInteger" in kinds(model)


def test_named_nodes_stay_as_they_are(dense: Dense, task: Task, tmp_path: Path) -> None:
    folder = task.program("onnx").file("bars").parent
    spec = TaskSpec(model="bars.onnx", data="npz:bars.npz", folder=str(folder), keep=("conv2",))
    kept = load(spec, tmp_path / "cache")
    _, model, _ = compressed(kept, dense, tmp_path / "kept", pruning=Pruning("unstructured", 0.5, "one_shot"))
    zeros = {t.name: float(np.mean(numpy_helper.to_array(t) == 0)) for t in model.graph.initializer if len(t.dims) > 1}
    assert zeros.pop("w2") == 0
    assert all(share == pytest.approx(0.5, abs=0.01) for share in zeros.values())


def test_a_graph_without_channels_to_remove_says_why(tmp_path: Path) -> None:
    from tests.own_cases import onnx as case

    task = load(case(tmp_path), tmp_path / "cache")
    dense = Trainer().dense(DenseSpec("onnx", "net", task=task_digest(task.info())), Job(task, tmp_path, "onnx"))
    recipe = Recipe("net", "onnx", Pruning("channel", 0.5))
    made = Trainer().compress(recipe, dense, None, Job(task, tmp_path, "onnx"))
    assert made.pruned == pytest.approx(0.5)
    assert made.notes == ("left whole: second: its channels reach Softmax",)
    assert made.curves == []
    with pytest.raises(RecipeError, match=r"quantization\.scheme: the onnx trainer has no 'qat_int8'"):
        Trainer().compress(
            Recipe("net", "onnx", quantization=Quantization("qat_int8")), dense, None, Job(task, tmp_path, "onnx")
        )
