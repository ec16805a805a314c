"""A video's frames as the tracker compares them: colours on grey, with alpha, at several sizes."""

from __future__ import annotations

import numpy as np
import torch

GREY = 0.5


def on_grey(frames: np.ndarray, matte: np.ndarray) -> np.ndarray:
    """frames [..., C] uint8 and matte [...] -> [..., 4] float32: colours on grey, and alpha."""
    colours = frames[..., :3].astype(np.float32) / 255.0
    cover = matte[..., None].astype(np.float32)
    return np.concatenate([colours * cover + GREY * (1 - cover), cover], axis=-1)


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
