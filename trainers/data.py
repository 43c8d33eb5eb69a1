"""Data sets as NumPy arrays with fixed train, validation and test splits; every source's digest is checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LAYOUTS = ("NCHW", "NHWC")
MEAN, STD = 0.1307, 0.3081  # of MNIST's training pixels in [0, 1]


@dataclass(frozen=True)
class Split:
    """`images`: uint8 [N, 28, 28]; `labels`: int64 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    """What training and search may see; the test split is opened by `open_test` alone.

    `digest`: 16 hex digits over the arrays of train and validation as they are here.
    """

    name: str
    train: Split
    validation: Split
    digest: str
    classes: int = 10


def normalized(images: np.ndarray, layout: str) -> np.ndarray:
    """uint8 [N, 28, 28] -> float32 [N, 1, 28, 28] (NCHW) or [N, 28, 28, 1] (NHWC), (x / 255 - MEAN) / STD.

    The one preprocessing step: it stays outside the exported file, in the tool that feeds it.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: {layout!r} is not valid; choose from {', '.join(LAYOUTS)}")
    scaled = (images.astype(np.float32) / 255.0 - MEAN) / STD
    return np.ascontiguousarray(scaled[:, None] if layout == "NCHW" else scaled[..., None], dtype=np.float32)
