"""Position-coded pictures of moving meshes: a z-buffer with supersampling, fast enough never to be the bottleneck."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from backend.protocol import CAMERA_FOVY

SAMPLES = 3  # per pixel and axis: the silhouette's alpha has ten levels


@njit(cache=True, nogil=True)
def _draw(screen, depth, faces, colors, zbuffer, image):
    """Triangles into `image` [S, S, 4] through `zbuffer` [S, S]; screen [V, 2] in samples, depth [V] positive."""
    size = zbuffer.shape[0]
    for face in range(faces.shape[0]):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ax, ay, bx, by, cx, cy = (
            screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1], screen[c, 0], screen[c, 1],
        )  # fmt: skip
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-9:
            continue
        x0 = max(int(math.ceil(min(ax, bx, cx) - 0.5)), 0)
        x1 = min(int(math.floor(max(ax, bx, cx) - 0.5)), size - 1)
        y0 = max(int(math.ceil(min(ay, by, cy) - 0.5)), 0)
        y1 = min(int(math.floor(max(ay, by, cy) - 0.5)), size - 1)
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                px, py = x + 0.5, y + 0.5
                wb = ((px - ax) * (cy - ay) - (py - ay) * (cx - ax)) / area
                wc = ((bx - ax) * (py - ay) - (by - ay) * (px - ax)) / area
                wa = 1.0 - wb - wc
                if wa < 0.0 or wb < 0.0 or wc < 0.0:
                    continue
                z = wa * depth[a] + wb * depth[b] + wc * depth[c]
                if z < zbuffer[y, x]:
                    zbuffer[y, x] = z
                    for k in range(3):
                        image[y, x, k] = wa * colors[a, k] + wb * colors[b, k] + wc * colors[c, k]
                    image[y, x, 3] = 1.0


@njit(cache=True, nogil=True)
def _resolve(fine, image):
    """Means of square blocks: `fine` [k S, k S, 4] into `image` [S, S, 4]."""
    size, samples = image.shape[0], fine.shape[0] // image.shape[0]
    share = np.float32(1.0 / samples**2)
    for y in range(size):
        for x in range(size):
            for k in range(4):
                total = np.float32(0.0)
                for dy in range(samples):
                    for dx in range(samples):
                        total += fine[y * samples + dy, x * samples + dx, k]
                image[y, x, k] = total * share


def render(vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray, c2w: np.ndarray, size: int) -> np.ndarray:
    """One picture [size, size, 4] float32, premultiplied, of a mesh seen by one camera.

    vertices [V, 3] in subject space, faces [T, 3], colors [V, 3] in 0..1, c2w [4, 4] OpenGL, fovy `CAMERA_FOVY`.
    """
    fine = size * SAMPLES
    local = (vertices - c2w[:3, 3]) @ c2w[:3, :3]
    depth = -local[:, 2]
    focal = 0.5 * fine / math.tan(math.radians(CAMERA_FOVY) / 2)
    screen = np.stack([0.5 * fine + focal * local[:, 0] / depth, 0.5 * fine - focal * local[:, 1] / depth], -1)
    image, small = np.zeros((fine, fine, 4), np.float32), np.empty((size, size, 4), np.float32)
    _draw(screen, depth, faces, colors, np.full((fine, fine), np.inf, np.float32), image)
    _resolve(image, small)
    return small
