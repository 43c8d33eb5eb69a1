"""MNIST's original files, put together again from the cached splits."""

import struct
from pathlib import Path

import numpy as np

from tasks.mnist import data


def write_idx(cache: Path, folder: Path) -> None:
    """The four IDX files, not compressed, into `folder`."""
    images, labels = np.empty((60_000, 28, 28), np.uint8), np.empty(60_000, np.uint8)
    dataset = data.load("mnist", cache)
    for name, split in (("train", dataset.train), ("validation", dataset.validation)):
        positions = np.load(cache / "data" / "mnist" / name / "positions.npy")
        images[positions], labels[positions] = split.images, split.labels
    test = data.open_test("mnist", cache)
    for stem, pixels, classes in (("train", images, labels), ("t10k", test.images, test.labels.astype(np.uint8))):
        head = struct.pack(">4i", 0x803, len(pixels), 28, 28)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, len(pixels)) + classes.tobytes())
