"""Where the frames of moving Gaussians go: a folder of standard .ply files and their motion. No bpy in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .shared import protocol


def frame_path(output: str, frame: int) -> Path:
    """A frame, counted from 0: frame_0001.ply in a folder, or NAME_0001.ply beside the output NAME.ply."""
    path = Path(output)
    if path.suffix.lower() == ".ply":
        return path.with_name(f"{path.stem}_{frame + 1:04d}.ply")
    return path / f"frame_{frame + 1:04d}.ply"


def motion_path(output: str) -> Path:
    """The offsets of the Gaussians that move, and which rows of the file those are."""
    path = Path(output)
    return path.with_name(f"{path.stem}_motion.npz") if path.suffix.lower() == ".ply" else path / "motion.npz"


def export(job: Path, output: str, frames: int, keep: bool) -> None:
    """Takes the frames out of the job, or with `keep` copies of them. Raises `UserError` where that can't be."""
    try:
        frame_path(output, 0).parent.mkdir(parents=True, exist_ok=True)
        for frame in range(frames):
            made, wanted = job / "frames" / f"frame_{frame + 1:04d}.ply", frame_path(output, frame)
            part = wanted.with_name(f".{wanted.stem}.part.ply")
            (shutil.copyfile if keep else shutil.move)(made, part)
            os.replace(part, wanted)
        rows = protocol.read_npz(job / "subject" / "rows.npz", ("rows",))["rows"]
        protocol.write_npz(motion_path(output), offsets=protocol.Motion.load(job).offsets, rows=rows)
    except OSError as error:
        raise protocol.UserError(f"{output} can't be written ({error.strerror}).", "Choose another place.") from error
