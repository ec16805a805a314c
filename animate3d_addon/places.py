"""Where the add-on keeps its files: never in its own folder, which an update replaces."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import bpy

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
    """Models that were fetched."""
    return home() / "weights"
