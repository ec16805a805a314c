"""Is there room for gigabytes?"""

from __future__ import annotations

import shutil
from pathlib import Path

from backend.mv_vdm.checkpoints import WeightsError

SPARE = 500_000_000  # bytes that stay free: a full disk harms more than this program


def check_space(needs: list[tuple[Path, int]]) -> None:
    """Raises `WeightsError` unless every disk has room for what goes onto it.

    Args:
        needs: folders (they need not exist yet) and the bytes that will be written below each.
    """
    totals: dict[int, tuple[Path, int]] = {}
    for folder, size in needs:
        place = existing(folder)
        first, before = totals.get(place.stat().st_dev, (place, 0))
        totals[place.stat().st_dev] = (first, before + size)
    for place, size in totals.values():
        free = shutil.disk_usage(place).free
        if size and free < size + SPARE:
            raise WeightsError(
                f"The disk of {place} has {free / 1e9:.1f} GB free, and {(size + SPARE) / 1e9:.1f} GB are needed.",
                "Free some space, or set ANIMATE3D_WEIGHTS and HF_HOME to folders on a larger disk.",
            )


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder
