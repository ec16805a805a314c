"""Which pieces of a mesh move as one part, and how such a part could turn or slide beside the rest.

A chest is 45 separate pieces but two parts: what lies on another piece with much of its surface belongs to it. Where
two parts touch says about which axes one could turn (edges and middle of the zone) and along which it could slide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull, QhullError, cKDTree

from backend.motion.bones import TOUCHING

LIES_ON = 0.5  # share of a piece's surface near another from which both are one part
MIN_AREA = 0.03  # of the whole surface: what is smaller belongs to what it touches most, however little

TOUCHED = 2  # other parts to which one holds on
JOINTS = 4  # points at which a part holds on to the one it touches


@dataclass(frozen=True)
class Zone:
    """Where a part touches the one it touches most, at rest, in subject space."""

    part: int
    other: int
    joints: np.ndarray  # [4, 3]: points all over the zone
    axes: np.ndarray  # [7, 2, 3]: a point and a direction of each axis about which it could turn
    slides: np.ndarray  # [3, 3]: directions in which it could slide


def group_pieces(samples: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Samples [M, 3] all over the surface and the piece of each [M] int -> the part of each piece, 0..P-1.

    The largest part is 0. Pieces join by the share of the smaller one that lies on the larger one, most first.
    """
    count = int(piece.max()) + 1
    area = np.bincount(piece, minlength=count)
    near = np.zeros((len(samples), count), bool)
    for k in np.flatnonzero(area):
        near[:, k] = cKDTree(samples[piece == k]).query(samples, distance_upper_bound=TOUCHING)[0] < TOUCHING
    leader = np.arange(count)
    while True:
        names = np.flatnonzero(area)
        contact = np.stack([np.bincount(leader[piece[near[:, k]]], minlength=count)[names] for k in names], axis=1)
        lies = contact / area[names][:, None]
        # The smaller lies on the larger; of equals, the later on the earlier.
        larger = (area[names], -names)
        order = np.empty(len(names), np.int64)
        order[np.lexsort(larger[::-1])] = np.arange(len(names))
        lies[order[:, None] >= order] = 0.0
        lies[(lies < LIES_ON) & (area[names] > MIN_AREA * len(samples))[:, None]] = 0.0
        if not lies.any():
            break
        one, other = (names[k] for k in np.unravel_index(lies.argmax(), lies.shape))
        leader[leader == one] = other
        near[:, other] |= near[:, one]
        area[other], area[one] = area[other] + area[one], 0
    ranked = names[np.argsort(-area[names], kind="stable")]
    part = np.zeros(count, np.int64)
    part[ranked] = np.arange(len(ranked))
    return part[leader]


def contact_zones(samples: np.ndarray, part: np.ndarray) -> list[list[Zone]]:
    """Samples [M, 3] and the part of each [M] -> where each part touches others, the most touched first.

    The nearest one counts as touched, however far it is; beside it, at most one more.
    """
    count = int(part.max()) + 1
    trees = [cKDTree(samples[part == k]) for k in range(count)]
    zones = []
    for k in range(count if count > 1 else 0):
        mine, away = samples[part == k], trees[k].query(samples)[0]
        away[part == k] = np.inf
        close = away < max(away.min() + TOUCHING, TOUCHING)
        found = []
        for other in np.argsort(-np.bincount(part[close], minlength=count), kind="stable")[:TOUCHED]:
            if (there := close & (part == other)).any():
                across = trees[other].query(mine)[0]
                here = mine[across < max(across.min() + TOUCHING, TOUCHING)]
                points = np.concatenate([here, samples[there]])
                found.append(Zone(k, int(other), _spread(points), *zone_axes(points)))
        zones.append(found)
    return zones


def _spread(points: np.ndarray) -> np.ndarray:
    """The points [JOINTS, 3] of [N, 3] that are farthest from one another, one after the other; some twice if few."""
    chosen = [int(np.linalg.norm(points - points.mean(axis=0), axis=1).argmax())]
    while len(chosen) < JOINTS:
        chosen.append(int(cKDTree(points[chosen]).query(points)[0].argmax()))
    return points[chosen]


def zone_axes(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normal, middle lines and edges of the smallest rectangle about points [N, 3]: axes [7, 2, 3], slides [3, 3]."""
    middle = points.mean(axis=0)
    plane = np.linalg.svd(points - middle, full_matrices=len(points) < 3)[2]
    u, low, high = _smallest_rectangle((points - middle) @ plane[:2].T)
    first, second = np.stack([u, [-u[1], u[0]]]) @ plane[:2]
    centre = middle + 0.5 * (low + high) @ np.stack([first, second])
    half = 0.5 * (high - low)
    axes = [(centre, plane[2]), (centre, first), (centre, second)]
    axes += [(centre + side * half[1] * second, first) for side in (-1, 1)]
    axes += [(centre + side * half[0] * first, second) for side in (-1, 1)]
    return np.array(axes), np.stack([first, second, plane[2]])


def _smallest_rectangle(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """About points [N, 2]: the direction [2] of its first side, and its lower and upper corner [2] along both."""
    try:
        hull = points[ConvexHull(points).vertices]
        sides = np.roll(hull, -1, axis=0) - hull
        sides = sides / np.maximum(np.linalg.norm(sides, axis=1, keepdims=True), 1e-12)
    except (QhullError, ValueError):  # on a line, or next to nothing
        hull, sides = points, np.array([[1.0, 0.0]])
    along = np.stack([sides, np.stack([-sides[:, 1], sides[:, 0]], axis=1)], axis=1) @ hull.T  # [sides, 2, hull]
    low, high = along.min(axis=2), along.max(axis=2)
    best = np.prod(high - low, axis=1).argmin()
    return sides[best], low[best], high[best]
