"""`python -m tasks.mnist.download FOLDER`: the original MNIST files through torchvision.

A program of its own, because the driver reads `tasks` and must never import torch.
"""

from __future__ import annotations

import importlib
import socket
import sys

from tasks.fetch import TIMEOUT_S
from tasks.imports import import_torchvision


def main() -> None:
    """Download the four IDX files to FOLDER/MNIST/raw; exits 1 with one line on stderr when it cannot."""
    socket.setdefaulttimeout(TIMEOUT_S)
    import_torchvision()
    datasets = importlib.import_module("torchvision.datasets")
    try:
        datasets.MNIST(sys.argv[1], download=True)
    except (RuntimeError, OSError) as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
