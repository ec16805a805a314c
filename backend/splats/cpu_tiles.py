"""Numba kernels on the screen: sort splats into tiles, blend them front to back, and the backward pass of that.

The inner loops run over the TILE pixels of one row with a constant trip count, and all that a row needs lies in one
buffer row: that is what LLVM turns into SIMD code (a separate array per channel is four times as slow). As in
`cpu_projection`, parallel loops only call serial functions and own what they write.
"""

import numpy as np
from numba import njit, prange

from .cpu_projection import SUMS, TILE
from .definitions import ALPHA_MAX, CUT, MIN_TRANSMITTANCE, TAIL

_FAST = {"contract", "reassoc", "nsz", "arcp"}
_f = np.float32
_ZERO, _ONE = _f(0), _f(1)
_CUT, _TAIL, _ALPHA_MAX, _MIN_T = _f(CUT), _f(TAIL), _f(ALPHA_MAX), _f(MIN_TRANSMITTANCE)
_EIGHTH, _E2, _E3, _E4 = _f(-0.125), _f(1 / 2), _f(1 / 6), _f(1 / 24)
_E5, _E6, _E7 = _f(1 / 120), _f(1 / 720), _f(1 / 5040)


@njit(cache=True)
def assign_slots(box, slot):
    """Numbers the (splat, tile) pairs of each image: slot [B, N + 1] int64 is where splat n's pairs begin."""
    for b in range(box.shape[0]):
        total = 0
        for n in range(box.shape[1]):
            slot[b, n] = total
            total += (box[b, n, 1] - box[b, n, 0]) * (box[b, n, 3] - box[b, n, 2])
        slot[b, box.shape[1]] = total


@njit(cache=True)
def _sort_digit(shift, key, index, key_out, index_out):
    """One stable counting pass over 11 bits."""
    cursor = np.zeros(2049, np.int64)
    for i in range(key.size):
        cursor[((key[i] >> shift) & 2047) + 1] += 1
    for i in range(2048):
        cursor[i + 1] += cursor[i]
    for i in range(key.size):
        digit = (key[i] >> shift) & 2047
        key_out[cursor[digit]], index_out[cursor[digit]] = key[i], index[i]
        cursor[digit] += 1


@njit(cache=True)
def _depth_order(shape, box):
    """Indices of the drawn splats, nearest first (stable radix sort: positive floats sort like their bits)."""
    depth, index = np.empty(len(box), np.float32), np.empty(len(box), np.int32)
    drawn = 0
    for n in range(len(box)):
        if box[n, 1] > 0:
            depth[drawn], index[drawn] = shape[n, 5], n
            drawn += 1
    key, index = depth[:drawn].view(np.uint32), index[:drawn]
    key2, index2 = np.empty(drawn, np.uint32), np.empty(drawn, np.int32)
    _sort_digit(np.uint32(0), key, index, key2, index2)
    _sort_digit(np.uint32(11), key2, index2, key, index)
    _sort_digit(np.uint32(22), key, index, key2, index2)
    return index2


@njit(cache=True)
def _fill_image(shape, box, first_pair, tiles_x, tile_start, ids):
    """`fill_tiles` for one image."""
    order = _depth_order(shape, box)
    cursor = np.zeros(tile_start.size, np.int64)
    for n in order:
        for y in range(box[n, 2], box[n, 3]):
            for x in range(box[n, 0], box[n, 1]):
                cursor[y * tiles_x + x + 1] += 1
    cursor[0] = first_pair
    for t in range(tile_start.size - 1):
        cursor[t + 1] += cursor[t]
    for t in range(tile_start.size):
        tile_start[t] = cursor[t]
    for n in order:
        for y in range(box[n, 2], box[n, 3]):
            for x in range(box[n, 0], box[n, 1]):
                t = y * tiles_x + x
                ids[cursor[t]] = n
                cursor[t] += 1


@njit(cache=True, parallel=True)
def fill_tiles(shape, box, first_pair, tiles_x, tile_start, ids):
    """Per tile the splats that touch it, nearest first.

    first_pair [B + 1] int64: where each image's pairs begin. Writes tile_start [B, tiles + 1] int64, ids [pairs] int32.
    """
    for b in prange(len(box)):
        _fill_image(shape[b], box[b], first_pair[b], tiles_x, tile_start[b], ids)


@njit(cache=True, fastmath=_FAST)
def _exp_minus(s):
    """exp(-s) for 0 <= s <= CUT, to 1e-6: a polynomial at s / 8 and three squarings; expf would not vectorise."""
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


@njit(cache=True)
def _blend_strips(job, jobs, ids, tile_start, centre, shape, colors, rgb, alpha):
    """Every jobs-th strip of tiles (interleaved: neighbouring strips cost about the same)."""
    images, height, width = alpha.shape
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    rows = np.empty((TILE, 5 * TILE), np.float32)
    for strip in range(job, images * tiles_y, jobs):
        b, ty = strip // tiles_y, strip % tiles_y
        color = colors[b if len(colors) > 1 else 0]
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


@njit(cache=True, parallel=True)
def blend(ids, tile_start, centre, shape, colors, jobs, rgb, alpha):
    """All tiles of all images. colors [Bx, N, 3] float32; writes rgb [B, H, W, 3] and alpha [B, H, W] float32."""
    for job in prange(jobs):
        _blend_strips(job, jobs, ids, tile_start, centre, shape, colors, rgb, alpha)


