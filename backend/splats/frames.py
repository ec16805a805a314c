"""The frames of a moving file of Gaussians: standard .ply files with all that the source has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backend.protocol import Motion, Rig, UserError

from . import harmonics
from .ply import POSITION, ROTATION, SplatFile, header
from .reference import quaternions_to_matrices

CHUNK = 1 << 16  # rows written at once


def frame_path(job: Path, frame: int) -> Path:
    """Where a frame of the motion, counted from 0, lies; files count from 1 as Blender's frames do."""
    return Path(job) / "frames" / f"frame_{frame + 1:04d}.ply"


def write_frames(
    job: Path, source: SplatFile, rows: np.ndarray, motion: Motion, rig: Rig, step: Callable[[int, int], None]
) -> None:
    """One file per frame: positions from the motion, rotations and colours turned with the rig's bones.

    Rows of the source that are not in `rows` [V] stay as they are. Raises `UserError` where the disk is full.
    """
    frames = len(motion.offsets)
    turns = Turns(rig)
    try:
        frame_path(job, 0).parent.mkdir(parents=True, exist_ok=True)
        for frame in range(frames):
            path = frame_path(job, frame)
            part = path.with_suffix(".part")
            _write_frame(part, source, rows, motion.offsets[frame], lambda s, f=frame: turns.at(f, s))
            part.replace(path)
            step(frame + 1, frames)
    except OSError as error:
        raise UserError(f"The frames can't be written ({error.strerror}).", "Make room on the disk.") from None


class Turns:
    """How the Gaussians turn: the bones' rotations, mixed by the skin weights."""

    def __init__(self, rig: Rig) -> None:
        self.quats, self.bones, self.weights = torch.from_numpy(rig.quats), rig.bones, rig.weights

    def at(self, frame: int, chosen: slice) -> Tensor:
        """Unit quaternions [n, 4] of the chosen vertices in a frame: the normalised mean, right for near rotations."""
        weights, bones = torch.from_numpy(self.weights[chosen]).double(), self.bones[chosen]
        quats = self.quats[frame][torch.from_numpy(bones).long()]  # [n, K, 4]
        main = quats.gather(1, weights.argmax(dim=1)[:, None, None].expand(-1, 1, 4))
        sign = torch.where((quats * main).sum(-1) < 0, -1.0, 1.0)
        return torch.nn.functional.normalize((quats * (weights * sign)[..., None]).sum(1), dim=-1)


def _write_frame(
    path: Path, source: SplatFile, rows: np.ndarray, offsets: np.ndarray, turn: Callable[[slice], Tensor]
) -> None:
    layout = np.dtype([(name, "<" + source.table.dtype[name].str[1:]) for name in source.table.dtype.names])
    with path.open("wb") as file:
        file.write(header(layout, len(source)))
        for first in range(0, len(source), CHUNK):
            table = source.table[first : first + CHUNK].astype(layout)
            low, high = np.searchsorted(rows, [first, first + CHUNK])
            if high > low:
                moving = table[rows[low:high] - first]
                _move(moving, offsets[low:high], turn(slice(low, high)), source.rest_names)
                table[rows[low:high] - first] = moving
            file.write(table.tobytes())


def _move(table: np.ndarray, offsets: np.ndarray, turns: Tensor, rest_names: tuple[str, ...]) -> None:
    """Moves rows [n] of a file in place by offsets [n, 3] and quaternions [n, 4]."""
    for axis, name in enumerate(POSITION):
        table[name] += offsets[:, axis]
    still = (turns[:, 0].abs() > 1 - 1e-12).numpy()
    own = torch.from_numpy(np.stack([table[name] for name in ROTATION], axis=1).astype(np.float64))
    turned = _times(turns, own).numpy()
    for k, name in enumerate(ROTATION):
        table[name] = np.where(still, table[name], turned[:, k])
    matrices = quaternions_to_matrices(turns)
    if {"nx", "ny", "nz"} <= set(table.dtype.names):
        normals = torch.from_numpy(np.stack([table[name] for name in ("nx", "ny", "nz")], axis=1).astype(np.float64))
        for k, values in enumerate((matrices @ normals[..., None])[..., 0].T.numpy()):
            table[("nx", "ny", "nz")[k]] = values
    if rest_names and not still.all():
        rest = torch.from_numpy(np.stack([table[name] for name in rest_names], axis=1).astype(np.float64))
        rest = harmonics.rotate(rest.unflatten(1, (3, -1)), matrices).flatten(1).numpy()
        for k, name in enumerate(rest_names):
            table[name] = np.where(still, table[name], rest[:, k])


def _times(a: Tensor, b: Tensor) -> Tensor:
    """Products of quaternions [n, 4] wxyz: b's rotation, then a's."""
    w, x, y, z = a.unbind(-1)
    rows = torch.stack([w, -x, -y, -z, x, w, -z, y, y, z, w, -x, z, -y, x, w], -1).unflatten(-1, (4, 4))
    return (rows @ b[..., None])[..., 0]
