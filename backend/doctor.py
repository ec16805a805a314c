"""Is this installation able to work? One line per check, and what mends it where it fails."""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable

OLDEST = (3, 11)
LIBRARIES = ("numpy", "numba", "diffusers", "transformers", "safetensors", "psutil", "PIL")
FREE_DISK_GB = 1.0  # a job takes some ten MB; less than this and something else will fail soon
FREE_MEMORY_GB = 2.0  # the starter model's jobs peak at about one
AGAIN = "Install the backend again; what is there already is kept."


class Bad(Exception):
    """What is wrong, and what mends it."""

    def __init__(self, message: str, mend: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, mend


def check_all() -> int:
    """Prints a line for each check. Returns 0 where all that a job needs is there."""
    checks: tuple[tuple[str, Callable[[], str], str], ...] = (
        ("Python", _python, "Install the backend again with a newer Python."),
        ("PyTorch", _torch, AGAIN),
        ("Libraries", _libraries, AGAIN),
        ("GPU", _gpu, "Choose the processor as the device, or update the driver."),
        ("Memory", _memory, "Close other programs."),
        ("Rasterizer", _rasterizer, AGAIN),
        ("Weights", _starter, "Install the extension again: the starter model comes with it."),
        ("Weights", _released, "Download the model again."),
        ("Disk", _disk, "Make room there, or let TMPDIR name another folder."),
    )
    failed = 0
    for name, check, mend in checks:
        try:
            words, good = check(), True
        except Exception as error:  # a broken library may raise anything, and that is the finding
            message = getattr(error, "message", "") or f"{error}" or type(error).__name__
            words, good = f"{message.rstrip('.')}. {getattr(error, 'hint', '') or mend}", False
        failed += not good
        print(f"{'ok  ' if good else 'BAD '} {name:10} {' '.join(words.split())}", flush=True)
    return 1 if failed else 0


def _python() -> str:
    version = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info < OLDEST:
        raise Bad(f"{version} is too old", f"Install the backend with Python {'.'.join(map(str, OLDEST))} or newer.")
    return version


def _torch() -> str:
    import torch

    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _libraries() -> str:
    return ", ".join(f"{name} {getattr(importlib.import_module(name), '__version__', '?')}" for name in LIBRARIES)


def _gpu() -> str:
    """The one that will be used; a machine without one is fine, but one that PyTorch can't use is a pity."""
    from backend import device

    chosen = device.pick("auto")
    if chosen.type != "cpu":
        return f"{chosen.type}, {device.name(chosen)}, {device.free_memory_gb(chosen):.1f} GB free"
    if shutil.which("nvidia-smi"):
        raise Bad(
            "There is an NVIDIA GPU that this PyTorch can't use", "Update its driver, and install the backend again."
        )
    return f"none that PyTorch can use: the processor computes ({device.name(chosen)})"


def _memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available / 1e9, memory.total / 1e9
    if free < FREE_MEMORY_GB:
        raise Bad(f"only {free:.1f} of {total:.0f} GB are free", "Close other programs.")
    return f"{free:.1f} of {total:.0f} GB free"


def _rasterizer() -> str:
    """Draws a few Gaussians on the device that will be used."""
    import torch

    from backend import device
    from backend.protocol import condition_cameras
    from backend.splats.cuda_gsplat import gsplat_usable
    from backend.splats.rasterize import rasterize

    chosen = device.pick("auto")
    where = chosen if chosen.type == "cuda" else torch.device("cpu")
    began = time.monotonic()
    means = torch.zeros(8, 3, device=where)
    quats = torch.tensor([[1.0, 0.0, 0.0, 0.0]], device=where).expand(8, 4)
    ones = torch.ones(8, device=where)
    cameras = torch.from_numpy(condition_cameras()).float().to(where)
    colors, scales = ones[:, None].expand(8, 3), 0.1 * torch.ones_like(means)
    _, alpha = rasterize(means, quats, scales, ones, colors, cameras, 40.0, 32, 32)
    if not 0.5 < float(alpha.max()) <= 1.0:
        raise Bad("it draws nothing", AGAIN)
    name = "gsplat" if where.type == "cuda" and gsplat_usable() else "numba"
    return f"{name} on {where.type}, first picture after {time.monotonic() - began:.1f} s"


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
