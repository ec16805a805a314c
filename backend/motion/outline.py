"""Where the outline of the drawn surface leaves the video's, and what would bring it there."""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

NEAR = 2.5  # pixels between an outline and the surface point that stands for it
SOLID = 0.5  # alpha from which a pixel is covered


def outline_pulls(
    drawn: np.ndarray, wanted: np.ndarray, view: np.ndarray, where: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Alphas drawn, wanted [K, S, S]; surface points that are seen in view [N] at pixels where [N, 2].

    Each pixel that only one of both covers pulls the drawn surface: to it, or away from it, by the shortest way.

    Returns:
        the points that are pulled [P] (index into N), and by how many pixels [P, 2]; none from beyond `reach` pixels.
    """
    point, move = _pulls(drawn > SOLID, wanted > SOLID, view, where, reach)
    pulled = point >= 0
    return point[pulled], move[pulled]


@njit(cache=True, parallel=True)
def _pulls(here, there, view, where, reach):
    """here, there [K, S, S] bool -> of each pixel, the point that it pulls [K, S, S] (-1) and its move [..., 2]."""
    views, size = here.shape[:2]
    point, move = np.full((views, size, size), -1, np.int64), np.zeros((views, size, size, 2))
    first, after = _in_cells(view, where, views, size)
    for k in prange(views):
        if not here[k].any() or not there[k].any():
            continue
        for y in range(size):
            for x in range(size):
                if here[k, y, x] == there[k, y, x]:
                    continue
                covered = here[k] if there[k, y, x] else there[k]
                dx, dy = _to_covered(covered, x, y, reach)
                if dx == 0.0 and dy == 0.0:
                    continue
                # The drawn surface's own outline is what is pulled: to the pixel, or from it to the frame's.
                held_x, held_y, sign = (x + dx, y + dy, -1.0) if there[k, y, x] else (float(x), float(y), 1.0)
                point[k, y, x] = _nearest_point(first[k], after, where, held_x + 0.5, held_y + 0.5)
                move[k, y, x, 0], move[k, y, x, 1] = sign * dx, sign * dy
    return point, move


@njit(cache=True)
def _in_cells(view, where, views, size):
    """The points by pixel: the first of each [K, S, S] (-1: none) and, of each point, the next in its pixel [N]."""
    first, after = np.full((views, size, size), -1, np.int64), np.full(len(view), -1, np.int64)
    for n in range(len(view)):
        x, y = int(where[n, 0]), int(where[n, 1])
        if 0 <= x < size and 0 <= y < size:
            after[n] = first[view[n], y, x]
            first[view[n], y, x] = n
    return first, after


@njit(cache=True)
def _to_covered(covered, x, y, reach):
    """The way (x, y) to the nearest covered pixel of [S, S], if it is more than one and less than `reach` pixels away.

    The mean where several are as near; (0, 0) where there is none, or they lie on opposite sides. Ring by ring: a
    ring's corners are farther than the next ring's middles.
    """
    size = len(covered)
    best, sum_x, sum_y, count = reach * reach, 0, 0, 0
    for ring in range(1, int(math.ceil(reach))):
        if ring * ring > best:
            break
        for dy in range(-ring, ring + 1):
            step = 1 if abs(dy) == ring else 2 * ring
            for dx in range(-ring, ring + 1, step):
                row, column, away = y + dy, x + dx, dy * dy + dx * dx
                if away > best or not (0 <= row < size and 0 <= column < size) or not covered[row, column]:
                    continue
                if away < best:
                    best, sum_x, sum_y, count = away, 0, 0, 0
                sum_x, sum_y, count = sum_x + dx, sum_y + dy, count + 1
    if count == 0 or best <= 1.0:
        return 0.0, 0.0
    return sum_x / count, sum_y / count


@njit(cache=True)
def _nearest_point(first, after, where, x, y):
    """The point nearest to (x, y) within NEAR pixels, of those in the cells first [S, S] (see `_in_cells`); or -1."""
    size, around = len(first), int(math.ceil(NEAR))
    best, found = NEAR * NEAR, -1
    for row in range(max(int(y) - around, 0), min(int(y) + around + 1, size)):
        for column in range(max(int(x) - around, 0), min(int(x) + around + 1, size)):
            n = first[row, column]
            while n >= 0:
                away = (where[n, 0] - x) ** 2 + (where[n, 1] - y) ** 2
                if away < best:
                    best, found = away, n
                n = after[n]
    return found
