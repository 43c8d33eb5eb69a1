"""What a trial takes of the machine while its file is made: processor, memory, and the GPU where there is one.

Nothing is sampled while a latency is measured: a thread that wakes up would disturb it.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil

INTERVAL = 0.2  # seconds between samples; a worker's life holds many trials, so its own peak says nothing of one
_MB = 1e6


@contextmanager
def metered(device: str) -> Iterator[dict[str, float]]:
    """A dict that is filled when the block ends.

    `cpu_utilization`: of one core by this process, 1.0 is one core all the time; waiting for a measurement's quiet
    counts as idle. `peak_memory_mb`: this process's, in 10^6 bytes. On a machine with an NVIDIA GPU and the package
    nvidia-ml-py, unless `device` is cpu: `gpu_utilization` (mean share of the time) and `peak_gpu_memory_mb`, both of
    the whole device.
    """
    figures: dict[str, float] = {}
    peaks = {"peak_memory_mb": 0.0}
    busy: list[float] = []
    gpu = _gpu() if device != "cpu" else None
    process, over = psutil.Process(), threading.Event()

    def sample() -> None:
        while True:
            peaks["peak_memory_mb"] = max(peaks["peak_memory_mb"], process.memory_info().rss / _MB)
            if gpu is not None:
                share, memory = gpu()
                busy.append(share)
                peaks["peak_gpu_memory_mb"] = max(peaks.get("peak_gpu_memory_mb", 0.0), memory)
            if over.wait(INTERVAL):
                return

    thread = threading.Thread(target=sample, daemon=True)
    wall, used = time.perf_counter(), time.process_time()
    thread.start()
    try:
        yield figures
    finally:
        figures["cpu_utilization"] = (time.process_time() - used) / (time.perf_counter() - wall)
        over.set()
        thread.join()
        figures |= peaks | ({"gpu_utilization": sum(busy) / len(busy)} if busy else {})


def _gpu() -> Callable[[], tuple[float, float]] | None:
    """Reads (share of the time it was busy, memory in use in MB) of the first visible GPU; None where none can be."""
    try:
        pynvml: Any = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        by_index = first.isdecimal()
        device = pynvml.nvmlDeviceGetHandleByIndex(int(first)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(first)
    except Exception:  # no such package, driver or device: nothing to tell, whatever the library says about it
        return None

    def read() -> tuple[float, float]:
        share: float = pynvml.nvmlDeviceGetUtilizationRates(device).gpu / 100
        return share, pynvml.nvmlDeviceGetMemoryInfo(device).used / _MB

    return read