@njit(cache=True, fastmath=_FAST, error_model="numpy")
def _unblend_splat(rows, lanes, u, v, shape, color):
    """Steps one tile's rows [TILE, 6 * TILE] past one splat; leaves its sums per pixel column in lanes [7 * TILE].

    A row holds transmittance, what is still to come of (d loss . output), and d loss for r, g, b, alpha.
    """
    hxx, xy, hyy, opacity, radius = shape[0], shape[1], shape[2], shape[3], shape[4]
    red, green, blue = color[0], color[1], color[2]
    for i in range(7 * TILE):
        lanes[i] = _ZERO
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


@njit(cache=True, fastmath=_FAST, error_model="numpy")
def _pass_splat(rows, u, v, shape, color):
    """Steps the rows past one splat like `_unblend_splat`, for those whose gradients nobody wants."""
    hxx, xy, hyy, opacity, radius = shape[0], shape[1], shape[2], shape[3], shape[4]
    red, green, blue = color[0], color[1], color[2]
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
            live = left_over > _MIN_T
            weight = light * alpha if live else _ZERO
            value = red * row[2 * TILE + x] + green * row[3 * TILE + x] + blue * row[4 * TILE + x] + row[5 * TILE + x]
            row[x] = left_over if live else _ZERO
            row[TILE + x] -= weight * value


@njit(cache=True, fastmath=_FAST)
def _fold_lanes(lanes, u, sums):
    """lanes [7 * TILE] to sums [SUMS]: the horizontal moments are taken here, once per tile and not once per pixel."""
    red, green, blue, opacity = _ZERO, _ZERO, _ZERO, _ZERO
    s_x, s_y, s_xx, s_xy, s_yy = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    for x in range(TILE):
        dx = u - _f(x)
        red += lanes[x]
        green += lanes[TILE + x]
        blue += lanes[2 * TILE + x]
        opacity += lanes[3 * TILE + x]
        one, dy, dyy = lanes[4 * TILE + x], lanes[5 * TILE + x], lanes[6 * TILE + x]
        s_x += one * dx
        s_y += dy
        s_xx += one * dx * dx
        s_xy += dy * dx
        s_yy += dyy
    sums[0], sums[1], sums[2], sums[3] = red, green, blue, opacity
    sums[4], sums[5], sums[6], sums[7], sums[8] = s_x, s_y, s_xx, s_xy, s_yy


@njit(cache=True)
def _load_rows(rows, rgb, alpha, d_rgb, d_alpha, top, left):
    """Start of the backward walk through one tile; pixels outside the image are born finished."""
    height, width = alpha.shape
    for y in range(TILE):
        for i in range(6 * TILE):
            rows[y, i] = _ZERO
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


@njit(cache=True)
def _unblend_tile(ids, tile_x, tile_y, first_pair, slot, box, centre, shape, colors, keep, rows, lanes, sums):
    """Walks ids [K] front to back through one tile whose rows are loaded."""
    finished = False
    for i in range(ids.size):
        n = ids[i]
        columns = box[n, 1] - box[n, 0]
        pair = first_pair + slot[n] + (tile_y - box[n, 2]) * columns + tile_x - box[n, 0]
        if finished:
            for c in range(SUMS):
                sums[pair, c] = _ZERO
            continue
        u, v = _f(centre[n, 0] - tile_x * TILE - 0.5), _f(centre[n, 1] - tile_y * TILE - 0.5)
        if keep[n]:
            _unblend_splat(rows, lanes, u, v, shape[n], colors[n])
            _fold_lanes(lanes, u, sums[pair])
        else:
            _pass_splat(rows, u, v, shape[n], colors[n])
        finished = i % 16 == 15 and _opaque(rows)


@njit(cache=True)
def _unblend_strips(
    job, jobs, ids, tile_start, first_pair, slot, box, centre, shape, colors, keep, rgb, alpha, d_rgb, d_alpha, sums
):
    """`unblend` for every jobs-th strip of tiles."""
    images, height, width = alpha.shape
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    rows, lanes = np.empty((TILE, 6 * TILE), np.float32), np.empty(7 * TILE, np.float32)
    for strip in range(job, images * tiles_y, jobs):
        b, ty = strip // tiles_y, strip % tiles_y
        color = colors[b if len(colors) > 1 else 0]
        for tx in range(tiles_x):
            t = ty * tiles_x + tx
            tile = ids[tile_start[b, t] : tile_start[b, t + 1]]
            wanted = keep[b if len(keep) > 1 else 0]
            _load_rows(rows, rgb[b], alpha[b], d_rgb[b], d_alpha[b], ty * TILE, tx * TILE)
            _unblend_tile(
                tile, tx, ty, first_pair[b], slot[b], box[b], centre[b], shape[b], color, wanted, rows, lanes, sums
            )


@njit(cache=True, parallel=True)
def unblend(
    ids, tile_start, first_pair, slot, box, centre, shape, colors, keep, jobs, rgb, alpha, d_rgb, d_alpha, sums
):
    """Backward of `blend`, front to back: rgb and alpha are its outputs, d_rgb and d_alpha the loss's gradients.

    Writes sums [pairs, SUMS] float32, one row per (splat, tile) pair, in the order of `assign_slots`; the rows of
    splats that keep [Bx, N] bool leaves out are never read.
    """
    for job in prange(jobs):
        _unblend_strips(
            job, jobs, ids, tile_start, first_pair, slot, box, centre, shape, colors, keep, rgb, alpha, d_rgb, d_alpha,
            sums,
        )  # fmt: skip
