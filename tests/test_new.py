"""`search.new`: a study valid as it stands, outside the repository; nothing overwritten, nothing half written."""

from __future__ import annotations

from pathlib import Path

import pytest

from pare.testing.tasks import check_task
from search import new
from search.run import EXPERIMENTS
from search.study import compose
from search.study.config import Config
from tasks.check import check
from tasks.load import load
from tests import own_cases


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def composed(name: str, folder: Path = Path()) -> Config:
    return compose.composed([f"study={name}", "--config-dir", str(folder)], EXPERIMENTS)


def ran(*words: str) -> int:
    return new.main(list(words))


def test_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_cases.photos(folder)
    assert ran("photos", "--model", "timm:resnet18", "--data", "imagefolder:photos", "--size", "32") == 0
    said = capsys.readouterr().out
    assert "python -m search.run --config-dir . study=photos" in said
    study = composed("photos").study
    assert study.space.models() == ("resnet18",)
    assert study.objectives == ["accuracy", "latency_ms", "size_bytes"]
    assert study.task.size == 32
    assert {"static_int8", "qat_int8"} <= set(study.space.possible("quantization.scheme"))


def test_texts(folder: Path) -> None:
    own_cases.text(folder)
    words = ["reviews", "--model=hf:./bert", "--data=csv:reviews.csv", "text=text", "label=label"]
    assert ran(*words) == 0
    study = composed("reviews").study
    assert "dynamic_int8" in study.space.possible("quantization.scheme")
    assert study.runtime == "onnxruntime"


def test_lightning_and_keras(folder: Path) -> None:
    own_cases.lightning(folder)
    own_cases.keras(folder)
    assert ran("l", "--model", "lit.py:Net", "--data", "lit.py:Data", "--metric", "val_acc") == 0
    assert composed("l").study.objectives[0] == "val_acc"
    assert ran("k", "--model", "net.py:net", "--data", "net.py:data") == 0
    study = composed("k").study
    assert (study.runtime, study.space.trainers()) == ("litert", ("tensorflow",))


def test_a_plain_file_is_written_as_an_example_that_works(folder: Path) -> None:
    assert ran("mine") == 0
    config = composed("mine")
    assert config.study.task.name == "mine.py"
    task = load(config.task, folder / "cache", own_cases.quiet)
    assert check_task(task).models == {"pytorch": ("mine",)}
    assert check(task) == []


def test_a_plain_file_that_is_there_is_left_as_it_is(folder: Path) -> None:
    own_cases.segmenter(folder)
    before = (folder / "unet.py").read_text()
    assert ran("seg", "--model", "unet.py") == 0
    assert (folder / "unet.py").read_text() == before
    assert composed("seg").study.objectives[0] == "miou"


def test_another_folder_and_paths_outside_of_it(folder: Path) -> None:
    own_cases.photos(folder)
    assert ran("a", "--model", "timm:resnet18", "--data", "imagefolder:photos", "--dir", "studies") == 0
    config = composed("a", folder / "studies")
    assert config.task.data == f"imagefolder:{folder / 'photos'}"
    own_cases.segmenter(folder / "studies")
    assert ran("b", "--model", "studies/unet.py", "--dir", "studies") == 0
    assert composed("b", folder / "studies").task.name == "unet.py"


MISTAKES = [
    ([], "NAME: missing; write one name"),
    (["a", "b"], "NAME: a, b are 2"),
    (["a/b"], "NAME: 'a/b' is not valid"),
    (["mnist_prune"], "is one of the project's own studies"),
    (["a", "--model"], "--model: needs a value"),
    (["a", "--modle", "x"], "(did you mean model=?)"),
    (["a", "--model", "timm:resnet18"], "--data: missing; write imagefolder:PATH"),
    (["a", "--model", "resnet18", "--data", "imagefolder:photos"], "(did you mean timm:resnet18?)"),
    (["a", "--model", "timm:resnet18", "--data", "imagefolder:phots"], "(did you mean photos?)"),
    (["a", "--model", "timm:resnet18", "--data", "imagefolder:photos", "--runtime", "litert"], "does not load what"),
    (["a", "--model", "timm:resnet18", "--data", "imagefolder:photos", "--size", "big"], "is not a whole number"),
    (["a", "--model", "timm:resnet18", "--data", "imagefolder:photos", "--metric", "f2"], "is not a metric"),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES, ids=[case[1][:30] for case in MISTAKES])
def test_a_mistake_writes_nothing(
    words: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_cases.photos(folder)
    assert ran(*words) == 2
    assert says in capsys.readouterr().err
    assert not (folder / "study").exists()


def test_nothing_is_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran("mine") == 0
    (folder / "mine.py").write_text("# mine\n")
    before = (folder / "study" / "mine.yaml").read_text()
    assert ran("mine") == 2
    assert "study/mine.yaml is there already" in capsys.readouterr().err
    assert (folder / "study" / "mine.yaml").read_text() == before
    assert (folder / "mine.py").read_text() == "# mine\n"
