"""A video's frames as the tracker compares them: colours on grey, with alpha, at several sizes."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange

GREY = 0.5


def on_grey(frames: np.ndarray, matte: np.ndarray) -> np.ndarray:
    """Of K views frames [K, F, S, S, C] uint8 and matte [K, F, S, S] -> [F, K, S, S, 4] float32: on grey, and alpha."""
    return _composed(frames, matte)


@njit(cache=True, parallel=True)
def _composed(frames, matte):
    views, count, height, width = matte.shape
    result = np.empty((count, views, height, width, 4), np.float32)
    for job in prange(count * views):
        t, k = job // views, job % views
        for y in range(height):
            for x in range(width):
                cover = matte[k, t, y, x]
                for c in range(3):
                    result[t, k, y, x, c] = GREY + (frames[k, t, y, x, c] / np.float32(255) - GREY) * cover
                result[t, k, y, x, 3] = cover
    return result


@njit(cache=True, parallel=True)
def _means(pictures, factor):
    """Pictures [N, S, S, C] -> [N, S / factor, S / factor, C]."""
    count, size, channels = len(pictures), pictures.shape[1] // factor, pictures.shape[3]
    result = np.zeros((count, size, size, channels), np.float32)
    for job in prange(count * size):
        n, y = job // size, job % size
        for row in range(y * factor, (y + 1) * factor):
            for x in range(size * factor):
                for c in range(channels):
                    result[n, y, x // factor, c] += pictures[n, row, x, c]
        result[n, y] /= factor * factor
    return result


def resized(pictures: np.ndarray, size: int) -> np.ndarray:
    """Square pictures [..., S, S, C] float32 at another size: means where it divides, else bilinear."""
    old = pictures.shape[-2]
    if old % size == 0:
        smaller = _means(pictures.reshape(-1, *pictures.shape[-3:]), old // size)
        return smaller.reshape(*pictures.shape[:-3], size, size, -1)
    flat = torch.from_numpy(pictures).flatten(0, -4).permute(0, 3, 1, 2)
    smaller = size < old
    flat = torch.nn.functional.interpolate(flat, size=(size, size), mode="bilinear", antialias=smaller)
    return np.ascontiguousarray(flat.permute(0, 2, 3, 1).numpy().reshape(*pictures.shape[:-3], size, size, -1))
