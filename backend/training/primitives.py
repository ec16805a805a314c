"""Meshes of simple bodies, fine enough to bend: what procedural objects are put together from."""

from __future__ import annotations

import numpy as np

Mesh = tuple[np.ndarray, np.ndarray]  # vertices [V, 3] float64, faces [T, 3] int64

PROFILE_POINTS = 12  # rings along the axis of a surface of revolution
RING_POINTS = 14


KINDS = ("box", "sphere", "cylinder", "cone", "capsule", "lathe", "torus")


def primitive(rng: np.random.Generator, kinds: tuple[str, ...] = (*KINDS, "box")) -> Mesh:
    """One of these kinds, of about unit half size, its axis along z."""
    kind = rng.choice(kinds)
    if kind == "box":
        return box(int(rng.integers(3, 6)))
    if kind == "torus":
        return torus(minor=rng.uniform(0.2, 0.45))
    if kind == "capsule":
        vertices, faces = capsule()
        return vertices * [0.5, 0.5, 1.0], faces
    z = np.linspace(-1.0, 1.0, PROFILE_POINTS)
    if kind == "sphere":
        z = np.sin(z * np.pi / 2)
        radius = np.sqrt(np.maximum(1.0 - z**2, 0.0))
    elif kind == "cylinder":
        radius = np.ones_like(z)
    elif kind == "cone":
        radius = (1.0 - z) / 2 * rng.uniform(0.7, 1.0) + rng.uniform(0.0, 0.3)
    else:
        knots = rng.uniform(0.2, 1.0, int(rng.integers(3, 7)))
        radius = np.interp(z, np.linspace(-1, 1, len(knots)), knots)
    return lathe(z, radius)


def capsule() -> Mesh:
    """Of unit radius and half length, its axis along z, the ends round where it is made five times as long as wide."""
    z = np.linspace(-1.0, 1.0, PROFILE_POINTS)
    return lathe(z, np.sqrt(np.clip(1.0 - np.maximum(np.abs(z) - 0.6, 0.0) ** 2 / 0.16, 0.0, 1.0)))


def lathe(z: np.ndarray, radius: np.ndarray) -> Mesh:
    """A surface of revolution about z through rings (z [P], radius [P]), closed by a fan at both ends."""
    angle = np.arange(RING_POINTS) * 2 * np.pi / RING_POINTS
    rings = np.stack(
        [radius[:, None] * np.cos(angle), radius[:, None] * np.sin(angle), np.repeat(z[:, None], RING_POINTS, 1)], -1
    )
    vertices = np.concatenate([rings.reshape(-1, 3), [[0, 0, z[0]], [0, 0, z[-1]]]])
    faces = [_grid_faces(len(z), RING_POINTS, wrap_rows=False)]
    column = np.arange(RING_POINTS)
    following = (column + 1) % RING_POINTS
    bottom, top = len(vertices) - 2, len(vertices) - 1
    last = (len(z) - 1) * RING_POINTS
    faces.append(np.stack([following, column, np.full_like(column, bottom)], -1))
    faces.append(np.stack([last + column, last + following, np.full_like(column, top)], -1))
    return vertices, np.concatenate(faces)


def torus(minor: float) -> Mesh:
    u = np.arange(RING_POINTS + 4) * 2 * np.pi / (RING_POINTS + 4)
    v = np.arange(10) * 2 * np.pi / 10
    ring = 1.0 - minor + minor * np.cos(v)
    vertices = np.stack(
        [
            np.cos(u)[:, None] * ring,
            np.sin(u)[:, None] * ring,
            np.broadcast_to(minor * np.sin(v), (len(u), len(v))),
        ],
        -1,
    ).reshape(-1, 3)
    return vertices, _grid_faces(len(u), len(v), wrap_rows=True)


def box(cells: int) -> Mesh:
    """A cube of half size 1 whose faces are grids of `cells` squares a side."""
    line = np.linspace(-1.0, 1.0, cells + 1)
    u, v = (grid.ravel() for grid in np.meshgrid(line, line, indexing="ij"))
    index = np.arange((cells + 1) ** 2).reshape(cells + 1, cells + 1)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    square = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    sides = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            vertices = np.empty((len(u), 3))
            vertices[:, axis], vertices[:, (axis + 1) % 3], vertices[:, (axis + 2) % 3] = sign, u, v
            sides.append((vertices, square if sign > 0 else square[:, ::-1]))
    return join(sides)


def _grid_faces(rows: int, columns: int, wrap_rows: bool) -> np.ndarray:
    """Triangles [T, 3] of a grid of vertices whose columns (and, if asked, rows) close on themselves."""
    i, j = np.meshgrid(np.arange(rows if wrap_rows else rows - 1), np.arange(columns), indexing="ij")
    down, right = (i + 1) % rows, (j + 1) % columns
    a, b, c, d = i * columns + j, i * columns + right, down * columns + right, down * columns + j
    return np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])


def join(meshes: list[Mesh]) -> Mesh:
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in meshes[:-1])])
    return (
        np.concatenate([vertices for vertices, _ in meshes]),
        np.concatenate([faces + start for (_, faces), start in zip(meshes, starts, strict=True)]),
    )


def random_rotation(rng: np.random.Generator, tilt: float) -> np.ndarray:
    """A rotation matrix [3, 3]: a random axis, an angle up to `tilt` radians."""
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = rng.uniform(-tilt, tilt)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
