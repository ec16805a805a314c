"""What the interface needs to know of a model before any backend runs: its `model.json`. No bpy in it."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from .shared import protocol

SOURCE = Path(__file__).resolve().parent.parent  # the folder that holds `backend` and `weights`
CARD = "model.json"
NAMES = ("starter", "animate3d")
ROOM_FOR_RELEASED = 5.5  # GiB that a card must have: those that are sold as 6 GB do; the mode `low` needs less than 5


@dataclass(frozen=True)
class ModelCard:
    """A model that is installed."""

    name: str
    appearance: str  # color | position: what it animates
    motions: dict[str, tuple[str, ...]]  # the words of each motion it knows; empty where it takes any sentence
    licence: str


def folder_of(weights: str, home: Path) -> Path:
    """Where the model `starter | animate3d | a folder` lies.

    Args:
        home: where models that the user fetched lie; the starter model lies in there or beside the add-on.
    """
    if weights not in NAMES:
        return Path(weights)
    comes_along = weights == "starter" and not (home / weights / CARD).is_file()
    return SOURCE / "weights" / weights if comes_along else home / weights


def is_installed(weights: str, home: Path) -> bool:
    return (folder_of(weights, home) / CARD).is_file()


def default(device: str, home: Path) -> str:
    """The best model that is installed and that this machine can run in good time: a name of `NAMES`.

    Args:
        device: the setting `auto | cpu | cuda | mps`. Apple's GPUs count as too slow: nobody has tried.
    """
    able = device in ("auto", "cuda") and is_installed("animate3d", home) and gpu_memory_gb() >= ROOM_FOR_RELEASED
    return "animate3d" if able else "starter"


@functools.cache
def gpu_memory_gb() -> float:
    """Memory of the largest NVIDIA GPU in GiB, 0 without one; asked of its driver, before any backend runs."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count, device, size = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return 0.0
        sizes = [0]
        for index in range(count.value):
            if not driver.cuDeviceGet(ctypes.byref(device), index):
                driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
                sizes.append(size.value)
    except (OSError, AttributeError):
        return 0.0
    return max(sizes) / 1024**3


def card(weights: str, home: Path) -> ModelCard:
    """Raises `UserError` where the model is missing or its card can't be read."""
    folder = folder_of(weights, home)
    if not (folder / CARD).is_file():
        raise protocol.UserError(
            f"The weights “{weights}” are not installed.",
            "Install them in the add-on's preferences, or choose others.",
            kind="missing_weights",
        )
    data = protocol.read_json(folder / CARD)
    motions = data.get("motions")
    appearance = data.get("appearance")
    return ModelCard(
        name=str(data.get("name", weights)),
        appearance=appearance if appearance in ("color", "position") else "color",
        motions={str(name): tuple(map(str, words)) for name, words in (motions or {}).items()},
        licence=str(data.get("licence", "")),
    )


def example_prompts(model: ModelCard, subject: str = "it") -> list[str]:
    """A sentence for each motion that the model knows, for example “the cactus sways”."""
    return [f"{subject} {words[0]}" for words in model.motions.values() if words]


@functools.cache
def released_sources() -> tuple:
    """What the released model is made of, `backend.weights.sources.REQUIRED`: repository, size, licence of each.

    Loaded by its path, because it needs the standard library alone and the package around it needs more.
    """
    spec = importlib.util.spec_from_file_location(f"{__package__}.sources", SOURCE / "backend/weights/sources.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the names of their fields' types
    spec.loader.exec_module(module)
    return module.REQUIRED
