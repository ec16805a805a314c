"""Looks at a file before Blender does: importers crash on, or silently accept, what is damaged. No bpy in it."""

from __future__ import annotations

from pathlib import Path

from .shared import protocol


def check(path: Path, readable: tuple[str, ...]) -> None:
    """Raises `UserError` where the file can't be read."""
    if path.suffix.lower() not in readable:
        raise protocol.UserError(f"“{path.suffix}” files can't be read.", f"Use {', '.join(readable)}.")
    if not path.is_file():
        raise protocol.UserError(f"There is no file “{path}”.", "Check the path.")
    if path.stat().st_size == 0:
        raise protocol.UserError(f"“{path.name}” is empty.", "Export or download it again.")
