"""The device that computes: its choice, its fast precision and its free memory."""

from __future__ import annotations

import functools

import psutil
import torch

from trainers.recipe import RecipeError

DEVICES = ("auto", "cpu", "cuda")


def device_of(name: str) -> torch.device:
    """`auto` takes CUDA where there is one; RecipeError for an unknown or absent device."""
    if name not in DEVICES:
        raise RecipeError(f"device: {name!r} is not valid; choose from {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device: 'cuda' is asked for and torch finds no CUDA device; choose auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@functools.cache
def half_precision(device_type: str) -> torch.dtype | None:
    """The 16-bit type that the device computes with faster than with float32, None when it has none."""
    if device_type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else None


def autocast(device: torch.device) -> torch.autocast:
    """Mixed precision where it pays, otherwise nothing."""
    dtype = half_precision(device.type)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device had no room for a tensor; a CPU's allocator says so in words alone."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
