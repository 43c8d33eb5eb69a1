"""The CPU of this host, as Linux tells it; elsewhere hardly anything is known."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def name() -> str:
    """What the CPU calls itself, such as `AMD EPYC 7763 64-Core Processor`."""
    return _line("model name") or platform.processor() or platform.machine()


def flags() -> frozenset[str]:
    """What the CPU can do, by Linux's names: avx2, avx512_vnni, amx_int8 …; nothing where the system does not say."""
    return frozenset(_line("flags").split())


def saturates_int8() -> bool:
    """Whether sums of products uint8 times int8 may overflow: on x86 without VNNI, and where that is not known."""
    return platform.machine().lower() in ("x86_64", "amd64") and not any("vnni" in flag for flag in flags())


@functools.cache
def _line(key: str) -> str:
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")
