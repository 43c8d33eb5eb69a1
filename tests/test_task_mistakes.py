"""Mutated task files and specs: each gives one clear message in the user's terms, with their line where code raised."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from search.trial import examine_data
from tasks.base import TaskError, TaskSpec
from tasks.check import check
from tasks.load import load, problems
from tests import own_cases


def messages(spec: TaskSpec, home: Path) -> list[str]:
    """What a user is told: the errors of the first step that fails."""
    if found := problems(spec):
        return found
    try:
        task = load(spec, home, own_cases.quiet)
        return [str(finding) for finding in check(task) if finding.severity == "error"]
    except TaskError as error:
        return [str(error)]


# The plain file: (name, text in tests/own_cases.py SEGMENTER, what stands there instead, what the message says)
SEGMENTER = [
    (
        "data raises",
        "    noise =",
        "    noise = 1 / 0\n    noise =",
        "ZeroDivisionError: division by zero",
        "unet.py:27",
    ),
    (
        "data of one split raises",
        "rng = np",
        'rng = np if split == "train" else {}["x"]\n    rng = np',
        "KeyError",
        "unet.py:25",
    ),
    (
        "data returns None",
        "return np.eye",
        "return None\n    return np.eye",
        "gives no training split, only nothing",
        "",
    ),
    ("data returns a number", "return np.eye", "return 7\n    return np.eye", "is a int; return a dataset", ""),
    ("lengths differ", " + noise, mask", " + noise, mask[:30]", "the arrays have different lengths (0: 40, 1: 30)", ""),
    (
        "NaN pixels",
        " + noise, mask",
        " + noise * np.where(mask[:, None] == 9, 1, np.nan), mask",
        "holds NaN or infinity in 40 samples",
        "",
    ),
    (
        "one NaN",
        "return np.eye",
        "noise[3, 0, 0, 0] = np.inf\n    return np.eye",
        "holds NaN or infinity in 1 samples, such as 3",
        "",
    ),
    ("labels out of range", "return np.eye", "wrong = mask.copy(); wrong[5, 0, 0] = 9\n    return np.eye", None, ""),
    (
        "wrong channels",
        "nn.Conv2d(3, 8, 3, padding=1)",
        "nn.Conv2d(4, 8, 3, padding=1)",
        "calling the model unet with input float32 [2, 3, 16, 16]",
        "unet.py:16",
    ),
    ("wrong size", "stride=2, padding=1", "stride=3, padding=1", "Sizes of tensors must match", "unet.py:17"),
    (
        "model raises",
        "    return UNet()",
        "    return UNet(width=3)",
        "model(): TypeError: UNet.__init__() got an unexpected keyword",
        "unet.py:21",
    ),
    (
        "model needs arguments",
        "def model():",
        "def model(width):",
        "needs arguments (width); write a function without any",
        "",
    ),
    (
        "lazy layers",
        "nn.Conv2d(3, 8, 3, padding=1)",
        "nn.LazyConv2d(8, 3, padding=1)",
        "layer down has no sizes yet (a Lazy layer)",
        "",
    ),
    ("model is no module", "    return UNet()", "    return 3", "gives a int; return a torch.nn.Module", ""),
    (
        "model returns a number",
        "return self.head(torch",
        "return 3.0\n        return self.head(torch",
        "returned float, no tensor",
        "",
    ),
    (
        "batch is lost",
        "return self.head(torch",
        "return self.head(torch.cat([wide, wide], 1)).sum()\n        return self.head(torch",
        "its first axis must be the batch",
        "",
    ),
    (
        "model is random",
        "wide = torch.relu(self.down(x))",
        "wide = torch.relu(self.down(x)) + torch.randn(1)",
        "two runs on the same samples differ in output: it is random in eval mode",
        "",
    ),
    (
        "model gives NaN",
        "wide = torch.relu(self.down(x))",
        "wide = torch.log(-torch.relu(self.down(x)))",
        "its output output holds NaN or infinity",
        "",
    ),
    (
        "loss raises",
        "    image, mask = batch",
        "    image, mask, more = batch",
        "loss(): ValueError: not enough values to unpack",
        "unet.py:32",
    ),
    (
        "loss is no number",
        "cross_entropy(outputs, mask)",
        'cross_entropy(outputs, mask, reduction="none")',
        "loss() returned [40, 16, 16]; return one number",
        "",
    ),
    (
        "loss returns a float",
        "return nn.functional.cross_entropy(outputs, mask)",
        "return 0.5",
        "loss() returned float; return one number as a tensor",
        "",
    ),
    (
        "loss is NaN",
        "cross_entropy(outputs, mask)",
        'cross_entropy(outputs * float("nan"), mask)',
        "the loss is nan",
        "",
    ),
    (
        "loss without the outputs",
        "return nn.functional.cross_entropy(outputs, mask)",
        "return mask.float().mean()",
        "the loss depends on no weight",
        "",
    ),
    (
        "metric raises",
        "    found = outputs",
        "    found = outputs.detach()",
        "'numpy.ndarray' object has no attribute 'detach'",
        "unet.py:40",
    ),
    (
        "metric returns an array",
        "return np.mean(shares)",
        "return np.array(shares)",
        "metric() returned an array of shape [3] as miou; return one number",
        "",
    ),
    ("metric returns NaN", "return np.mean(shares)", 'return float("nan")', "metric() returned nan as miou", ""),
    ("metric returns nothing", "return np.mean(shares)", "pass", "as miou; return one number", ""),
    (
        "metric by another name",
        "return np.mean(shares)",
        'return {"iou": 1.0}',
        "metric() returned iou and not miou",
        "",
    ),
    (
        "METRICS of no direction",
        '{"miou": "maximize"}',
        '{"miou": "up"}',
        "direction 'up' is not valid; write maximize or minimize",
        "",
    ),
    (
        "METRICS is a list of names",
        '{"miou": "maximize"}',
        '["miou"]',
        'write a mapping such as {"miou": "maximize"',
        "",
    ),
    (
        "data without a seed",
        'default_rng({"train": 0, "validation": 1, "test": 2}[split])',
        "default_rng()",
        "differs when it is made a second time",
        "",
    ),
    ("syntax", "def loss(outputs, batch):", "def loss(outputs, batch)", "expected ':'", "unet.py:31"),
    ("import", "import torch\n", "import torhc\n", "ModuleNotFoundError: No module named 'torhc'", "unet.py:3"),
    ("no data", "def data(split):", "def samples(split):", "no 'data'", ""),
    ("no model", "def model():", "def modle():", "has no model(); write model(), data(split)", ""),
]


@pytest.mark.parametrize(("name", "old", "new", "says", "place"), SEGMENTER, ids=[case[0] for case in SEGMENTER])
def test_a_mutated_file(name: str, old: str, new: str, says: str | None, place: str, tmp_path: Path) -> None:
    text = own_cases.SEGMENTER
    assert old in text
    text = text.replace(old, new, 1)
    if name == "labels out of range":
        text = text.replace("+ noise, mask", "+ noise, wrong")
        says = "labels out of range: 9 (sample 5); the model has 3 classes, 0 to 2"
    (tmp_path / "unet.py").write_text(text)
    found = messages(TaskSpec(name="unet.py", folder=str(tmp_path)), tmp_path / "cache")
    assert found, "nothing was found"
    assert says is not None
    assert says in found[0], found
    assert len({message.replace("validation", "train") for message in found}) == 1, found  # the same of each split
    assert place in found[0], found
    assert "tasks/" not in found[0]
    assert "Traceback" not in found[0]


Mutation = Callable[[Path, TaskSpec], TaskSpec | None]


def _corrupt(folder: Path, spec: TaskSpec) -> None:
    file = folder / "photos" / "train" / "dog" / "3.jpg"
    file.write_bytes(file.read_bytes()[:200])


def _not_an_image(folder: Path, spec: TaskSpec) -> None:
    (folder / "photos" / "train" / "cat" / "0.jpg").write_text("hello")


def _empty_class(folder: Path, spec: TaskSpec) -> None:
    (folder / "photos" / "train" / "fox").mkdir()


def _one_class(folder: Path, spec: TaskSpec) -> None:
    for split in ("train", "val"):
        for name in ("dog", "owl"):
            shutil.rmtree(folder / "photos" / split / name)


def _strange_class(folder: Path, spec: TaskSpec) -> None:
    (folder / "photos" / "val" / "dog").rename(folder / "photos" / "val" / "wolf")


def _no_train(folder: Path, spec: TaskSpec) -> None:
    (folder / "photos" / "train").rename(folder / "photos" / "images")


def _empty(folder: Path, spec: TaskSpec) -> None:
    shutil.rmtree(folder / "photos")
    (folder / "photos").mkdir()


def _flat(folder: Path, spec: TaskSpec) -> None:
    images = list((folder / "photos" / "train" / "cat").iterdir())
    kept = [image.rename(folder / image.name) for image in images]
    _empty(folder, spec)
    for image in kept:
        image.rename(folder / "photos" / image.name)


def _other_weights(folder: Path, spec: TaskSpec) -> TaskSpec:
    torch.save({"conv.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}, folder / "w.pt")
    return dataclasses.replace(spec, weights="w.pt")


def _pickled_model(folder: Path, spec: TaskSpec) -> TaskSpec:
    torch.save(torch.nn.Linear(2, 2), folder / "w.pt")
    return dataclasses.replace(spec, weights="w.pt")


def _damaged_weights(folder: Path, spec: TaskSpec) -> TaskSpec:
    (folder / "w.safetensors").write_bytes(b"no weights")
    return dataclasses.replace(spec, weights="w.safetensors")


def _field(**changes: object) -> Mutation:
    return lambda folder, spec: dataclasses.replace(spec, **changes)  # type: ignore[arg-type]


IMAGES: list[tuple[str, Mutation, str]] = [
    ("corrupt JPEG", _corrupt, "1 of 36 images of the train split cannot be read"),
    ("a text file called .jpg", _not_an_image, "0.jpg (cannot identify image file"),
    ("an empty class folder", _empty_class, "the class folders fox hold no images; fill or remove them"),
    ("one class", _one_class, "has one class only, cat; a classifier needs two or more folders"),
    ("a class of validation alone", _strange_class, "the classes wolf are not in the training split"),
    ("no train folder", _no_train, "holds val and no train folder; it holds images, val; name it with task.train"),
    ("empty folder", _empty, "holds nothing; it needs one folder of images per class"),
    ("images without class folders", _flat, "holds 12 images and no class folders"),
    ("a split that is not there", _field(validation="holdout"), "task.validation: 'holdout' is not in"),
    ("a folder that is not there", _field(data="imagefolder:phots"), "photos?)"),
    ("a file as a folder", _field(data="imagefolder:photos/train/cat/0.jpg"), "is a file; name a folder"),
    ("weights of another model", _other_weights, "are not the weights of this model (122 tensors in the model, 2 in"),
    ("a pickled model as weights", _pickled_model, "it holds Python objects beside weights"),
    ("damaged weights", _damaged_weights, "cannot be read as weights"),
    ("no weights", _field(weights="w.pt"), "w.pt is not there"),
    ("an unknown model", _field(model="torchvision:resnet81"), "has no 'resnet81' (did you mean resnet18?)"),
    ("a detector", _field(model="torchvision:ssd300_vgg16"), "is no classifier; write a FILE.py for it"),
    ("an unknown timm model", _field(model="timm:mobilenet_v3"), "timm has no 'mobilenet_v3' (did you mean mobilenet"),
    ("a kind that is not one", _field(model="tim:resnet18"), "(did you mean timm:resnet18?)"),
    ("a model as data", _field(data="timm:resnet18"), "is not an address (that is a kind of task.model)"),
    ("a bare path", _field(data="photos"), "(did you mean imagefolder:photos?)"),
    ("no data", _field(data=""), "data: missing; write imagefolder:PATH"),
    ("no model", _field(model=""), "model: missing; write timm:NAME"),
    ("text of an image model", _field(text="caption"), "text: only a text model (hf:) reads text"),
    ("an unknown metric", _field(metric="acuracy"), "'acuracy' is not a metric (did you mean accuracy?)"),
    ("an unknown loss", _field(loss="crossentropy"), "'crossentropy' is not a loss (did you mean cross_entropy?)"),
    ("a direction of a known metric", _field(direction="minimize"), "direction: belongs to a metric of your own"),
    ("a layer that is not there", _field(keep=("fcc",)), "the model has no layer 'fcc' (did you mean fc?)"),
    ("more samples than there are", _field(train_size=5000), "task.train_size: 5000 is more than the 36 samples"),
]


@pytest.mark.parametrize(("name", "mutate", "says"), IMAGES, ids=[case[0] for case in IMAGES])
def test_a_mutated_image_study(name: str, mutate: Mutation, says: str, tmp_path: Path) -> None:
    spec = own_cases.torchvision(tmp_path)
    spec = mutate(tmp_path, spec) or spec
    found = messages(spec, tmp_path / "cache")
    assert len(found) == 1, found
    assert says in found[0], found


def _rows(folder: Path, change: Callable[[list[list[str]]], list[list[str]]]) -> None:
    with (folder / "reviews.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    with (folder / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows(change(lines))


def _no_text(folder: Path, spec: TaskSpec) -> None:
    _rows(folder, lambda lines: [*lines[:3], ["", "pos"], *lines[3:]])


def _one_label(folder: Path, spec: TaskSpec) -> None:
    _rows(folder, lambda lines: [lines[0], *[[line[0], "pos"] for line in lines[1:]]])


def _other_labels(folder: Path, spec: TaskSpec) -> None:
    _rows(folder, lambda lines: [lines[0], *[[line[0], line[1] + "itive"] for line in lines[1:]]])


def _only_header(folder: Path, spec: TaskSpec) -> None:
    _rows(folder, lambda lines: lines[:1])


def _semicolons(folder: Path, spec: TaskSpec) -> TaskSpec:
    (folder / "reviews.csv").write_text("text;label\na;b\n")
    return dataclasses.replace(spec, text="", label="")


def _without(name: str) -> Mutation:
    def mutate(folder: Path, spec: TaskSpec) -> None:
        for file in (folder / "bert").glob(name):
            file.unlink()

    return mutate


def _other_architecture(folder: Path, spec: TaskSpec) -> None:
    file = folder / "bert" / "config.json"
    file.write_text(file.read_text().replace('"intermediate_size": 32', '"intermediate_size": 48'))


def _strange_split(folder: Path, spec: TaskSpec) -> None:
    _rows(folder, lambda lines: [[*line, "split" if i == 0 else "fold1"] for i, line in enumerate(lines)])


TEXTS: list[tuple[str, Mutation, str]] = [
    ("a column that is not there", _field(text="txt"), "text: reviews.csv has no column 'txt' (did you mean text?)"),
    ("a label that is not there", _field(label="klass"), "label: reviews.csv has no column 'klass'; choose from text"),
    ("an empty text", _no_text, "row 2 holds nan, not text"),
    ("one label", _one_label, "holds one value only, 'pos'"),
    ("labels of another model", _other_labels, "are not those that the model was trained for (neg, pos)"),
    ("no rows", _only_header, "has no rows"),
    ("semicolons", _semicolons, "columns are parted by ';'"),
    ("a file that is not there", _field(data="csv:review.csv"), "(did you mean reviews.csv?)"),
    ("a test file that is not there", _field(test="more.csv"), "task.test: 'more.csv' is no file in"),
    ("no tokenizer", _without("[tv]o*"), "has no tokenizer; it holds config.json, model.safetensors"),
    ("no config", _without("config.json"), "has no config.json; it holds model.safetensors"),
    ("weights of another model", _other_architecture, "the weights are not those of Bert"),
    ("a folder that is not there", _field(model="hf:./brt"), "brt is not there; correct the path"),
    ("longer than the model", _field(length=500), "task.length: 500 is more than the 64 tokens"),
    ("a split column of other names", _strange_split, "column split names no training split; it holds fold1"),
    ("weights beside the folder", _field(weights="w.pt"), "weights: bert holds its weights itself"),
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    own_cases.text(folder)
    return folder


@pytest.mark.parametrize(("name", "mutate", "says"), TEXTS, ids=[case[0] for case in TEXTS])
def test_a_mutated_text_study(name: str, mutate: Mutation, says: str, texts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    shutil.copytree(texts, folder)
    spec = TaskSpec(model="hf:bert", data="csv:reviews.csv", text="text", label="label", folder=str(folder))
    spec = mutate(folder, spec) or spec
    found = messages(spec, tmp_path / "cache")
    assert len(found) == 1, found
    assert says in found[0], found


LIGHTNING = [
    (
        "training_step raises",
        "x, y = batch\n        return",
        "x, y, z = batch\n        return",
        "training_step(): ValueError",
        "lit.py:",
    ),
    (
        "training_step returns nothing",
        "return nn.functional.cross_entropy(self(x), y)",
        "nn.functional.cross_entropy(self(x), y)",
        "training_step() returned None; return the loss",
        "",
    ),
    (
        "the network is called twice",
        "cross_entropy(self(x), y)",
        "cross_entropy(self(x) + self(-x), y)",
        "calls self(...) 2 times",
        "",
    ),
    (
        "no network",
        "self(x), y)\n\n    def val",
        "x[:, :4] * self.layers[0].weight.sum(), y)\n\n    def val",
        "does not call self(...)",
        "",
    ),
    (
        "the metric is not logged",
        '"val_acc"',
        '"accuracy"',
        "validation_step() logs no 'val_acc'; it logs accuracy, val_loss",
        "",
    ),
    (
        "validation_step raises",
        "logits.argmax(1) == y",
        "logits.argmax(5) == y",
        "validation_step(): IndexError",
        "lit.py:",
    ),
    ("no training data", "def train_dataloader", "def train_loader", "has no train_dataloader()", ""),
    (
        "setup raises",
        "def setup(self, stage):",
        "def setup(self, stage):\n        open('/no/such/file')",
        "Data.setup('fit'): FileNotFoundError",
        "lit.py:",
    ),
    (
        "several loaders",
        "return DataLoader(self.parts[1], batch_size=32)",
        "return [DataLoader(self.parts[1]), DataLoader(self.parts[2])]",
        "gives 2 loaders; give one",
        "",
    ),
    (
        "needs arguments",
        "def __init__(self):",
        "def __init__(self, width):",
        "needs arguments (width); write a function",
        "",
    ),
]


@pytest.mark.parametrize(("name", "old", "new", "says", "place"), LIGHTNING, ids=[case[0] for case in LIGHTNING])
def test_a_mutated_lightning_module(name: str, old: str, new: str, says: str, place: str, tmp_path: Path) -> None:
    spec = own_cases.lightning(tmp_path)
    assert old in own_cases.LIGHTNING
    (tmp_path / "lit.py").write_text(own_cases.LIGHTNING.replace(old, new, 1))
    found = messages(spec, tmp_path / "cache")
    assert found
    assert says in found[0], found
    assert place in found[0], found


def _shifted_npz(folder: Path) -> None:
    np.savez(folder / "calib.npz", other=own_cases.rows()[0], more=own_cases.rows()[0])


def _objects(folder: Path) -> None:
    np.savez(folder / "calib.npz", x=np.array([{"a": 1}], object))


def _wide(folder: Path) -> None:
    np.savez(folder / "calib.npz", x=np.zeros((50, 9), np.float32))


def _few(folder: Path) -> None:
    np.savez(folder / "calib.npz", x=np.zeros((3, 8), np.float32))


def _text_npz(folder: Path) -> None:
    (folder / "calib.npz").write_text("no arrays")


def _text_onnx(folder: Path) -> None:
    (folder / "net.onnx").write_text("no model")


def _fixed_batch(folder: Path) -> None:
    own_cases.onnx_file(folder / "net.onnx", batch=5)


ONNX: list[tuple[str, Callable[[Path], None], str]] = [
    ("arrays of other names", _shifted_npz, "has no array for the model's input x; it has ['more', 'other']"),
    ("objects", _objects, "Object arrays cannot be loaded"),
    ("another width", _wide, "cannot be run with x float32 [2, 9]"),
    ("too few samples", _few, "3 samples are too few to set"),
    ("no npz", _text_npz, "is no .npz file"),
    ("no onnx", _text_onnx, "is no valid ONNX file"),
    ("a fixed batch", _fixed_batch, "have a fixed batch; export it with a free first axis"),
]


@pytest.mark.parametrize(("name", "mutate", "says"), ONNX, ids=[case[0] for case in ONNX])
def test_a_mutated_onnx_study(name: str, mutate: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    spec = own_cases.onnx(tmp_path)
    mutate(tmp_path)
    found = messages(spec, tmp_path / "cache")
    assert len(found) == 1, found
    assert says in found[0], found


def test_slow_data_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = own_cases.segmenter(tmp_path)
    slow = own_cases.SEGMENTER.replace("    rng = np", "    import time\n    time.sleep(0.3)\n    rng = np")
    (tmp_path / "unet.py").write_text(slow)
    monkeypatch.setattr("tasks.user_code.TICK_S", 0.1)
    told: list[str] = []
    load(spec, tmp_path / "cache", lambda stage, fraction: told.append(stage)).info()
    assert any(stage.startswith("unet.py:data('train'): ") and stage.endswith(" s") for stage in told)


def test_the_doctor_says_what_slow_data_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = own_cases.segmenter(tmp_path)
    slow = own_cases.SEGMENTER.replace(
        "    rng = np", "    import time\n    time.sleep(1.2 if split == 'train' else 0)\n    rng = np"
    )
    (tmp_path / "unet.py").write_text(slow)
    monkeypatch.setattr("tasks.user_code.TICK_S", 0.1)
    told = examine_data.Slow(own_cases.quiet)
    load(spec, tmp_path / "cache", told).info()
    assert told.notes() == []
    monkeypatch.setattr(examine_data, "SLOW_S", 1)
    (note,) = told.notes()
    assert note.startswith("unet.py:data('train'): 1 s or more, and every worker process calls them again")


def test_augmenting_validation_data_is_refused_and_training_data_streamed(tmp_path: Path) -> None:
    spec = own_cases.recommender(tmp_path)
    text = own_cases.RECOMMENDER.replace("float(self.rating[row])", "float(self.rating[row] + torch.rand(()))")
    (tmp_path / "ratings.py").write_text(text)
    assert "two readings of the same samples differ" in messages(spec, tmp_path / "cache")[0]
    only_train = text.replace("torch.rand(())", "self.noise * torch.rand(())").replace(
        "        self.rating =", "        self.noise = float(seed == 0)\n        self.rating ="
    )
    (tmp_path / "ratings.py").write_text(only_train)
    task = load(spec, tmp_path / "cache", own_cases.quiet)
    data, rows = task.data("train"), np.arange(5)
    assert not data.resident
    assert task.data("validation").resident
    first, again, other = (data.batch(rows, epoch).targets for epoch in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert task.info().teacher == "online"
