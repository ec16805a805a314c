"""Sums of many small least-squares terms into their normal equations, on the CPU.

The systems of T frames: matrix [T, 6 B, 6 B] and right [T, 6 B] float64 of the turns and shifts of B bones. Of the
matrix only the lower triangle by block is added to. `shares`: as many threads work on one frame, each on the bones that
are its own; so the sums are the same for any number of them.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange


@njit(cache=True, parallel=True, fastmath=True)
def add_terms(first, bones, jacobian, residual, weight, matrix, right):
    """Adds N terms of K bones each; the terms are ordered by frame.

    first [T + 1]: where each frame's terms begin; bones [N, K]; jacobian [N, R, K, 6]; residual [N, R]; weight [N].
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


@njit(cache=True, fastmath=True)
def _turned_arm(turn, point, centre, arm):
    """Into arm [3]: the arm of a rest point [3] from a bone's centre [3], turned [3, 3]."""
    for i in range(3):
        arm[i] = 0.0
        for j in range(3):
            arm[i] += turn[i, j] * (point[j] - centre[j])


@njit(cache=True, fastmath=True)
def _observed(rest, bones, weights, camera, target, known, centres, turns, shifts, error, rows):
    """One observation's error into error [2] and its derivatives by the K bones' turns and shifts into rows [2, K, 6].

    known [2, 2] or [0, 0]: what error and derivatives are multiplied by.
    """
    arm, place = np.zeros(3), np.zeros(3)
    for r in range(2):
        error[r] = camera[r, 3] + target[r] * camera[2, 3]
    for a in range(len(bones)):
        bone, w = bones[a], weights[a]
        _turned_arm(turns[bone], rest, centres[bone], arm)
        for i in range(3):
            place[i] = w * (arm[i] + centres[bone, i] + shifts[bone, i])
        for r in range(2):
            for i in range(3):
                along = camera[r, i] + target[r] * camera[2, i]
                rows[r, a, 3 + i] = w * along
                error[r] += along * place[i]
            for i in range(3):
                j, k = (i + 1) % 3, (i + 2) % 3
                rows[r, a, i] = arm[j] * rows[r, a, 3 + k] - arm[k] * rows[r, a, 3 + j]
    if len(known):
        error[0], error[1] = (
            known[0, 0] * error[0] + known[0, 1] * error[1],
            known[1, 0] * error[0] + known[1, 1] * error[1],
        )
        for a in range(len(bones)):
            for p in range(6):
                x, y = rows[0, a, p], rows[1, a, p]
                rows[0, a, p] = known[0, 0] * x + known[0, 1] * y
                rows[1, a, p] = known[1, 0] * x + known[1, 1] * y


@njit(cache=True, parallel=True, fastmath=True)
def add_observations(
    first, rest, bones, weights, camera, target, confidence, information, centres, turns, shifts, robust, shares,
    matrix, right,
):  # fmt: skip
    """Adds N observations, ordered by frame: fields as of `Observations`, information [N, 2, 2] or [0, 2, 2].

    first [T + 1]: where each frame's begin; centres [B, 3]; turns [T, B, 3, 3]; shifts [T, B, 3]; robust: width of
    the Geman-McClure error.
    """
    count = bones.shape[1]
    for job in prange((len(first) - 1) * shares):
        t, share = job // shares, job % shares
        error, rows, nothing = np.zeros(2), np.zeros((2, count, 6)), np.zeros((0, 0), information.dtype)
        for n in range(first[t], first[t + 1]):
            mine = False
            for a in range(count):
                mine |= bones[n, a] % shares == share
            if not mine or confidence[n] == 0.0:
                continue
            known = information[n] if len(information) else nothing
            _observed(
                rest[n], bones[n], weights[n], camera[n], target[n], known, centres, turns[t], shifts[t], error, rows
            )
            w = confidence[n] * (robust**2 / (robust**2 + error[0] ** 2 + error[1] ** 2)) ** 2
            for a in range(count):
                if bones[n, a] % shares != share:
                    continue
                i = 6 * bones[n, a]
                for p in range(6):
                    one, two = w * rows[0, a, p], w * rows[1, a, p]
                    right[t, i + p] -= one * error[0] + two * error[1]
                    for b in range(count):
                        j = 6 * bones[n, b]
                        if j <= i:
                            for q in range(6):
                                matrix[t, i + p, j + q] += one * rows[0, b, q] + two * rows[1, b, q]


@njit(cache=True, parallel=True, fastmath=True)
def add_links(links, joints, strength, gaps, centres, turns, shifts, matrix, right):
    """Adds E links: pairs of bones [E, 2] that agree, up to gaps [T, E, 3], on where their joints [E, 3] are.

    strength [E]; centres, turns and shifts as in `add_observations`.
    """
    for t in prange(len(turns)):
        arms, error = np.zeros((2, 3)), np.zeros(3)
        rows = np.zeros((2, 3, 6))
        for n in range(len(links)):
            for i in range(3):
                error[i] = -gaps[t, n, i]
            for side in range(2):
                bone, sign = links[n, side], 1.0 - 2.0 * side
                arm, out = arms[side], rows[side]
                _turned_arm(turns[t, bone], joints[n], centres[bone], arm)
                for i in range(3):
                    error[i] += sign * (arm[i] + centres[bone, i] + shifts[t, bone, i])
                    j, k = (i + 1) % 3, (i + 2) % 3
                    out[i, j], out[i, k], out[i, 3 + i] = sign * arm[k], -sign * arm[j], sign
            for a in range(2):
                i = 6 * links[n, a]
                for p in range(6):
                    for r in range(3):
                        right[t, i + p] -= strength[n] * rows[a, r, p] * error[r]
                    for b in range(2):
                        j = 6 * links[n, b]
                        if j <= i:
                            for q in range(6):
                                for r in range(3):
                                    matrix[t, i + p, j + q] += strength[n] * rows[a, r, p] * rows[b, r, q]


def frame_ranges(frame: np.ndarray, frames: int) -> tuple[np.ndarray | None, np.ndarray]:
    """The order that sorts terms by frame (None where they are sorted) and where each frame begins [frames + 1]."""
    order = None
    if len(frame) and (np.diff(frame) < 0).any():
        order = np.argsort(frame, kind="stable")
        frame = frame[order]
    return order, np.searchsorted(frame, np.arange(frames + 1))
