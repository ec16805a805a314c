"""The numba kernels of the CPU rasterizer: project, sort into tiles, blend, and the two backward passes.

The inner loops run over the TILE pixels of one row with a constant trip count and keep everything a row needs in one buffer row:
that is the shape that LLVM turns into SIMD code (separate arrays per channel cost four times as much, a tile 8 wide is unrolled
before it can be vectorised). Parallel loops never write to the same place, so no atomics are needed and results do not
depend on the number of threads.

Leading dimensions written Bx are 1 (shared by all images) or B.
"""

import numpy as np
from numba import njit, prange

from .definitions import ALPHA_MAX, CUT, EPS2D, FRUSTUM_MARGIN, MIN_TRANSMITTANCE, NEAR, TAIL

TILE = 16
SUMS = 9
"""Values that one splat collects in one tile: d colour (3), d opacity, and the moments x, y, xx, xy, yy of d exponent."""

_FAST = {"contract", "reassoc", "nsz", "arcp"}
_f = np.float32
_ZERO, _HALF, _ONE = _f(0), _f(0.5), _f(1)
_CUT, _TAIL, _GAIN = _f(CUT), _f(TAIL), _f(1 / (1 - TAIL))
_ALPHA_MAX, _MIN_T = _f(ALPHA_MAX), _f(MIN_TRANSMITTANCE)
_EIGHTH, _E2, _E3, _E4 = _f(-0.125), _f(1 / 2), _f(1 / 6), _f(1 / 24)
_E5, _E6, _E7 = _f(1 / 120), _f(1 / 720), _f(1 / 5040)
_RADIUS = np.sqrt(2 * CUT)


# ---------------------------------------------------------------------------------------------------- projection


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


@njit(cache=True, parallel=True, error_model="numpy")
def project(means, quats, scales, opacities, view, focal, width, height, centre, shape, box):
    """Every Gaussian onto every image.

    means [Bx, N, 3], quats [Bx, N, 4] wxyz, scales [Bx, N, 3], opacities [Bx, N] float32; view [B, 3, 4], focal [B] float64.
    Writes centre [B, N, 2] float64 (px), shape [B, N, 6] float32 (half conic xx, conic xy, half conic yy, opacity gain, vertical
    radius, depth) and box [B, N, 4] int32 (tile x0, x1, y0, y1; empty when not drawn).
    """
    images, count = box.shape[0], box.shape[1]
    for job in prange(images * count):
        b, n = job // count, job % count
        mean, scale = means[min(b, means.shape[0] - 1), n], scales[min(b, scales.shape[0] - 1), n]
        r = _rotation(quats[min(b, quats.shape[0] - 1), n])
        v0, v1, v2 = _axis_row(view[b], 0, r, scale), _axis_row(view[b], 1, r, scale), _axis_row(view[b], 2, r, scale)
        point, _, _, _, cov = _screen(mean, view[b], v0, v1, v2, focal[b], 0.5 * width, 0.5 * height)
        det = cov[0] * cov[2] - cov[1] * cov[1]
        box[b, n] = 0
        if not (point[2] > NEAR and det > 0.0 and det < np.inf):  # also refuses NaN
            continue
        u = focal[b] * point[0] / point[2] + 0.5 * width
        v = focal[b] * point[1] / point[2] + 0.5 * height
        radius_y = _RADIUS * np.sqrt(cov[2])
        x0, x1 = _span(u, _RADIUS * np.sqrt(cov[0]), np.float64(width))
        y0, y1 = _span(v, radius_y, np.float64(height))
        if x0 == x1 or y0 == y1:
            continue
        centre[b, n, 0], centre[b, n, 1] = u, v
        shape[b, n, 0], shape[b, n, 1], shape[b, n, 2] = 0.5 * cov[2] / det, -cov[1] / det, 0.5 * cov[0] / det
        shape[b, n, 3] = opacities[min(b, opacities.shape[0] - 1), n] * _GAIN
        shape[b, n, 4], shape[b, n, 5] = radius_y, point[2]
        box[b, n, 0], box[b, n, 1], box[b, n, 2], box[b, n, 3] = x0, x1, y0, y1


# -------------------------------------------------------------------------------------------------------- tiles


@njit(cache=True, parallel=True)
def assign_slots(box, slot):
    """Numbers the (splat, tile) pairs of each image: slot [B, N + 1] int64 is where splat n's pairs begin."""
    for b in prange(box.shape[0]):
        total = 0
        for n in range(box.shape[1]):
            slot[b, n] = total
            total += (box[b, n, 1] - box[b, n, 0]) * (box[b, n, 3] - box[b, n, 2])
        slot[b, box.shape[1]] = total


