"""Files that are whole or not there, and that are never trusted when they are read."""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from .errors import UserError

JOB_ENTRIES = (  # everything that either side writes into a job folder
    "subject", "video", "job.json", "stages.json", "report.json", "matte.npz", "splats.npz", "splats.ply",
    "reconstruction", "motion.npz", "rig.npz", "frames", "backend.log", "blender.log",
)  # fmt: skip


def write_json(path: Path, data: dict) -> None:
    """Writes whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_json(path: Path) -> dict:
    """Raises `UserError` where the file is missing or holds no JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"The job folder has no {path.name}.", "Start the job again.") from None
    except (ValueError, OSError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise UserError(f"The file {path.name} in the job folder can't be read.", "Start the job again.")
    return data


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Writes whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(part, path)


# What numpy and zipfile raise for files that were cut short, changed, or made to do harm.
_BAD_NPZ = (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, SyntaxError,
            MemoryError, NotImplementedError, RuntimeError, TypeError)  # fmt: skip


def read_npz(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Arrays by name; never unpickles. Raises `UserError` where the file is missing, damaged or lacks a name."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in names}
    except FileNotFoundError:
        raise UserError(f"The job folder has no {path.name}.", "Start the job again.") from None
    except _BAD_NPZ:
        raise UserError(f"The file {path.name} in the job folder can't be read.", "Start the job again.") from None
