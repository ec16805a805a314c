"""Points that hang on a few bones each, on the CPU: what is drawn there moves so."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from torch import Tensor

from backend.motion.observations import BONES_PER_POINT


def posed(points: np.ndarray, skin: tuple[np.ndarray, np.ndarray], affine: np.ndarray) -> np.ndarray:
    """Points [N, 3] hung on bones by (weights [N, K], bones [N, K]), posed by matrices [T, B, 3, 4] -> [T, N, 3]."""
    return _blended(points, *skin, affine)


@njit(cache=True, parallel=True)
def _blended(points, weights, bones, affine):
    frames, count = len(affine), len(points)
    result = np.zeros((frames, count, 3))
    for job in prange(frames * 8):  # an eighth of the points of a frame each
        t = job // 8
        for n in range(job % 8, count, 8):
            for k in range(weights.shape[1]):
                one = affine[t, bones[n, k]]
                for i in range(3):
                    there = one[i, 0] * points[n, 0] + one[i, 1] * points[n, 1] + one[i, 2] * points[n, 2] + one[i, 3]
                    result[t, n, i] += weights[n, k] * there
    return result


def heaviest(skin: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Weights [N, K] and bones [N, K] of skin [N, B]."""
    weights, bones = skin.topk(min(BONES_PER_POINT, skin.shape[1]), dim=1)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return weights.numpy().astype(np.float64), bones.numpy()
