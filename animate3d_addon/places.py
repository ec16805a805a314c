"""Where the add-on keeps its files: an installed one never in its own folder, which an update replaces."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import bpy

from .backend_process import SOURCE

# `bl_ext.<repository>.animate3d` where it is installed, `animate3d_addon` in a checkout.
ADDON = __package__.rpartition(".")[0] or __package__


def home() -> Path:
    """The add-on's own folder among the user's; `ANIMATE3D_HOME` names another."""
    chosen = os.environ.get("ANIMATE3D_HOME", "")
    if chosen:
        return Path(chosen).absolute()
    try:
        return Path(bpy.utils.extension_path_user(ADDON))
    except ValueError:  # not installed as an extension
        data = bpy.utils.user_resource("DATAFILES", path="animate3d")
        return Path(data) if data else Path(tempfile.gettempdir()) / "animate3d"


def environment() -> Path:
    """The backend's Python environment."""
    return home() / "environment"


def weights() -> Path:
    """Models that were fetched: `ANIMATE3D_WEIGHTS`, which the backend obeys too, else beside our other files."""
    chosen = os.environ.get("ANIMATE3D_WEIGHTS", "")
    if chosen:
        return Path(chosen).absolute()
    return SOURCE / "weights" if _is_checkout() else home() / "weights"


def backend_environment() -> dict[str, str]:
    """For every process of the backend: where fetched models lie, and that nothing is written into our own folder."""
    found = {"ANIMATE3D_WEIGHTS": str(weights())}
    if not _is_checkout():
        found["NUMBA_CACHE_DIR"] = str(home() / "numba")
        found["PYTHONDONTWRITEBYTECODE"] = "1"  # a cache elsewhere would hold a copy of all of torch, made in seconds
    return found


def _is_checkout() -> bool:
    """Whether we run from a clone, which is the user's own: `make` and a terminal write into it as well."""
    return "." not in ADDON and not os.environ.get("ANIMATE3D_HOME")
