"""MNIST's splits, and what happens to cached files that are damaged, lost or fought over."""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.mnist import data, sources
from tasks.splits import stratified
from tests.originals import write_idx

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def dataset(fetched: Path) -> data.DataSet:
    return data.load("mnist", fetched)


@pytest.fixture(scope="module")
def idx(fetched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("idx")
    write_idx(fetched, folder)
    return folder


@pytest.fixture(scope="module")
def pristine(idx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache filled from the folder."""
    home = tmp_path_factory.mktemp("cache")
    data.load("mnist", home, folder=idx)
    return home


def test_splits_are_fixed_and_stratified(dataset: data.DataSet) -> None:
    assert (len(dataset.train), len(dataset.validation), dataset.classes) == (55_000, 5_000, 10)
    assert dataset.digest == "131924e8d855cbe2"  # another value here means that every cached baseline is void
    counts = np.bincount(dataset.train.labels) + np.bincount(dataset.validation.labels)
    assert np.abs(np.bincount(dataset.validation.labels) - counts / 12).max() < 1
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels.dtype == np.int64
    assert dataset.train.images.shape == (55_000, 28, 28)


def test_train_and_validation_are_the_original_train_set_in_its_order(idx: Path, fetched: Path) -> None:
    images = (idx / "train-images-idx3-ubyte").read_bytes()[16:]
    labels = (idx / "train-labels-idx1-ubyte").read_bytes()[8:]
    assert hashlib.sha256(images + labels).hexdigest() == sources.DIGESTS["train"]
    home = fetched / "data" / "mnist"
    positions = [np.load(home / name / "positions.npy") for name in ("train", "validation")]
    assert all((np.diff(one) > 0).all() for one in positions)
    assert (np.sort(np.concatenate(positions)) == np.arange(60_000)).all()


def test_the_test_split(fetched: Path) -> None:
    test = data.open_test("mnist", fetched)
    assert len(test) == 10_000
    assert test.digest() == sources.DIGESTS["test"]


def test_subsets_are_stratified_nested_and_known_by_digest(fetched: Path, dataset: data.DataSet) -> None:
    small, large = (data.load("mnist", fetched, train_size=n, validation_size=500) for n in (1_000, 4_000))
    assert (len(small.train), len(small.validation)) == (1_000, 500)
    share = np.bincount(dataset.train.labels) / 55
    assert np.abs(np.bincount(small.train.labels) - share).max() < 1
    assert {image.tobytes() for image in small.train.images} <= {image.tobytes() for image in large.train.images}
    assert len({dataset.digest, small.digest, large.digest}) == 3
    assert data.load("mnist", fetched, train_size=1_000, validation_size=500).digest == small.digest


@given(st.lists(st.integers(0, 4), min_size=5, max_size=200), st.data())
def test_stratified_keeps_proportions_for_any_labels(chosen: list[int], draw: st.DataObject) -> None:
    labels = np.array(chosen)
    size = draw.draw(st.integers(0, len(labels)))
    picked = stratified(labels, size, seed=3)
    assert len(picked) == len(set(picked.tolist())) == size
    assert (np.diff(picked) > 0).all()
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        # All classes but one are rounded, so the last may be off by half a sample for each of the others.
        assert abs((labels[picked] == label).sum() - size * count / len(labels)) <= 2.5


@pytest.mark.parametrize(
    ("sizes", "field"), [({"train_size": 9}, "train_size"), ({"validation_size": 5_001}, "validation_size")]
)
def test_a_size_out_of_range_is_refused(sizes: dict[str, int], field: str, fetched: Path) -> None:
    with pytest.raises(ValueError, match=f"{field}: .* must lie between 10 and "):
        data.load("mnist", fetched, train_size=sizes.get("train_size"), validation_size=sizes.get("validation_size"))


def test_an_unknown_data_set_names_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'minst' is not a data set; choose from mnist"):
        data.load("minst", tmp_path)


SEARCH = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from pathlib import Path
from tasks.mnist import data
print(data.load("mnist", Path(sys.argv[1])).digest)
assert any("/mnist/train/" in path for path in opened), "the hook saw nothing"
assert not [path for path in opened if "/mnist/test" in path], "the test split was opened"
assert not {"torch", "torchvision", "tensorflow"} & set(sys.modules), "a framework was imported"
"""


def test_load_works_with_the_test_split_unreadable_and_never_opens_it(pristine: Path, tmp_path: Path) -> None:
    home = shutil.copytree(pristine, tmp_path / "cache")
    test = home / "data" / "mnist" / "test"
    for path in test.iterdir():
        path.write_bytes(b"unreadable")
    test.chmod(0)
    ran = subprocess.run([sys.executable, "-c", SEARCH, home], cwd=ROOT, capture_output=True, text=True)
    test.chmod(0o755)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "131924e8d855cbe2"


def test_a_lost_train_split_is_made_again_without_opening_test(pristine: Path, idx: Path, tmp_path: Path) -> None:
    home = shutil.copytree(pristine, tmp_path / "cache")
    shutil.rmtree(home / "data" / "mnist" / "train")
    images = home / "data" / "mnist" / "test" / "images.npy"
    images.write_bytes(b"unreadable")
    assert data.load("mnist", home, folder=idx).digest == "131924e8d855cbe2"
    assert images.read_bytes() == b"unreadable"


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_damaged_cache_file_is_named_and_made_again(
    split: str, pristine: Path, idx: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = shutil.copytree(pristine, tmp_path / "cache")
    path = home / "data" / "mnist" / split / "images.npy"
    content = bytearray(path.read_bytes())
    content[12_345] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        if split == "train":
            assert data.load("mnist", home, folder=idx).digest == "131924e8d855cbe2"
        else:
            assert data.open_test("mnist", home, folder=idx).digest() == sources.DIGESTS["test"]
    assert f"mnist/{split} is broken (images.npy" in caplog.text


LOADS = """
import json, sys
from pathlib import Path
from tasks.mnist import data
stages = []
loaded = data.load("mnist", Path(sys.argv[1]), folder=Path(sys.argv[2]), progress=lambda s, f: stages.append(s))
print(json.dumps([loaded.digest, sorted(set(stages))]))
"""


def test_two_processes_prepare_at_once(idx: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOADS, str(tmp_path / "cache"), str(idx)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [json.loads(process.communicate(timeout=60)[0]) for process in both]
    assert [digest for digest, _ in said] == ["131924e8d855cbe2"] * 2
    assert sum("writing the splits" in stages for _, stages in said) == 1  # one made them
    assert not (tmp_path / "cache" / "data" / "mnist" / ".fetch").exists()


@pytest.mark.parametrize(("layout", "shape"), [("NCHW", (3, 1, 28, 28)), ("NHWC", (3, 28, 28, 1))])
def test_normalized(layout: str, shape: tuple[int, ...], dataset: data.DataSet) -> None:
    images = data.normalized(dataset.train.images[:3], layout)
    assert images.shape == shape
    assert images.dtype == np.float32
    expected = (dataset.train.images[:3].astype(np.float64) / 255 - 0.1307) / 0.3081
    assert np.abs(images.reshape(3, 28, 28) - expected).max() < 1e-6


def test_normalized_refuses_another_layout() -> None:
    with pytest.raises(ValueError, match="'CHW' is not valid; choose from NCHW, NHWC"):
        data.normalized(np.zeros((1, 28, 28), np.uint8), "CHW")
