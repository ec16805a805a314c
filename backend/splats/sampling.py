"""Blue-noise-like points on a triangle mesh (numpy and numba): area-weighted candidates, thinned by dart throwing."""

import numpy as np
from numba import njit

CANDIDATES = 6
"""Candidates per wanted point. More give a more even spacing."""


def sample_surface(
    corners: np.ndarray,  # [F, 3, 3] float64, the triangles' corners
    count: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """`count` points spread evenly over the area: face [count] int64 and barycentric [count, 3] float64.

    Points on opposite sides of a thin wall (normals facing away from each other) do not push each other aside. Faces
    without area, or with corners that are not finite, get no point. The caller makes sure that some face has area.
    """
    rng = np.random.default_rng(seed)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    double_area = np.nan_to_num(np.linalg.norm(normals, axis=1), nan=0.0, posinf=0.0)
    reach = np.cumsum(double_area)
    total = CANDIDATES * count
    # One candidate in each of `total` equal stretches of the area, then in random order.
    at = (np.arange(total) + rng.random(total)) / total * reach[-1]
    face = np.minimum(np.searchsorted(reach, at, side="right"), np.flatnonzero(double_area)[-1])
    face = face[rng.permutation(total)]
    root, second = np.sqrt(rng.random(total)), rng.random(total)
    barycentric = np.stack([1 - root, root * (1 - second), root * second], 1)
    points = np.einsum("nk,nkd->nd", barycentric, corners[face])
    facing = normals[face] / double_area[face, None]
    densest = np.sqrt(reach[-1] / np.sqrt(3) / count)  # spacing of a hexagonal packing of `count` points
    chosen = _throw_darts(points, facing, count, densest)
    return face[chosen], barycentric[chosen]


def spacing(points: np.ndarray, facing: np.ndarray, typical: float) -> np.ndarray:
    """Mean distance of each point [N, 3] to its three nearest neighbours on the same side, at most 2 * typical. [N]"""
    return _neighbour_distance(points, facing, 2 * typical)


@njit(cache=True)
def _cell(point, inverse_size, mask):
    """Hash of the grid cell at `point` (in cells)."""
    x, y, z = np.floor(point[0] * inverse_size), np.floor(point[1] * inverse_size), np.floor(point[2] * inverse_size)
    return (int(x) * 73856093 ^ int(y) * 19349663 ^ int(z) * 83492791) & mask


@njit(cache=True)
def _table_mask(count):
    size = 1024
    while size < 2 * count:
        size *= 2
    return size - 1


@njit(cache=True)
def _is_free(i, points, facing, radius, inverse_size, mask, head, following):
    """No chosen point on the same side within `radius` (at most one cell size) of point i."""
    near = np.empty(3)
    for corner in range(27):
        for d in range(3):
            near[d] = points[i, d] + (corner // 3**d % 3 - 1) / inverse_size
        j = head[_cell(near, inverse_size, mask)]
        while j >= 0:
            gap, same = 0.0, 0.0
            for d in range(3):
                gap += (points[i, d] - points[j, d]) ** 2
                same += facing[i, d] * facing[j, d]
            if gap < radius * radius and same > 0:
                return False
            j = following[j]
    return True


@njit(cache=True)
def _throw_darts(points, facing, count, densest):
    """Indices of `count` points: first all that keep the widest distance, then with less and less."""
    mask = _table_mask(count)
    head, following = np.full(mask + 1, -1), np.full(len(points), -1)
    taken, chosen = np.zeros(len(points), np.bool_), np.empty(count, np.int64)
    found, radius = 0, 0.9 * densest
    while found < count:
        if radius < 0.2 * densest:
            radius = 0.0
        for i in range(len(points)):
            if found == count:
                break
            if taken[i] or not _is_free(i, points, facing, radius, 1 / densest, mask, head, following):
                continue
            cell = _cell(points[i], 1 / densest, mask)
            following[i], head[cell] = head[cell], i
            taken[i], chosen[found] = True, i
            found += 1
        radius *= 0.85
    return chosen


@njit(cache=True)
def _neighbour_distance(points, facing, limit):
    mask = _table_mask(len(points))
    head, following = np.full(mask + 1, -1), np.full(len(points), -1)
    for i in range(len(points)):
        cell = _cell(points[i], 1 / limit, mask)
        following[i], head[cell] = head[cell], i
    result, near = np.empty(len(points)), np.empty(3)
    for i in range(len(points)):
        a, b, c = limit, limit, limit
        for corner in range(27):
            for d in range(3):
                near[d] = points[i, d] + (corner // 3**d % 3 - 1) * limit
            j = head[_cell(near, 1 / limit, mask)]
            while j >= 0:
                gap, same = 0.0, 0.0
                for d in range(3):
                    gap += (points[i, d] - points[j, d]) ** 2
                    same += facing[i, d] * facing[j, d]
                gap = np.sqrt(gap)
                if j != i and same > 0 and gap < c:
                    a, b, c = min(a, gap), max(a, min(b, gap)), max(b, gap)
                j = following[j]
        result[i] = (a + b + c) / 3
    return result
