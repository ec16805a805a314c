"""Where a patch of one picture lies in another: search, then Lucas-Kanade; and how well each direction is told."""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

CLIP = 0.3  # colour differences above this are all equally wrong: occlusions, highlights
FAR = 1e9
EDGE = 1e-3  # squared gradient per pixel at which half of a direction's confidence is there
STRAY = 1.5  # pixels that the fine steps may leave the place that the search found
FINE_STEPS = 3


@njit(cache=True, fastmath=True)
def _cost(source, target, cx, cy, dx, dy, radius, best):
    """Mean clipped squared difference of patches about (cx, cy) and (cx + dx, cy + dy); stops above `best`."""
    size = source.shape[0]
    total, count = 0.0, 0
    limit = best * (2 * radius + 1) ** 2
    for y in range(max(cy - radius, 0), min(cy + radius, size - 1) + 1):
        ty = min(max(y + dy, 0), size - 1)
        for x in range(max(cx - radius, 0), min(cx + radius, size - 1) + 1):
            tx = min(max(x + dx, 0), size - 1)
            squared = 0.0
            for k in range(source.shape[2]):
                away = source[y, x, k] - target[ty, tx, k]
                squared += away * away
            total += min(squared, CLIP * CLIP)
            count += 1
        if total > limit:
            return FAR
    return total / max(count, 1)


@njit(cache=True, fastmath=True)
def _search(source, target, cx, cy, radius, reach, keep):
    """The whole displacement of least cost, and that cost; nearer ones first."""
    best, bx, by = FAR, 0, 0
    for ring in range(reach + 1):
        if keep * ring * ring > best:
            break
        for dy in range(-ring, ring + 1):
            step = 1 if abs(dy) == ring else 2 * ring
            for dx in range(-ring, ring + 1, max(step, 1)):
                pull = keep * (dx * dx + dy * dy)
                if pull > best:
                    continue
                here = _cost(source, target, cx, cy, dx, dy, radius, best - pull) + pull
                if here < best:
                    best, bx, by = here, dx, dy
    return bx, by, best - keep * (bx * bx + by * by)


@njit(cache=True, fastmath=True)
def _system(source, target, cx, cy, u, v, radius, out):
    """Sums over the patch moved by (u, v): gradients (xx, xy, yy), gradient times difference (x, y), error, count."""
    size = source.shape[0]
    out[:] = 0.0
    for y in range(max(cy - radius, 1), min(cy + radius, size - 2) + 1):
        for x in range(max(cx - radius, 1), min(cx + radius, size - 2) + 1):
            fx, fy = min(max(x + u, 1.0), size - 2.001), min(max(y + v, 1.0), size - 2.001)
            x0, y0 = int(fx), int(fy)
            a, b = fx - x0, fy - y0
            squared, gxx, gxy, gyy, ex, ey = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for k in range(source.shape[2]):
                there = (1 - b) * ((1 - a) * target[y0, x0, k] + a * target[y0, x0 + 1, k]) + b * (
                    (1 - a) * target[y0 + 1, x0, k] + a * target[y0 + 1, x0 + 1, k]
                )
                gx = 0.5 * (source[y, x + 1, k] - source[y, x - 1, k])
                gy = 0.5 * (source[y + 1, x, k] - source[y - 1, x, k])
                away = source[y, x, k] - there
                squared += away * away
                gxx += gx * gx
                gxy += gx * gy
                gyy += gy * gy
                ex += gx * away
                ey += gy * away
            w = 1.0 / (1.0 + squared / (CLIP * CLIP))
            out[0] += w * gxx
            out[1] += w * gxy
            out[2] += w * gyy
            out[3] += w * ex
            out[4] += w * ey
            out[5] += min(squared, CLIP * CLIP)
            out[6] += 1.0


@njit(cache=True, parallel=True)
def match_patches(source, target, view, place, radius, reach, keep, edge):
    """Where N patches of the pictures source [K, S, S, C] lie in target [K, S, S, C].

    Args:
        view: [N] int, which picture. place: [N, 2] (x, y) middle of the patch in pixels.
        radius: of the patch; reach: largest displacement, pixels; keep: cost per squared pixel of displacement.

    Returns:
        displacement [N, 2], cost [N] (mean squared difference), information [N, 2, 2]: square root of how well each
        direction is told, eigenvalues 0..1.
    """
    count = view.shape[0]
    displacement = np.zeros((count, 2))
    cost = np.zeros(count)
    information = np.zeros((count, 2, 2))
    for n in prange(count):
        a, b = source[view[n]], target[view[n]]
        cx, cy = int(math.floor(place[n, 0])), int(math.floor(place[n, 1]))
        bx, by = 0, 0
        if reach > 0:
            bx, by, _ = _search(a, b, cx, cy, radius, reach, keep)
        u, v = float(bx), float(by)
        sums = np.empty(7)
        for _ in range(FINE_STEPS):
            _system(a, b, cx, cy, u, v, radius, sums)
            pull = 0.05 * edge * max(sums[6], 1.0) + 0.01 * (sums[0] + sums[2])
            xx, xy, yy = sums[0] + pull, sums[1], sums[2] + pull
            det = xx * yy - xy * xy
            u += (yy * sums[3] - xy * sums[4]) / det
            v += (xx * sums[4] - xy * sums[3]) / det
            u, v = min(max(u, bx - STRAY), bx + STRAY), min(max(v, by - STRAY), by + STRAY)
        _system(a, b, cx, cy, u, v, radius, sums)
        seen = max(sums[6], 1.0)
        cost[n] = sums[5] / seen
        displacement[n, 0], displacement[n, 1] = u, v
        _root_information(sums[0] / seen, sums[1] / seen, sums[2] / seen, edge, information[n])
    return displacement, cost, information


@njit(cache=True)
def _root_information(xx, xy, yy, edge, out):
    """Square root [2, 2] of the matrix with the tensor's directions and eigenvalues l / (l + EDGE)."""
    middle, half = 0.5 * (xx + yy), math.sqrt(0.25 * (xx - yy) ** 2 + xy * xy)
    high, low = middle + half, max(middle - half, 0.0)
    angle = 0.5 * math.atan2(2 * xy, xx - yy)
    c, s = math.cos(angle), math.sin(angle)
    p, q = math.sqrt(high / (high + edge)), math.sqrt(low / (low + edge))
    out[0, 0] = p * c * c + q * s * s
    out[1, 1] = p * s * s + q * c * c
    out[0, 1] = out[1, 0] = (p - q) * c * s
