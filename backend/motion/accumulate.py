"""Sums of many small least-squares terms into their normal equations, on the CPU."""

from __future__ import annotations

import numpy as np
from numba import njit, prange


@njit(cache=True, parallel=True, fastmath=True)
def add_terms(first, bones, jacobian, residual, weight, matrix, right):
    """Adds N terms of K bones each to the systems of T frames; the terms are ordered by frame.

    first [T + 1]: where each frame's terms begin; bones [N, K]; jacobian [N, R, K, 6]; residual [N, R]; weight [N];
    matrix [T, 6 B, 6 B] and right [T, 6 B] float64 are added to, only the lower triangle by block of the matrix.
    """
    rows, count = jacobian.shape[1], jacobian.shape[2]
    for t in prange(len(first) - 1):
        for n in range(first[t], first[t + 1]):
            w = weight[n]
            if w == 0.0:
                continue
            for a in range(count):
                i = 6 * bones[n, a]
                for p in range(6):
                    total = 0.0
                    for r in range(rows):
                        total += jacobian[n, r, a, p] * residual[n, r]
                    right[t, i + p] -= w * total
                for b in range(count):
                    j = 6 * bones[n, b]
                    if j > i:
                        continue
                    for p in range(6):
                        for q in range(6):
                            total = 0.0
                            for r in range(rows):
                                total += jacobian[n, r, a, p] * jacobian[n, r, b, q]
                            matrix[t, i + p, j + q] += w * total


def frame_ranges(frame: np.ndarray, frames: int) -> tuple[np.ndarray | None, np.ndarray]:
    """The order that sorts terms by frame (None where they are sorted) and where each frame begins [frames + 1]."""
    order = None
    if len(frame) and (np.diff(frame) < 0).any():
        order = np.argsort(frame, kind="stable")
        frame = frame[order]
    return order, np.searchsorted(frame, np.arange(frames + 1))
