"""Numba kernels between world and screen: Gaussians to screen ellipses (EWA), and the gradients back.

Parallel loops only call a serial function: numba compiles that in half the time of a loop with its body inside. Every
iteration owns what it writes, so there are no atomics and results do not depend on the number of threads. Leading
dimensions written Bx are 1 (shared by all images) or B.
"""

import numpy as np
from numba import njit, prange

from .definitions import CUT, EPS2D, FRUSTUM_MARGIN, NEAR, TAIL

TILE = 16
"""Side of a tile in pixels."""
SUMS = 9
"""What one splat collects in one tile: d colour (3), d opacity, and d exponent times 1's moments x, y, xx, xy, yy."""

_GAIN = np.float32(1 / (1 - TAIL))
_RADIUS = np.sqrt(2 * CUT)


@njit(cache=True)
def _rotation(quat):
    """Unnormalised wxyz [4] to the rotation matrix, row by row (9 numbers)."""
    w, x, y, z = np.float64(quat[0]), np.float64(quat[1]), np.float64(quat[2]), np.float64(quat[3])
    n = 1.0 / np.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * n, x * n, y * n, z * n
    return (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip


@njit(cache=True)
def _axis_row(view, i, r, scale):
    """Row i of (view rotation @ rotation @ diag(scale)): the Gaussian's three axes seen from the camera."""
    a, b, c = view[i, 0], view[i, 1], view[i, 2]
    return (
        (a * r[0] + b * r[3] + c * r[6]) * scale[0],
        (a * r[1] + b * r[4] + c * r[7]) * scale[1],
        (a * r[2] + b * r[5] + c * r[8]) * scale[2],
    )


@njit(cache=True)
def _screen(mean, view, axes0, axes1, axes2, focal, half_w, half_h):
    """Camera-frame centre, clamped slopes, screen axes and screen covariance of one Gaussian (OpenCV frame, pixels)."""
    x = view[0, 0] * mean[0] + view[0, 1] * mean[1] + view[0, 2] * mean[2] + view[0, 3]
    y = view[1, 0] * mean[0] + view[1, 1] * mean[1] + view[1, 2] * mean[2] + view[1, 3]
    z = view[2, 0] * mean[0] + view[2, 1] * mean[1] + view[2, 2] * mean[2] + view[2, 3]
    zi = 1.0 / z
    limit_x, limit_y = FRUSTUM_MARGIN * half_w / focal, FRUSTUM_MARGIN * half_h / focal
    sx = min(max(x * zi, -limit_x), limit_x)
    sy = min(max(y * zi, -limit_y), limit_y)
    k = focal * zi
    p0, p1, p2 = k * (axes0[0] - sx * axes2[0]), k * (axes0[1] - sx * axes2[1]), k * (axes0[2] - sx * axes2[2])
    q0, q1, q2 = k * (axes1[0] - sy * axes2[0]), k * (axes1[1] - sy * axes2[1]), k * (axes1[2] - sy * axes2[2])
    a = p0 * p0 + p1 * p1 + p2 * p2 + EPS2D
    b = p0 * q0 + p1 * q1 + p2 * q2
    c = q0 * q0 + q1 * q1 + q2 * q2 + EPS2D
    return (x, y, z), (sx, sy, limit_x, limit_y), (p0, p1, p2), (q0, q1, q2), (a, b, c)


@njit(cache=True)
def _span(centre, radius, size):
    """First and one past the last tile that [centre - radius, centre + radius] touches, on an axis of `size` pixels."""
    first = min(max(np.ceil(centre - radius - 0.5), 0.0), size)
    last = min(max(np.floor(centre + radius - 0.5), -1.0), size - 1.0)
    if not first <= last:
        return 0, 0
    return int(first) // TILE, int(last) // TILE + 1


@njit(cache=True, error_model="numpy")
def _project_splat(mean, quat, scale, opacity, view, focal, width, height, centre, shape, box):
    """One Gaussian onto one image; see `project`."""
    r = _rotation(quat)
    v0, v1, v2 = _axis_row(view, 0, r, scale), _axis_row(view, 1, r, scale), _axis_row(view, 2, r, scale)
    point, _, _, _, cov = _screen(mean, view, v0, v1, v2, focal, 0.5 * width, 0.5 * height)
    det = cov[0] * cov[2] - cov[1] * cov[1]
    box[0] = box[1] = box[2] = box[3] = 0
    if not (point[2] > NEAR and det > 0.0 and det < np.inf):  # also refuses NaN
        return
    u = focal * point[0] / point[2] + 0.5 * width
    v = focal * point[1] / point[2] + 0.5 * height
    radius_y = _RADIUS * np.sqrt(cov[2])
    x0, x1 = _span(u, _RADIUS * np.sqrt(cov[0]), np.float64(width))
    y0, y1 = _span(v, radius_y, np.float64(height))
    if x0 == x1 or y0 == y1:
        return
    centre[0], centre[1] = u, v
    shape[0], shape[1], shape[2] = 0.5 * cov[2] / det, -cov[1] / det, 0.5 * cov[0] / det
    shape[3], shape[4], shape[5] = opacity * _GAIN, radius_y, point[2]
    box[0], box[1], box[2], box[3] = x0, x1, y0, y1


@njit(cache=True)
def _pick(images, b):
    """Row of image b in an input with this many images (1: shared)."""
    return b if images > 1 else 0


@njit(cache=True, parallel=True, error_model="numpy")
def project(means, quats, scales, opacities, view, focal, width, height, centre, shape, box):
    """Every Gaussian onto every image.

    means [Bx, N, 3], quats [Bx, N, 4] wxyz, scales [Bx, N, 3], opacities [Bx, N] float32; view [B, 3, 4], focal [B]
    float64. Writes centre [B, N, 2] float64 (px), shape [B, N, 6] float32 (half conic xx, conic xy, half conic yy,
    opacity gain, vertical radius, depth) and box [B, N, 4] int32 (tile x0, x1, y0, y1; empty when not drawn).
    """
    count = box.shape[1]
    for job in prange(box.shape[0] * count):
        b, n = job // count, job % count
        _project_splat(
            means[_pick(len(means), b), n],
            quats[_pick(len(quats), b), n],
            scales[_pick(len(scales), b), n],
            opacities[_pick(len(opacities), b), n],
            view[b], focal[b], width, height, centre[b, n], shape[b, n], box[b, n],
        )  # fmt: skip


@njit(cache=True)
def _shape_gradient(shape, s):
    """One splat's summed moments s [SUMS] to the gradients of its screen centre (2) and covariance (a, b, c)."""
    hxx, xy, hyy = np.float64(shape[0]), np.float64(shape[1]), np.float64(shape[2])
    d_u, d_v = 2 * hxx * s[4] + xy * s[5], xy * s[4] + 2 * hyy * s[5]
    # The exponent is (conic : moments) / 2, and d covariance = -conic (d conic) conic.
    k00, k01, k11 = 2 * hxx, xy, 2 * hyy
    l00, l01 = k00 * s[6] + k01 * s[7], k00 * s[7] + k01 * s[8]
    l10, l11 = k01 * s[6] + k11 * s[7], k01 * s[7] + k11 * s[8]
    d_a = -0.5 * (l00 * k00 + l01 * k01)
    d_b = -(l00 * k01 + l01 * k11)
    d_c = -0.5 * (l10 * k01 + l11 * k11)
    return d_u, d_v, d_a, d_b, d_c


@njit(cache=True)
def _rotation_gradient(quat, g, d_quat):
    """Adds to d_quat [4] the gradient through `_rotation`, for g [3, 3] = d loss / d matrix."""
    w, x, y, z = np.float64(quat[0]), np.float64(quat[1]), np.float64(quat[2]), np.float64(quat[3])
    n = 1.0 / np.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * n, x * n, y * n, z * n
    dw = 2 * (x * (g[2, 1] - g[1, 2]) + y * (g[0, 2] - g[2, 0]) + z * (g[1, 0] - g[0, 1]))
    dx = 2 * (y * (g[0, 1] + g[1, 0]) + z * (g[0, 2] + g[2, 0]) + w * (g[2, 1] - g[1, 2]) - 2 * x * (g[1, 1] + g[2, 2]))
    dy = 2 * (x * (g[0, 1] + g[1, 0]) + z * (g[1, 2] + g[2, 1]) + w * (g[0, 2] - g[2, 0]) - 2 * y * (g[0, 0] + g[2, 2]))
    dz = 2 * (x * (g[0, 2] + g[2, 0]) + y * (g[1, 2] + g[2, 1]) + w * (g[1, 0] - g[0, 1]) - 2 * z * (g[0, 0] + g[1, 1]))
    along = w * dw + x * dx + y * dy + z * dz
    d_quat[0] += (dw - along * w) * n
    d_quat[1] += (dx - along * x) * n
    d_quat[2] += (dy - along * y) * n
    d_quat[3] += (dz - along * z) * n


@njit(cache=True, error_model="numpy")
def _unproject_splat(mean, quat, scale, view, focal, half_w, half_h, shape, s, work, d_mean, d_quat, d_scale):
    """Backward of projecting one Gaussian; adds to d_mean [3], d_quat [4], d_scale [3]. work [3, 3] is scratch."""
    r = _rotation(quat)
    v0, v1, v2 = _axis_row(view, 0, r, scale), _axis_row(view, 1, r, scale), _axis_row(view, 2, r, scale)
    point, slopes, p, q, _ = _screen(mean, view, v0, v1, v2, focal, half_w, half_h)
    d_u, d_v, d_a, d_b, d_c = _shape_gradient(shape, s)
    x, y, zi = point[0], point[1], 1.0 / point[2]
    sx, sy, k = slopes[0], slopes[1], focal / point[2]
    d_sx, d_sy, d_k = 0.0, 0.0, 0.0
    for j in range(3):
        d_p, d_q = 2 * d_a * p[j] + d_b * q[j], 2 * d_c * q[j] + d_b * p[j]
        d0, d1 = k * d_p, k * d_q
        d2 = -sx * d0 - sy * d1
        d_sx -= d0 * v2[j]
        d_sy -= d1 * v2[j]
        d_k += (d_p * p[j] + d_q * q[j]) / k
        for i in range(3):  # gradient of rotation @ diag(scale), back in the world
            g = view[0, i] * d0 + view[1, i] * d1 + view[2, i] * d2
            d_scale[j] += g * r[3 * i + j]
            work[i, j] = g * scale[j]
    _rotation_gradient(quat, work, d_quat)
    d_x, d_y = d_u * k, d_v * k
    d_z = -zi * (d_x * x + d_y * y + d_k * k)
    if abs(x * zi) < slopes[2]:
        d_x, d_z = d_x + d_sx * zi, d_z - d_sx * sx * zi
    if abs(y * zi) < slopes[3]:
        d_y, d_z = d_y + d_sy * zi, d_z - d_sy * sy * zi
    for i in range(3):
        d_mean[i] += view[0, i] * d_x + view[1, i] * d_y + view[2, i] * d_z


@njit(cache=True)
def _unproject_block(
    begin, end, means, quats, scales, view, focal, width, height, shape, first_pair, slot, keep, sums,
    d_means, d_quats, d_scales, d_opacities, d_colors,
):  # fmt: skip
    """`unproject` for splats begin..end."""
    total, work = np.empty(SUMS), np.empty((3, 3))
    for b in range(len(shape)):
        bm, bq, bs = _pick(len(means), b), _pick(len(quats), b), _pick(len(scales), b)
        bo, bc, bk = _pick(len(d_opacities), b), _pick(len(d_colors), b), _pick(len(keep), b)
        for n in range(begin, end):
            first, last = first_pair[b] + slot[b, n], first_pair[b] + slot[b, n + 1]
            if first == last or not keep[bk, n]:
                continue
            for c in range(SUMS):
                total[c] = 0.0
            for pair in range(first, last):
                for c in range(SUMS):
                    total[c] += sums[pair, c]
            for c in range(3):
                d_colors[bc, n, c] += total[c]
            d_opacities[bo, n] += total[3] * _GAIN
            _unproject_splat(
                means[bm, n], quats[bq, n], scales[bs, n], view[b], focal[b], 0.5 * width, 0.5 * height,
                shape[b, n], total, work, d_means[bm, n], d_quats[bq, n], d_scales[bs, n],
            )  # fmt: skip


@njit(cache=True, parallel=True)
def unproject(
    means, quats, scales, view, focal, width, height, shape, first_pair, slot, keep, sums,
    d_means, d_quats, d_scales, d_opacities, d_colors,
):  # fmt: skip
    """Backward of `project`, from sums [pairs, SUMS] (splat n of image b owns rows first_pair[b] + slot[b, n] ...).

    Only for splats that keep [Bx, N] bool holds. Adds to d_means [Bx, N, 3], d_quats [Bx, N, 4], d_scales [Bx, N, 3],
    d_opacities [Bx, N], d_colors [Bx, N, 3]
    (float32, Bx as in the inputs). One thread handles a splat in all images, so what images share simply adds up.
    """
    count = shape.shape[1]
    block = 128
    for job in prange((count + block - 1) // block):
        _unproject_block(
            job * block, min(count, (job + 1) * block), means, quats, scales, view, focal, width, height, shape,
            first_pair, slot, keep, sums, d_means, d_quats, d_scales, d_opacities, d_colors,
        )  # fmt: skip