@njit(cache=True)
def _depth_order(shape, box):
    """Indices of the drawn splats, nearest first (stable radix sort: positive floats sort like their bits)."""
    index = np.flatnonzero(box[:, 1]).astype(np.int32)
    depth = np.empty(index.size, np.float32)
    for i in range(index.size):
        depth[i] = shape[index[i], 5]
    key = depth.view(np.uint32)
    key2, index2 = np.empty_like(key), np.empty_like(index)
    for shift in (0, 11, 22):
        cursor = np.zeros(2049, np.int64)
        for i in range(key.size):
            cursor[((key[i] >> shift) & 2047) + 1] += 1
        for i in range(2048):
            cursor[i + 1] += cursor[i]
        for i in range(key.size):
            digit = (key[i] >> shift) & 2047
            key2[cursor[digit]], index2[cursor[digit]] = key[i], index[i]
            cursor[digit] += 1
        key, key2, index, index2 = key2, key, index2, index
    return index


@njit(cache=True, parallel=True)
def fill_tiles(shape, box, first_pair, tiles_x, tile_start, ids):
    """Per tile the splats that touch it, nearest first.

    first_pair [B + 1] int64: where each image's pairs begin. Writes tile_start [B, tiles + 1] int64 and ids [pairs] int32.
    """
    for b in prange(box.shape[0]):
        tiles = tile_start.shape[1] - 1
        cursor = np.zeros(tiles + 1, np.int64)
        order = _depth_order(shape[b], box[b])
        for n in order:
            for y in range(box[b, n, 2], box[b, n, 3]):
                for x in range(box[b, n, 0], box[b, n, 1]):
                    cursor[y * tiles_x + x + 1] += 1
        cursor[0] = first_pair[b]
        for t in range(tiles):
            cursor[t + 1] += cursor[t]
        tile_start[b] = cursor
        for n in order:
            for y in range(box[b, n, 2], box[b, n, 3]):
                for x in range(box[b, n, 0], box[b, n, 1]):
                    t = y * tiles_x + x
                    ids[cursor[t]] = n
                    cursor[t] += 1


# ------------------------------------------------------------------------------------------------------- blending


@njit(cache=True, fastmath=_FAST)
def _exp_minus(s):
    """exp(-s) for 0 <= s <= CUT, to 1e-6: a polynomial at s / 8 and three squarings, which vectorise where expf does not."""
    u = s * _EIGHTH
    p = _ONE + u * (_ONE + u * (_E2 + u * (_E3 + u * (_E4 + u * (_E5 + u * (_E6 + u * _E7))))))
    p = p * p
    p = p * p
    return p * p


@njit(cache=True)
def _opaque(buffer):
    """True when no pixel of the tile lets light through any more (transmittance is the first TILE of each row)."""
    light = _ZERO
    for y in range(TILE):
        for x in range(TILE):
            light = max(light, buffer[y, x])
    return light == _ZERO


@njit(cache=True, fastmath=_FAST, error_model="numpy")
def _blend_tile(ids, centre, shape, colors, left, top, rows):
    """Blends splats ids [K] into rows [TILE, 5 * TILE]: transmittance, r, g, b, alpha of each pixel row."""
    for y in range(TILE):
        for x in range(TILE):
            rows[y, x] = _ONE
            for c in range(1, 5):
                rows[y, c * TILE + x] = _ZERO
    for i in range(ids.size):
        n = ids[i]
        u, v = _f(centre[n, 0] - left - 0.5), _f(centre[n, 1] - top - 0.5)
        hxx, xy, hyy, opacity, radius = shape[n, 0], shape[n, 1], shape[n, 2], shape[n, 3], shape[n, 4]
        red, green, blue = colors[n, 0], colors[n, 1], colors[n, 2]
        for y in range(max(0, int(np.ceil(v - radius))), min(TILE, int(np.floor(v + radius)) + 1)):
            row = rows[y]
            dy = v - _f(y)
            slope, floor = xy * dy, hyy * dy * dy
            for x in range(TILE):
                dx = u - _f(x)
                s = min((hxx * dx + slope) * dx + floor, _CUT)
                alpha = min(_ALPHA_MAX, opacity * max(_ZERO, _exp_minus(s) - _TAIL))
                light = row[x]
                left_over = light * (_ONE - alpha)
                live = left_over > _MIN_T  # a finished pixel has light 0 and stays finished
                weight = light * alpha if live else _ZERO
                row[x] = left_over if live else _ZERO
                row[TILE + x] += weight * red
                row[2 * TILE + x] += weight * green
                row[3 * TILE + x] += weight * blue
                row[4 * TILE + x] += weight
        if i % 16 == 15 and _opaque(rows):
            break


