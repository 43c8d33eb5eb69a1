"""`python -m trainers.pytorch.download FOLDER`: the original MNIST files through torchvision.

A program of its own, because the driver reads `tasks.mnist.data` and must never import torch.
"""

from __future__ import annotations

import importlib
import socket
import sys
from types import ModuleType

import torch

# Seconds for one connection or one read: a firewall that drops packets must not stall the search for a source.
TIMEOUT_S = 5.0

_schemas: list[torch.library.Library] = []  # torch forgets a schema when its Library object is collected


def import_torchvision() -> ModuleType:
    """torchvision, also when it was built for CUDA and torch for the CPU.

    Such a torchvision fails at import for want of two operator schemas. They are defined after that failure
    only: on a matching build a second definition aborts the process.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _schemas.append(library)
    return importlib.import_module("torchvision")


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
