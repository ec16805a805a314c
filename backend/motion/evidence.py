"""How well a pose explains a frame, and what is done where the pictures speak against it."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from backend.motion.rotations import matrix_to_rotation_vector, nearest_rotation, rotation_vector_to_matrix

CLIP = 0.3  # differences of colour and alpha above this are all equally wrong

Pose = tuple[Tensor, Tensor]  # rotations [..., B, 3, 3], translations [..., B, 3]


def mismatch(drawn: np.ndarray, wanted: np.ndarray) -> float:
    """Mean clipped squared difference of pictures [K, S, S, 4] where either of them shows the object."""
    away, cover = _row_sums(drawn, wanted)
    return float(away.sum() / max(cover.sum(), 1.0))


@njit(cache=True, parallel=True)
def _row_sums(drawn, wanted):
    """Of each row of pixels of pictures [K, S, S, 4], the clipped squared differences and the larger alphas [K S]."""
    views, size, width, channels = drawn.shape
    away, cover = np.zeros(views * size), np.zeros(views * size)
    for row in prange(views * size):
        k, y = row // size, row % size
        for x in range(width):
            squared = 0.0
            for c in range(channels):
                squared += (drawn[k, y, x, c] - wanted[k, y, x, c]) ** 2
            away[row] += min(squared, CLIP * CLIP)
            cover[row] += max(drawn[k, y, x, 3], wanted[k, y, x, 3])
    return away, cover


def bridged(poses: Pose, good: np.ndarray) -> Pose:
    """Poses [F, ...] whose frames that are not good [F] lie between the nearest good ones; frame 0 is always good.

    After the last good frame they stay as there.
    """
    turns, shifts = poses[0].clone(), poses[1].clone()
    known = np.flatnonzero(good)
    for frame in np.flatnonzero(~good):
        before, after = known[known < frame][-1], known[known > frame]
        if not len(after):
            turns[frame], shifts[frame] = turns[before], shifts[before]
            continue
        share = float((frame - before) / (after[0] - before))
        turns[frame], shifts[frame] = between(
            (turns[before], shifts[before]), (turns[after[0]], shifts[after[0]]), share
        )
    return turns, shifts


def between(first: Pose, second: Pose, share: float) -> Pose:
    """The pose at a share of the way from one to another; beyond the second where it is above 1.

    Bones that stretch have matrices that are no rotations: what is not turn goes its share of the way, too.
    """
    change = second[0] @ torch.linalg.inv(first[0])
    turn = nearest_rotation(change)
    stretch = torch.lerp(torch.eye(3), turn.transpose(-1, -2) @ change, share)
    turn = rotation_vector_to_matrix(share * matrix_to_rotation_vector(turn))
    return turn @ stretch @ first[0], first[1] + share * (second[1] - first[1])


def rest_pose(bones: int) -> Pose:
    """No motion: [B, 3, 3], [B, 3]."""
    return torch.eye(3).expand(bones, 3, 3).clone(), torch.zeros(bones, 3)