@njit(cache=True, parallel=True)
def blend(ids, tile_start, centre, shape, colors, jobs, rgb, alpha):
    """All tiles. colors [Bx, N, 3] float32; writes rgb [B, H, W, 3] and alpha [B, H, W] float32."""
    images, height, width = alpha.shape
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    for job in prange(jobs):
        rows = np.empty((TILE, 5 * TILE), np.float32)
        for strip in range(job, images * tiles_y, jobs):  # interleaved: neighbouring strips cost about the same
            b, ty = strip // tiles_y, strip % tiles_y
            color = colors[min(b, colors.shape[0] - 1)]
            for tx in range(tiles_x):
                t = ty * tiles_x + tx
                tile = ids[tile_start[b, t] : tile_start[b, t + 1]]
                _blend_tile(tile, centre[b], shape[b], color, float(tx * TILE), float(ty * TILE), rows)
                for y in range(min(TILE, height - ty * TILE)):
                    for x in range(min(TILE, width - tx * TILE)):
                        py, px = ty * TILE + y, tx * TILE + x
                        for c in range(3):
                            rgb[b, py, px, c] = rows[y, (c + 1) * TILE + x]
                        alpha[b, py, px] = rows[y, 4 * TILE + x]


# ------------------------------------------------------------------------------------------------------- backward


@njit(cache=True, fastmath=_FAST, error_model="numpy")
def _unblend_splat(rows, lanes, u, v, shape, color):
    """One splat in one tile: steps rows [TILE, 6 * TILE] past it and leaves its sums per pixel column in lanes [7, TILE].

    A row holds transmittance, what is still to come of (d loss . output), and d loss for r, g, b, alpha.
    """
    hxx, xy, hyy, opacity, radius = shape[0], shape[1], shape[2], shape[3], shape[4]
    red, green, blue = color[0], color[1], color[2]
    lanes[:] = _ZERO
    for y in range(max(0, int(np.ceil(v - radius))), min(TILE, int(np.floor(v + radius)) + 1)):
        row = rows[y]
        dy = v - _f(y)
        slope, floor = xy * dy, hyy * dy * dy
        for x in range(TILE):
            dx = u - _f(x)
            s = min((hxx * dx + slope) * dx + floor, _CUT)
            fall = _exp_minus(s)
            height = max(_ZERO, fall - _TAIL)
            wanted = opacity * height
            alpha = min(_ALPHA_MAX, wanted)
            light = row[x]
            left_over = light * (_ONE - alpha)
            live = left_over > _MIN_T
            weight = light * alpha if live else _ZERO
            value = red * row[2 * TILE + x] + green * row[3 * TILE + x] + blue * row[4 * TILE + x] + row[5 * TILE + x]
            rest = row[TILE + x] - weight * value
            d_alpha = light * value - rest / (_ONE - alpha) if live and wanted < _ALPHA_MAX else _ZERO
            d_s = -d_alpha * opacity * fall if s < _CUT else _ZERO
            row[x] = left_over if live else _ZERO
            row[TILE + x] = rest
            lanes[x] += weight * row[2 * TILE + x]
            lanes[TILE + x] += weight * row[3 * TILE + x]
            lanes[2 * TILE + x] += weight * row[4 * TILE + x]
            lanes[3 * TILE + x] += d_alpha * height
            lanes[4 * TILE + x] += d_s
            lanes[5 * TILE + x] += d_s * dy
            lanes[6 * TILE + x] += d_s * dy * dy


@njit(cache=True, fastmath=_FAST)
def _fold_lanes(lanes, u, sums):
    """lanes [7 * TILE] to sums [SUMS]: the horizontal moments are taken here, once per tile and not once per pixel."""
    sums[:] = _ZERO
    for x in range(TILE):
        dx = u - _f(x)
        for c in range(4):
            sums[c] += lanes[c * TILE + x]
        sums[4] += lanes[4 * TILE + x] * dx
        sums[5] += lanes[5 * TILE + x]
        sums[6] += lanes[4 * TILE + x] * dx * dx
        sums[7] += lanes[5 * TILE + x] * dx
        sums[8] += lanes[6 * TILE + x]


