"""What a trial takes of the machine: its own peak, not its process's, and the GPU where there is one."""

from __future__ import annotations

import sys
import time
import types

import numpy as np
import pytest

from search.trial.resources import INTERVAL, metered


def test_the_peak_is_the_blocks_own() -> None:
    big = np.ones(40_000_000)  # 320 MB that are gone before the second block
    with metered("cpu") as first:
        time.sleep(2 * INTERVAL)
    del big
    with metered("cpu") as second:
        time.sleep(2 * INTERVAL)
    assert set(first) == {"cpu_utilization", "peak_memory_mb"}
    assert first["peak_memory_mb"] - second["peak_memory_mb"] > 250


def test_work_counts_as_busy_and_waiting_as_idle() -> None:
    with metered("cpu") as idle:
        time.sleep(0.5)
    with metered("cpu") as busy:
        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass
    assert idle["cpu_utilization"] < 0.3
    assert busy["cpu_utilization"] > idle["cpu_utilization"]


def test_the_figures_are_there_also_when_the_block_raises() -> None:
    with pytest.raises(KeyError), metered("cpu") as found:
        raise KeyError
    assert found["peak_memory_mb"] > 1


def test_the_gpu_is_read_through_its_own_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def device(index: int) -> str:
        asked.append(index)
        return "a device"

    library = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=device,
        nvmlDeviceGetUtilizationRates=lambda device: types.SimpleNamespace(gpu=60),
        nvmlDeviceGetMemoryInfo=lambda device: types.SimpleNamespace(used=3_000_000_000),
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    with metered("auto") as found:
        pass
    assert asked == [1]
    assert (found["gpu_utilization"], found["peak_gpu_memory_mb"]) == (0.6, 3000.0)
    with metered("cpu") as without:
        pass
    assert "gpu_utilization" not in without
