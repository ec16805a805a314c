"""Where a patch of one picture lies in another: search, then Lucas-Kanade; and how well each direction is told."""

from __future__ import annotations

import math

import numpy as np
from numba import get_num_threads, njit, prange

CLIP = 0.3  # colour differences above this are all equally wrong: occlusions, highlights
FAR = 1e9
STRAY = 1.5  # pixels that the fine steps may leave the place that the search found
FINE_STEPS = 3
DAMPING = 5e-5  # squared gradient per pixel that keeps the fine steps short where there is nothing to see


@njit(cache=True, fastmath=True)
def _differences(source, target, x0, y0, dx, dy, out):
    """Into out [H, W]: clipped squared differences of source's pixels from (x0, y0) on and target's (dx, dy) away."""
    size = source.shape[0]
    most = np.float32(CLIP * CLIP)
    for y in range(out.shape[0]):
        ty = min(max(y + y0 + dy, 0), size - 1)
        for x in range(out.shape[1]):
            tx = min(max(x + x0 + dx, 0), size - 1)
            squared = np.float32(0.0)
            for k in range(source.shape[2]):
                away = source[y + y0, x + x0, k] - target[ty, tx, k]
                squared += away * away
            out[y, x] = min(squared, most)


@njit(cache=True, fastmath=True)
def _add_up(values, sums):
    """Sums [H + 1, W + 1] over all of values [H, W] above and left of each place."""
    for y in range(values.shape[0]):
        row = 0.0
        for x in range(values.shape[1]):
            row += values[y, x]
            sums[y + 1, x + 1] = row
        for x in range(values.shape[1]):
            sums[y + 1, x + 1] += sums[y, x + 1]


@njit(cache=True)
def _displacements(reach):
    """All whole ones within `reach` pixels, nearer ones first: [(2 reach + 1)^2, 2]."""
    found = np.empty(((2 * reach + 1) ** 2, 2), np.int64)
    n = 0
    for ring in range(reach + 1):
        for dy in range(-ring, ring + 1):
            step = 1 if abs(dy) == ring else 2 * ring
            for dx in range(-ring, ring + 1, max(step, 1)):
                found[n] = dx, dy
                n += 1
    return found


@njit(cache=True, fastmath=True)
def _search(source, target, cx, cy, radius, keep, moves, first, step, best, chosen):
    """Of each `step`-th of the moves [D, 2], which costs least for patches about (cx, cy) [N]: costs, numbers [N].

    Each displacement is tried for the whole picture at once: most patches overlap.
    """
    size, count = source.shape[0], len(cx)
    x0, y0 = max(cx.min() - radius, 0), max(cy.min() - radius, 0)
    wide, high = min(cx.max() + radius + 1, size) - x0, min(cy.max() + radius + 1, size) - y0
    away, sums = np.empty((high, wide), np.float32), np.zeros((high + 1, wide + 1))
    for number in range(first, len(moves), step):
        dx, dy = moves[number]
        _differences(source, target, x0, y0, dx, dy, away)
        _add_up(away, sums)
        pull = keep * (dx * dx + dy * dy)
        for n in range(count):
            left, right = max(cx[n] - radius - x0, 0), min(cx[n] + radius + 1 - x0, wide)
            top, low = max(cy[n] - radius - y0, 0), min(cy[n] + radius + 1 - y0, high)
            total = sums[low, right] - sums[top, right] - sums[low, left] + sums[top, left]
            here = total / ((right - left) * (low - top)) + pull
            if here < best[n]:
                best[n], chosen[n] = here, number


@njit(cache=True, parallel=True)
def _nearest_whole(source, target, view, cx, cy, radius, reach, keep, shares):
    """The whole displacement of least cost [N, 2] of each patch about (cx, cy) [N] in picture view [N]; the nearer one
    where two cost the same. So many jobs share the displacements of one picture.
    """
    moves, views = _displacements(reach), len(source)
    best, chosen = np.full((shares, len(view)), FAR), np.zeros((shares, len(view)), np.int64)
    for job in prange(views * shares):
        k, share = job // shares, job % shares
        mine = np.flatnonzero(view == k)
        if len(mine) and reach > 0:
            cost, number = best[share][mine], chosen[share][mine]
            _search(source[k], target[k], cx[mine], cy[mine], radius, keep, moves, share, shares, cost, number)
            best[share][mine], chosen[share][mine] = cost, number
    for share in range(1, shares):
        for n in range(len(view)):
            cost, number = best[share, n], chosen[share, n]
            if cost < best[0, n] or (cost == best[0, n] and number < chosen[0, n]):
                best[0, n], chosen[0, n] = cost, number
    return moves[chosen[0]]


