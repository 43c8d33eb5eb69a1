"""Data sources: what each reads, how splits are made, and that preprocessing is the libraries' own."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies
from PIL import Image

from pare.testing.tasks import check_task
from tasks.base import TaskError, TaskSpec
from tasks.images import ImageError, ImageOptions, decode, normalized
from tasks.imports import import_torchvision
from tasks.load import load
from tasks.samples import ArraySamples
from tasks.sources import imagefolder
from tasks.splits import Source, Splits, stratified
from tests import own_cases

MODEL = """
import torch
from torch import nn


def model():
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
"""


def _photo(path: Path, size: tuple[int, int], mode: str = "RGB") -> Path:
    rng = np.random.default_rng(size[0])
    shape = size[::-1] if mode in ("L", "I;16") else (*size[::-1], len(mode))
    high = 65_535 if mode == "I;16" else 255
    pixels = rng.integers(0, high, shape).astype(np.uint16 if mode == "I;16" else np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("size", [(50, 37), (37, 50), (32, 32), (20, 64), (300, 221)])
def test_pixels_are_those_of_torchvision(size: tuple[int, int], tmp_path: Path) -> None:
    import_torchvision()
    from torchvision.transforms import v2

    file = _photo(tmp_path / "a.png", size)
    for mode in ("bilinear", "bicubic"):
        options = ImageOptions((32, 32), 36, "crop", "RGB", mode)
        theirs = v2.Compose(
            [
                v2.Resize(36, v2.InterpolationMode(mode)),
                v2.CenterCrop(32),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(options.mean, options.std),
            ]
        )(Image.open(file))
        ours = normalized(decode(file, options)[None], options)[0]
        assert np.allclose(ours, theirs.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_preprocessing_is_that_of_timm(name: str, tmp_path: Path) -> None:
    from tasks.address import read
    from tasks.vision import VisionSubject

    subject = VisionSubject(TaskSpec(), read("model", f"timm:{name}"))
    import timm

    model = timm.create_model(name, pretrained=False)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    file = _photo(tmp_path / "a.png", (301, 260))
    theirs = transform(Image.open(file)).numpy()
    ours = normalized(decode(file, subject.image)[None], subject.image)[0]
    assert ours.shape == theirs.shape
    assert np.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(("name", "resize", "crop"), [("resnet18", 256, 224), ("efficientnet_b0", 256, 224)])
def test_preprocessing_is_that_of_torchvisions_weights(name: str, resize: int, crop: int) -> None:
    from tasks.address import read
    from tasks.vision import VisionSubject

    options = VisionSubject(TaskSpec(), read("model", f"torchvision:{name}")).image
    assert (options.resize, options.size, options.fit) == (resize, (crop, crop), "crop")


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16"])
def test_other_kinds_of_pixels_become_rgb(mode: str, tmp_path: Path) -> None:
    options = ImageOptions((16, 16), 16)
    pixels = decode(_photo(tmp_path / "a.png", (16, 16), mode), options)
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == np.uint8
    grey = decode(_photo(tmp_path / "a.png", (16, 16), mode), ImageOptions((16, 16), 16, mode="L"))
    assert grey.shape == (1, 16, 16)


def test_bytes_of_a_request_are_read_like_a_file(tmp_path: Path) -> None:
    file, options = _photo(tmp_path / "a.png", (40, 30)), ImageOptions((16, 16), 20)
    assert np.array_equal(decode(file, options), decode(file.read_bytes(), options))
    with pytest.raises(ImageError, match="cannot identify"):
        decode(b"no image", options)


@given(strategies.lists(strategies.integers(0, 4), min_size=20, max_size=200), strategies.integers(5, 20))
def test_stratified_parts_are_nested_and_in_proportion(labels: list[int], size: int) -> None:
    array = np.array(labels)
    chosen, more = stratified(array, size, 7), stratified(array, size + 5, 7)
    assert len(set(chosen)) == size <= len(more)
    assert set(chosen) <= set(more)
    for label in set(labels):
        share = size * np.mean(array == label)
        assert abs(np.sum(array[chosen] == label) - share) <= 1.5


def _source(counts: dict[str, int]) -> Source:
    def samples(split: str, count: int) -> ArraySamples:
        x = np.arange(count, dtype=np.float32)[:, None]
        return ArraySamples(x, np.arange(count) % 3, split)

    return Source("it", {split: lambda s=split, n=n: samples(s, n) for split, n in counts.items()})  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given_splits", "sizes", "notes"),
    [
        ({"train": 100}, (80, 10, 10), ["no validation split", "no test split"]),
        ({"train": 100, "validation": 30}, (100, 15, 15), ["no test split; half of the validation"]),
        ({"train": 100, "test": 30}, (90, 10, 30), ["no validation split"]),
        ({"train": 100, "validation": 30, "test": 20}, (100, 30, 20), []),
    ],
)
def test_missing_splits_are_made_and_said(
    given_splits: dict[str, int], sizes: tuple[int, ...], notes: list[str]
) -> None:
    splits = Splits(_source(given_splits), TaskSpec())
    parts = {split: splits.open(split) for split in ("train", "validation", "test")}
    assert tuple(map(len, parts.values())) == sizes
    assert len(splits.notes) == len(notes)
    assert all(said in note for said, note in zip(notes, splits.notes, strict=True))
    made = [parts[split] for split in parts if split not in given_splits or len(given_splits) < 3]
    rows = [tuple(part.take(np.arange(len(part)))[0][:, 0]) for part in made]
    if "train" in given_splits and len(given_splits) == 1:
        assert len(set(sum(rows, ()))) == 100  # nothing twice, nothing lost
    again = Splits(_source(given_splits), TaskSpec())
    assert [again.open(split).digest() for split in parts] == [part.digest() for part in parts.values()]


def test_sizes_take_a_part_that_is_part_of_a_larger_one() -> None:
    small = Splits(_source({"train": 100}), TaskSpec(train_size=20)).open("train")
    large = Splits(_source({"train": 100}), TaskSpec(train_size=40)).open("train")
    assert set(small.take(np.arange(20))[0][:, 0]) <= set(large.take(np.arange(40))[0][:, 0])


def _task(folder: Path, **fields: object) -> tuple[list[int], np.ndarray, tuple[str, ...]]:
    """Sizes of the splits, the first training target, the classes."""
    task = load(TaskSpec(folder=str(folder), **fields), folder / "cache", own_cases.quiet)  # type: ignore[arg-type]
    check_task(task)
    sizes = [len(task.data(split)) for split in ("train", "validation", "test")]
    return sizes, task.data("train").batch(np.arange(1)).targets, task.info().classes


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(MODEL)
    return tmp_path


def _write(file: Path, rows: int, split: str = "", start: int = 0) -> None:
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["height", "weight", "kind", *(["split"] if split else [])])
        for row in range(start, start + rows):
            value = split.split(",")[row % len(split.split(","))] if split else None
            writer.writerow([row, row * 0.5, ("ash", "fir", "oak")[row // 3 % 3], *([value] if split else [])])


def test_a_table_of_numbers_split_by_us(table: Path) -> None:
    _write(table / "trees.csv", 100)
    sizes, target, classes = _task(table, model="net.py:model", data="csv:trees.csv", label="kind")
    assert (sizes, classes) == ([80, 10, 10], ("ash", "fir", "oak"))
    assert target.dtype == np.int64


def test_a_table_with_a_split_column(table: Path) -> None:
    _write(table / "trees.csv", 90, "train,val,test")
    sizes, _, _ = _task(table, model="net.py:model", data="csv:trees.csv", label="kind")
    assert sizes == [30, 30, 30]


def test_a_folder_of_tables_and_named_files(table: Path) -> None:
    (table / "trees").mkdir()
    _write(table / "trees" / "train.csv", 60)
    _write(table / "trees" / "val.csv", 30)
    assert _task(table, model="net.py:model", data="csv:trees", label="kind")[0] == [60, 15, 15]
    _write(table / "more.csv", 21)
    fields = {"model": "net.py:model", "data": "csv:trees/train.csv", "label": "kind", "test": "more.csv"}
    assert _task(table, **fields)[0] == [54, 6, 21]


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("x", "y"), [80, 10, 10]),
        (("x_train", "y_train", "x_test", "y_test"), [90, 10, 100]),
        (("train_x", "train_target", "val_x", "val_target", "test_x", "test_target"), [100, 100, 100]),
    ],
)
def test_arrays_in_one_file(names: tuple[str, ...], sizes: list[int], table: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32), np.arange(100) % 3
    arrays: dict[str, Any] = {name: x if "x" in name.split("_") else y for name in names}
    np.savez(table / "a.npz", **arrays)
    assert _task(table, model="net.py:model", data="npz:a.npz")[0] == sizes


def test_raw_pixels_in_arrays_are_prepared_for_the_model(table: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 20, 20, 3), np.uint8)
    np.savez(table / "a.npz", x=pixels, y=np.arange(60) % 3)
    spec = TaskSpec(model="torchvision:resnet18", data="npz:a.npz", size=32, folder=str(table))
    task = load(spec, table / "cache", own_cases.quiet)
    info, serving = task.info(), task.serving()
    assert info.inputs[0].shape == ("batch", 3, 32, 32)
    assert serving is not None
    assert serving.kind == "image"
    batch = task.data("train").batch(np.arange(2)).inputs["input"]
    assert batch.dtype == np.float32
    assert -3 < batch.min() < batch.max() < 3


def test_a_dataset_saved_to_disk(table: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = {"text": ["good film", "bad plot"] * 30, "label": [1, 0] * 30}
    made = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict({"train": made, "test": made.select(range(20))}).save_to_disk(str(table / "saved"))
    own_cases.bert(table)
    sizes, _, classes = _task(table, model="hf:bert", data="datasets:saved", text="text", label="label")
    assert (sizes, classes) == ([54, 6, 20], ("neg", "pos"))


def test_texts_are_cut_at_the_quantile_and_batches_as_long_as_their_longest(table: Path) -> None:
    spec = own_cases.text(table)
    task = load(spec, table / "cache", own_cases.quiet)
    data = task.data("train")
    lengths = data.lengths  # type: ignore[attr-defined]
    short = np.flatnonzero(lengths <= 8)[:3]
    assert data.batch(short).inputs["input_ids"].shape == (3, 8)
    whole = data.batch(np.arange(len(data))).inputs
    assert whole["input_ids"].shape[1] == 24
    assert np.array_equal(whole["attention_mask"].sum(1), lengths)
    assert set(np.unique(whole["input_ids"][whole["attention_mask"] == 0])) <= {0}


def test_another_host_finds_the_samples_without_their_source(tmp_path: Path) -> None:
    """As `executor=ray` has it: the cache's folders and the user's files are there, the data's own folder is not."""
    for name in ("torchvision", "text", "lightning", "recommender"):
        here, there = tmp_path / name, tmp_path / f"{name}-there"
        here.mkdir()
        spec = own_cases.TORCH[name](here)
        task = load(spec, here / "cache", own_cases.quiet)
        info = task.info()
        for place in info.places.values():
            shutil.copytree(here / "cache" / place, there / "cache" / place, dirs_exist_ok=True)
        code = there / "cache" / "code" / "0"
        code.mkdir(parents=True)
        for file in (*here.glob("*.py"), *here.glob("bert")):
            shutil.copytree(file, code / file.name) if file.is_dir() else shutil.copyfile(file, code / file.name)
        moved = TaskSpec.from_dict({**spec.to_dict(), "folder": str(code)})
        again = load(moved, there / "cache", own_cases.quiet)
        assert again.info().data_digest == info.data_digest
        assert again.info().code_digest == info.code_digest
        first, second = (each.data("train").batch(np.arange(5)).inputs for each in (task, again))
        assert all(np.array_equal(first[key], second[key]) for key in first)
        if name == "text":
            shutil.rmtree(there / "cache" / "data")
            with pytest.raises(TaskError, match="was not brought to this host"):
                load(moved, there / "cache", own_cases.quiet).info()


