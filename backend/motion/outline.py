"""Where the outline of the drawn surface leaves the video's, and what would bring it there."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

NEAR = 2.5  # pixels between an outline and the surface point that stands for it


def outline_pulls(
    drawn: np.ndarray, wanted: np.ndarray, view: np.ndarray, where: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Alphas drawn, wanted [K, S, S]; surface points that are seen in view [N] at pixels where [N, 2].

    Each pixel that only one of both covers pulls the drawn surface: to it, or away from it, by the shortest way.

    Returns:
        the points that are pulled [P] (index into N), and by how many pixels [P, 2]; none from beyond `reach` pixels.
    """
    points, moves = [np.zeros(0, np.int64)], [np.zeros((0, 2))]
    for k in range(len(drawn)):
        here, there = drawn[k] > 0.5, wanted[k] > 0.5
        mine = np.flatnonzero(view == k)
        if not here.any() or not there.any() or not len(mine):
            continue
        tree = cKDTree(where[mine])
        for held, goal in (_pairs(there & ~here, here, reach), _pairs(here & ~there, there, reach)[::-1]):
            away, nearest = tree.query(held)
            close = away < NEAR
            points.append(mine[nearest[close]])
            moves.append((goal - held)[close])
    return np.concatenate(points), np.concatenate(moves)


def _pairs(missing: np.ndarray, covered: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each missing pixel, the nearest covered one [P, 2], and itself [P, 2]; as (x, y) of their middles."""
    away, (row, column) = distance_transform_edt(~covered, return_indices=True)
    y, x = np.nonzero(missing & (away > 1.0) & (away < reach))
    nearest = np.stack([column[y, x], row[y, x]], axis=1) + 0.5
    return nearest, np.stack([x, y], axis=1) + 0.5
