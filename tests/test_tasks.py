"""The cases of docs/own-model.md without Keras: from a spec to a task that keeps the contract."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from pare.testing.tasks import check_task
from tasks.base import Metric, Task, TaskError, TaskInfo, TaskSpec
from tasks.load import load, metrics_of, models_of, problems, trainers_of, user_files
from tests import own_cases


@pytest.fixture(scope="module", params=own_cases.TORCH, ids=str)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, TaskSpec, Task]:
    name: str = request.param
    folder = tmp_path_factory.mktemp(name)
    spec = own_cases.TORCH[name](folder)
    return name, spec, load(spec, folder / "cache", own_cases.quiet)


Loaded = tuple[str, TaskSpec, Task]


def test_it_keeps_the_contract(case: Loaded) -> None:
    check_task(case[2])


def test_what_the_driver_is_told_without_loading_is_what_the_task_says(case: Loaded) -> None:
    _, spec, task = case
    info = task.info()
    assert problems(spec) == []
    assert models_of(spec) == dict(info.models)
    assert trainers_of(spec) == tuple(info.models)
    assert metrics_of(spec) in (None, info.metrics)


EXPECTED = {
    "torchvision": ("accuracy", [("batch", 3, 32, 32)], "image", "label"),
    "timm": ("accuracy", [("batch", 3, 32, 32)], "image", "label"),
    "text": ("accuracy", [("batch", "length")] * 3, "text", "label"),
    "lightning": ("val_acc", [("batch", 8)], "arrays", "label"),
    "onnx": ("agreement", [("batch", 8)], "arrays", "label"),
    "segmenter": ("miou", [("batch", 3, 16, 16)], "arrays", "mask"),
    "recommender": ("ndcg", [("batch",)] * 2, "arrays", "values"),
    "audio": ("accuracy", [("batch", 800)], "arrays", "label"),
}


def test_what_is_inferred(case: Loaded) -> None:
    name, _, task = case
    metric, shapes, kind, answer = EXPECTED[name]
    info, serving = task.info(), task.serving()
    assert info.metrics[0].name == metric
    assert [port.shape for port in info.inputs] == shapes
    assert serving is not None
    assert (serving.kind, serving.answer) == (kind, answer)
    assert info.trains == (name != "onnx")


def test_a_second_process_finds_the_decoded_samples_and_the_same_digests(case: Loaded, tmp_path: Path) -> None:
    _, spec, task = case
    home = task.home  # type: ignore[attr-defined]
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*.bin")}
    again = load(spec, home, own_cases.quiet).info()
    assert again.to_dict() == task.info().to_dict()
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*.bin")} == before


def test_places_are_folders_below_the_cache_that_hold_the_samples(case: Loaded) -> None:
    _, _, task = case
    places = task.info().places
    assert set(places) == {"train", "validation"}
    for place in places.values():
        assert (task.home / place / "samples.json").is_file()  # type: ignore[attr-defined]


def test_training_lowers_the_loss(case: Loaded) -> None:
    name, _, task = case
    info = task.info()
    if not info.trains:
        pytest.skip("not trained")
    torch.manual_seed(0)
    program, data = task.program("pytorch"), task.data("train")
    network = program.build(info.models["pytorch"][0]).train()
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    batch = data.batch(np.arange(min(32, len(data))))
    inputs = {key: torch.from_numpy(value) for key, value in batch.inputs.items()}
    losses = []
    for _ in range(8):
        raw = network(*inputs.values())
        outputs = dict(zip([port.name for port in info.outputs], raw if isinstance(raw, tuple) else [raw], strict=True))
        loss = program.loss(outputs, inputs, _tensors(batch.targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[1:]) < 0.97 * losses[0], (name, losses)


def _tensors(targets: object) -> object:
    from tasks.tree import mapped

    return None if targets is None else mapped(torch.as_tensor, targets)


def test_a_captured_network_gives_what_the_network_gives(case: Loaded) -> None:
    name, _, task = case
    info = task.info()
    if name not in ("text", "recommender", "lightning"):
        pytest.skip("a plain convolutional network")
    network = task.program("pytorch").build(info.models["pytorch"][0])
    data = task.data("train")
    args = tuple(torch.from_numpy(array) for array in data.batch(np.arange(3)).inputs.values())
    axes = {"batch": torch.export.Dim.DYNAMIC, "length": torch.export.Dim.DYNAMIC}
    shapes = tuple(
        {i: axes[str(axis)] for i, axis in enumerate(port.shape) if isinstance(axis, str)} for port in info.inputs
    )
    captured = torch.export.export(network, args, dynamic_shapes=shapes, strict=False).module()
    others = tuple(torch.from_numpy(array) for array in data.batch(np.arange(5, 10)).inputs.values())
    with torch.no_grad():
        assert torch.allclose(captured(*others), network(*others), 1e-4, 1e-5)


def test_the_files_that_travel(tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "__init__.py").write_text("from nets.unet import UNet\n")
    (tmp_path / "nets" / "unet.py").write_text("import torch\nUNet = torch.nn.Identity\n")
    (tmp_path / "helper.py").write_text("import json\nWIDTH = 3\n")
    (tmp_path / "unused.py").write_text("")
    (tmp_path / "mine.py").write_text(
        "import helper\nfrom nets import UNet\ndef model(): return UNet()\ndef data(split): ...\n"
    )
    spec = TaskSpec(name="mine.py", folder=str(tmp_path))
    names = {path.relative_to(tmp_path).as_posix() for path in user_files(spec)}
    assert names == {"mine.py", "helper.py", "nets/__init__.py", "nets/unet.py"}
    assert models_of(spec) == {"pytorch": ("mine",)}


def test_changed_code_beside_the_file_is_imported_again_and_has_another_digest(tmp_path: Path) -> None:
    spec = own_cases.segmenter(tmp_path)
    text = (tmp_path / "unet.py").read_text()
    (tmp_path / "unet.py").write_text(text.replace("def loss", "import scale\n\n\ndef loss"))
    (tmp_path / "scale.py").write_text("FACTOR = 1\n")
    first = load(spec, tmp_path / "cache", own_cases.quiet).info()
    (tmp_path / "scale.py").write_text("FACTOR = 2\n")
    task = load(spec, tmp_path / "cache", own_cases.quiet)
    assert task.info().code_digest != first.code_digest
    assert task.parts.loss.__globals__["scale"].FACTOR == 2  # type: ignore[attr-defined]


@dataclasses.dataclass
class Tiny:
    """A task of another package, in the least it can have."""

    spec: TaskSpec
    home: Path

    def __post_init__(self) -> None:
        self.inner = load(own_cases.segmenter(self.home), self.home / "cache", own_cases.quiet)

    def info(self) -> TaskInfo:
        return dataclasses.replace(self.inner.info(), name="tiny", metrics=(Metric("miou"),))

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


def test_a_task_of_ones_own_class(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from tests.test_tasks import Tiny\n\ndef task(spec, home):\n    return Tiny(spec, home)\n"
    )
    for name in ("mine.py", "mine.py:task", "tests.test_tasks:Tiny"):
        spec = TaskSpec(name=name, folder=str(tmp_path))
        assert problems(spec) == []
        assert check_task(load(spec, tmp_path, own_cases.quiet)).name == "tiny"
        assert models_of(spec) is None
        assert metrics_of(spec) is None


def test_the_contract_suite_finds_a_broken_task(tmp_path: Path) -> None:
    task = load(own_cases.recommender(tmp_path), tmp_path / "cache", own_cases.quiet)
    task.info()
    task.program("pytorch").loss = lambda *args: torch.zeros(3)
    with pytest.raises(AssertionError, match=r"loss\(\) gives a tensor of shape \[3\]"):
        check_task(task)


def test_a_task_error_reaches_another_process_whole() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(TaskError("no such file", "data", "mine.py:3")))
    assert str(error) == "data: no such file (mine.py:3)"
