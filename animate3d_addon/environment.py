"""The backend's own Python environment, in the user's folder. No bpy in it."""

from __future__ import annotations

import os
from pathlib import Path

COMPLETE = "complete"  # a file that is written last of all


def python_of(folder: Path) -> Path | None:
    """The Python of a complete environment, None where there is none."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    return python if (folder / COMPLETE).is_file() and python.exists() else None
