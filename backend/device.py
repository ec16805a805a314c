"""Which device computes, how much memory it has, and what running out of it looks like."""

from __future__ import annotations

import platform
from importlib import metadata

import psutil
import torch

from backend.protocol import UserError

GB = 1024.0**3
_VERSIONS_OF = ("torch", "diffusers", "transformers", "numba", "numpy", "gsplat")


def pick(device: str) -> torch.device:
    """The device of a setting `auto | cpu | cuda | mps`; raises `UserError` where this machine has none such."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, available in there.items() if available)
    if not there[device]:
        names = {"cuda": "an NVIDIA GPU that PyTorch can use", "mps": "an Apple GPU that PyTorch can use"}
        raise UserError(f"This machine does not have {names[device]}.", "Choose the device auto or cpu.")
    return torch.device(device)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are much faster there than those of float32: by tensor cores, or by AMX."""
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def name(device: torch.device) -> str:
    """What the device is called by its maker."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def free_memory_gb(device: torch.device) -> float:
    """Free memory of the GPU, or of the machine where the device shares it."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return round(free / GB, 3)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in _VERSIONS_OF:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whichever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU allocator, MPS and cuBLAS raise a plain RuntimeError.
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
    return isinstance(error, RuntimeError | OSError) and any(sign in text for sign in signs)


def release_memory() -> None:
    """Gives cached blocks back to the GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
