"""Is this installation able to work? One line per check."""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
from collections.abc import Callable

NEEDED = ("torch", "numpy", "numba", "diffusers", "transformers", "safetensors", "psutil", "PIL")
FREE_DISK_GB = 1.0  # a job takes some ten MB; less than this and something else will fail soon


def check_all() -> int:
    """Prints a line for each check. Returns 0 where all that a job needs is there."""
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("Python", _python),
        ("Libraries", _libraries),
        ("Device", _device),
        ("Disk", _disk),
        ("Weights", _starter),
        ("Weights", _released),
    )
    failed = 0
    for name, check in checks:
        try:
            words, good = check(), True
        except Exception as error:  # a broken library may raise anything, and that is the finding
            words, good = f"{getattr(error, 'message', '') or error}", False
        failed += not good
        print(f"{'ok  ' if good else 'BAD '} {name:10} {words}")
    return 1 if failed else 0


def _python() -> str:
    return f"{sys.version.split()[0]} at {sys.executable}"


def _libraries() -> str:
    return ", ".join(f"{name} {getattr(importlib.import_module(name), '__version__', '?')}" for name in NEEDED)


def _device() -> str:
    from backend import device

    chosen = device.pick("auto")
    return f"{chosen.type}, {device.name(chosen)}, {device.free_memory_gb(chosen):.1f} GB free"


def _disk() -> str:
    free = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
    if free < FREE_DISK_GB:
        raise RuntimeError(f"only {free:.1f} GB free in {tempfile.gettempdir()}")
    return f"{free:.0f} GB free in {tempfile.gettempdir()}"


def _starter() -> str:
    from backend import weights
    from backend.mv_vdm.checkpoints import verify_manifest

    folder = weights.find("starter")
    verify_manifest(folder)
    return f"starter, whole, in {folder}"


def _released() -> str:
    """The released model is an option; half of it is a fault."""
    from backend import weights
    from backend.mv_vdm.checkpoints import WeightsError, verify_manifest

    folder = weights.place("animate3d")
    if not folder.is_dir():
        return f"animate3d is not installed; to have it, run: {weights.PULL}"
    try:
        weights.find("animate3d")
        verify_manifest(folder, contents=False)
    except WeightsError as error:
        raise WeightsError(f"{error.message} To mend it, run: {weights.PULL}") from None
    return f"animate3d, {weights.size(folder) / 1e9:.1f} GB, in {folder}; each byte: weights verify animate3d"
