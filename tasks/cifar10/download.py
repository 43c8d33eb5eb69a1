"""`python -m tasks.cifar10.download FOLDER`: CIFAR-10 through torchvision, written as the original binary version.

A program of its own, because the driver reads `tasks` and must never import torch.
"""

from __future__ import annotations

import importlib
import socket
import sys
from pathlib import Path

import numpy as np

from tasks.cifar10.sources import BINARIES
from tasks.fetch import TIMEOUT_S
from tasks.imports import import_torchvision


def main() -> None:
    """Download to FOLDER; exits 1 with one line on stderr when it cannot."""
    socket.setdefaulttimeout(TIMEOUT_S)
    import_torchvision()
    datasets = importlib.import_module("torchvision.datasets")
    folder = Path(sys.argv[1])
    try:
        for split, names in BINARIES.items():
            found = datasets.CIFAR10(str(folder / "archive"), train=split == "train", download=True)
            pixels = np.asarray(found.data).transpose(0, 3, 1, 2).reshape(len(found.data), -1)
            table = np.concatenate([np.asarray(found.targets, np.uint8)[:, None], pixels], axis=1)
            for name, part in zip(names, np.split(table, len(names)), strict=True):
                part.tofile(folder / name)
    except (RuntimeError, OSError) as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
