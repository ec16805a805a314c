"""A video's frames as the tracker compares them: colours on grey, with alpha, at several sizes."""

from __future__ import annotations

import numpy as np
import torch

GREY = 0.5


def on_grey(frames: np.ndarray, matte: np.ndarray) -> np.ndarray:
    """frames [..., C] uint8 and matte [...] -> [..., 4] float32: colours on grey, and alpha."""
    result = np.empty((*frames.shape[:-1], 4), np.float32)
    cover = result[..., 3:]
    cover[..., 0] = matte
    # In place: these are the largest arrays of the stage.
    np.multiply(frames[..., :3], np.float32(1 / 255), out=result[..., :3])
    result[..., :3] -= GREY
    result[..., :3] *= cover
    result[..., :3] += GREY
    return result


def resized(pictures: np.ndarray, size: int) -> np.ndarray:
    """Square pictures [..., S, S, C] float32 at another size: means where it divides, else bilinear."""
    old = pictures.shape[-2]
    if old % size == 0:
        shape = (*pictures.shape[:-3], size, old // size, size, old // size, pictures.shape[-1])
        return np.ascontiguousarray(pictures.reshape(shape).mean(axis=(-4, -2)))
    flat = torch.from_numpy(pictures).flatten(0, -4).permute(0, 3, 1, 2)
    smaller = size < old
    flat = torch.nn.functional.interpolate(flat, size=(size, size), mode="bilinear", antialias=smaller)
    return np.ascontiguousarray(flat.permute(0, 2, 3, 1).numpy().reshape(*pictures.shape[:-3], size, size, -1))