def test_changed_images_are_decoded_again(tmp_path: Path) -> None:
    spec = own_cases.torchvision(tmp_path)
    first = load(spec, tmp_path / "cache", own_cases.quiet).info()
    Image.new("RGB", (20, 24)).save(tmp_path / "photos" / "train" / "cat" / "0.jpg")
    assert load(spec, tmp_path / "cache", own_cases.quiet).info().data_digest != first.data_digest


def test_a_full_disk_is_foreseen_and_images_are_read_when_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = own_cases.torchvision(tmp_path)
    stored = load(spec, tmp_path / "cache", own_cases.quiet)
    monkeypatch.setattr("tasks.store.fits", lambda home, size: False)
    streamed = load(spec, tmp_path / "other", own_cases.quiet)
    assert not streamed.data("train").resident
    rows = np.array([30, 2, 17])
    a, b = (task.data("train").batch(rows) for task in (stored, streamed))
    assert np.array_equal(a.inputs["input"], b.inputs["input"])
    assert np.array_equal(a.targets, b.targets)
    assert streamed.info().places == {}


@pytest.mark.parametrize(("size", "said"), [((20, 24), True), ((200, 150), False)])
def test_images_that_are_much_enlarged_are_told(size: tuple[int, int], said: bool, tmp_path: Path) -> None:
    folder = own_cases.photos(tmp_path, size=size)
    notes = imagefolder._enlarged(imagefolder._listed(folder / "train"), ImageOptions())
    told = ["the images have some 20 pixels a side and are enlarged to 224; task.size=32 takes 49 times less work"]
    assert notes == (told if said else [])