@njit(cache=True, fastmath=True)
def _system(source, across, down, target, cx, cy, u, v, radius, out):
    """Sums over the patch moved by (u, v): gradients (xx, xy, yy), gradient times difference (x, y), error, count.

    across, down [S, S, C]: source's gradients. In single precision: these loops are most of the tracker's time.
    """
    size = source.shape[0]
    one, bound = np.float32(1.0), np.float32(1.0 / (CLIP * CLIP))
    iu, iv = int(math.floor(u)), int(math.floor(v))
    a, b = np.float32(u - iu), np.float32(v - iv)
    w00, w01, w10, w11 = (one - a) * (one - b), a * (one - b), (one - a) * b, a * b
    sxx, sxy, syy = np.float32(0.0), np.float32(0.0), np.float32(0.0)
    sx, sy, error = np.float32(0.0), np.float32(0.0), np.float32(0.0)
    count = 0
    for y in range(max(cy - radius, 1), min(cy + radius, size - 2) + 1):
        y0 = min(max(y + iv, 1), size - 3)
        for x in range(max(cx - radius, 1), min(cx + radius, size - 2) + 1):
            x0 = min(max(x + iu, 1), size - 3)
            squared, ex, ey = np.float32(0.0), np.float32(0.0), np.float32(0.0)
            gxx, gxy, gyy = np.float32(0.0), np.float32(0.0), np.float32(0.0)
            for k in range(source.shape[2]):
                there = (
                    w00 * target[y0, x0, k]
                    + w01 * target[y0, x0 + 1, k]
                    + w10 * target[y0 + 1, x0, k]
                    + w11 * target[y0 + 1, x0 + 1, k]
                )
                gx, gy = across[y, x, k], down[y, x, k]
                away = source[y, x, k] - there
                squared += away * away
                gxx += gx * gx
                gxy += gx * gy
                gyy += gy * gy
                ex += gx * away
                ey += gy * away
            share = squared * bound
            w = one / (one + share)
            sxx += w * gxx
            sxy += w * gxy
            syy += w * gyy
            sx += w * ex
            sy += w * ey
            error += min(share, one)
            count += 1
    out[0], out[1], out[2], out[3], out[4], out[5], out[6] = sxx, sxy, syy, sx, sy, error * CLIP * CLIP, count


def match_patches(
    source: np.ndarray,
    target: np.ndarray,
    view: np.ndarray,
    place: np.ndarray,
    radius: int,
    reach: int,
    keep: float,
    edge: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where N patches of the pictures source [K, S, S, C] float32 lie in target [K, S, S, C] float32.

    Args:
        view: [N] int, which picture. place: [N, 2] (x, y) middle of the patch in pixels.
        radius: of the patch; reach: largest displacement, pixels; keep: cost per squared pixel of displacement.

    Returns:
        displacement [N, 2], cost [N] (mean squared difference), information [N, 2, 2]: square root of how well each
        direction is told, eigenvalues 0..1.
    """
    shares = max(get_num_threads() // len(source), 1)
    return _matched(source, target, view, place, radius, reach, keep, edge, shares)


@njit(cache=True, parallel=True)
def _matched(source, target, view, place, radius, reach, keep, edge, shares):
    count = view.shape[0]
    across, down = np.zeros_like(source), np.zeros_like(source)
    across[:, :, 1:-1] = 0.5 * (source[:, :, 2:] - source[:, :, :-2])
    down[:, 1:-1] = 0.5 * (source[:, 2:] - source[:, :-2])
    cx, cy = np.floor(place[:, 0]).astype(np.int64), np.floor(place[:, 1]).astype(np.int64)
    whole = _nearest_whole(source, target, view, cx, cy, radius, reach, keep, shares)
    displacement = np.zeros((count, 2))
    cost = np.zeros(count)
    information = np.zeros((count, 2, 2))
    for n in prange(count):
        k = view[n]
        u, v = float(whole[n, 0]), float(whole[n, 1])
        sums = np.empty(7)
        for _ in range(FINE_STEPS):
            _system(source[k], across[k], down[k], target[k], cx[n], cy[n], u, v, radius, sums)
            pull = DAMPING * max(sums[6], 1.0) + 0.01 * (sums[0] + sums[2])
            xx, xy, yy = sums[0] + pull, sums[1], sums[2] + pull
            det = xx * yy - xy * xy
            u += (yy * sums[3] - xy * sums[4]) / det
            v += (xx * sums[4] - xy * sums[3]) / det
            u = min(max(u, whole[n, 0] - STRAY), whole[n, 0] + STRAY)
            v = min(max(v, whole[n, 1] - STRAY), whole[n, 1] + STRAY)
        _system(source[k], across[k], down[k], target[k], cx[n], cy[n], u, v, radius, sums)
        seen = max(sums[6], 1.0)
        cost[n] = sums[5] / seen
        displacement[n, 0], displacement[n, 1] = u, v
        _root_information(sums[0] / seen, sums[1] / seen, sums[2] / seen, edge, information[n])
    return displacement, cost, information


@njit(cache=True)
def _root_information(xx, xy, yy, edge, out):
    """Square root [2, 2] of the matrix with the tensor's directions and eigenvalues l / (l + edge)."""
    middle, half = 0.5 * (xx + yy), math.sqrt(0.25 * (xx - yy) ** 2 + xy * xy)
    high, low = middle + half, max(middle - half, 0.0)
    angle = 0.5 * math.atan2(2 * xy, xx - yy)
    c, s = math.cos(angle), math.sin(angle)
    p, q = math.sqrt(high / (high + edge)), math.sqrt(low / (low + edge))
    out[0, 0] = p * c * c + q * s * s
    out[1, 1] = p * s * s + q * c * c
    out[0, 1] = out[1, 0] = (p - q) * c * s
