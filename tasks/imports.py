"""Imports of optional or unruly packages, in workers only."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from types import ModuleType
from typing import Any

_schemas: list[Any] = []  # torch forgets a schema when its Library object is collected


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
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _schemas.append(library)
    return importlib.import_module("torchvision")


def one_thread(tensorflow: ModuleType) -> None:
    """TensorFlow on one thread, in this process and for good; to be called right after its first import.

    It takes the number once, and the number decides the order of sums: what two threads make is not what one makes.
    Where a user's own code has used TensorFlow before, its number stays: equal recipes may then differ in last digits.
    """
    threading = tensorflow.config.threading
    for read, write in (
        (threading.get_intra_op_parallelism_threads, threading.set_intra_op_parallelism_threads),
        (threading.get_inter_op_parallelism_threads, threading.set_inter_op_parallelism_threads),
    ):
        if read() != 1:
            with suppress(RuntimeError):
                write(1)