@njit(cache=True)
def _load_rows(rows, rgb, alpha, d_rgb, d_alpha, top, left):
    """Start of the backward walk through one tile; pixels outside the image are born finished."""
    height, width = alpha.shape
    rows[:] = _ZERO
    for y in range(min(TILE, height - top)):
        for x in range(min(TILE, width - left)):
            py, px = top + y, left + x
            rest = alpha[py, px] * d_alpha[py, px]
            for c in range(3):
                rest += rgb[py, px, c] * d_rgb[py, px, c]
                rows[y, (2 + c) * TILE + x] = d_rgb[py, px, c]
            rows[y, x] = _ONE
            rows[y, TILE + x] = rest
            rows[y, 5 * TILE + x] = d_alpha[py, px]


@njit(cache=True, parallel=True)
def unblend(ids, tile_start, first_pair, slot, box, centre, shape, colors, jobs, rgb, alpha, d_rgb, d_alpha, sums):
    """Backward of `blend`, front to back: rgb and alpha are its outputs, d_rgb and d_alpha the loss's gradients of them.

    Writes sums [pairs, SUMS] float32, one row per (splat, tile) pair, in splat order (see `assign_slots`).
    """
    images, height, width = alpha.shape
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    for job in prange(jobs):
        rows = np.empty((TILE, 6 * TILE), np.float32)
        lanes = np.empty(7 * TILE, np.float32)
        for strip in range(job, images * tiles_y, jobs):
            b, ty = strip // tiles_y, strip % tiles_y
            color = colors[min(b, colors.shape[0] - 1)]
            for tx in range(tiles_x):
                _load_rows(rows, rgb[b], alpha[b], d_rgb[b], d_alpha[b], ty * TILE, tx * TILE)
                finished = False
                first = tile_start[b, ty * tiles_x + tx]
                for i in range(first, tile_start[b, ty * tiles_x + tx + 1]):
                    n = ids[i]
                    columns = box[b, n, 1] - box[b, n, 0]
                    pair = first_pair[b] + slot[b, n] + (ty - box[b, n, 2]) * columns + tx - box[b, n, 0]
                    if finished:
                        sums[pair] = _ZERO
                        continue
                    u = _f(centre[b, n, 0] - tx * TILE - 0.5)
                    _unblend_splat(rows, lanes, u, _f(centre[b, n, 1] - ty * TILE - 0.5), shape[b, n], color[n])
                    _fold_lanes(lanes, u, sums[pair])
                    finished = (i - first) % 16 == 15 and _opaque(rows)


@njit(cache=True)
def _shape_gradient(shape, s):
    """From one splat's summed moments s [SUMS] to the gradients of its screen centre (2) and screen covariance (a, b, c)."""
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
    """Backward of the projection of one Gaussian; adds to d_mean [3], d_quat [4], d_scale [3]. work [3, 3] is scratch."""
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


@njit(cache=True, parallel=True)
def unproject(
    means, quats, scales, view, focal, width, height, shape, first_pair, slot, sums,
    d_means, d_quats, d_scales, d_opacities, d_colors,
):  # fmt: skip
    """Backward of `project`: adds to d_means [Bx, N, 3], d_quats [Bx, N, 4], d_scales [Bx, N, 3], d_opacities [Bx, N], d_colors
    [Bx, N, 3] (float32, Bx as in the inputs). One splat is handled by one thread over all images, so shared ones just add up."""
    images, count = shape.shape[0], shape.shape[1]
    block = 128
    for job in prange((count + block - 1) // block):
        total, work = np.empty(SUMS), np.empty((3, 3))
        for b in range(images):
            bm, bq, bs = min(b, means.shape[0] - 1), min(b, quats.shape[0] - 1), min(b, scales.shape[0] - 1)
            bo, bc = min(b, d_opacities.shape[0] - 1), min(b, d_colors.shape[0] - 1)
            for n in range(job * block, min(count, (job + 1) * block)):
                first, last = first_pair[b] + slot[b, n], first_pair[b] + slot[b, n + 1]
                if first == last:
                    continue
                total[:] = 0.0
                for pair in range(first, last):
                    for c in range(SUMS):
                        total[c] += sums[pair, c]
                for c in range(3):
                    d_colors[bc, n, c] += total[c]
                d_opacities[bo, n] += total[3] * _GAIN
                _unproject_splat(
                    means[bm, n], quats[bq, n], scales[bs, n], view[b], focal[b], 0.5 * width, 0.5 * height, shape[b, n],
                    total, work, d_means[bm, n], d_quats[bq, n], d_scales[bs, n],
                )  # fmt: skip
