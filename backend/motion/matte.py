"""Foreground of every frame: keyed against the known grey, guided by frame 0's exact alpha."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

GREY = 0.5
NOISE_FLOOR = 0.03  # differences from grey below this are the codec's noise
MIN_SPECK = 0.002  # of the object's area in frame 0: smaller islands are noise
MAX_HOLE = 0.01  # of the object's area: smaller holes are pixels of the object that happen to be grey


def key_matte(frames: np.ndarray, first_alpha: np.ndarray) -> np.ndarray:
    """frames [4, F, H, W, C] uint8, first_alpha [4, H, W] in 0..1 -> alpha [4, F, H, W] float32.

    Frames of four channels carry their own alpha. Others lie on grey 0.5: a pixel is as opaque as it differs from
    grey, in units of the difference that this object typically has (frame 0 tells, view by view).
    """
    if frames.shape[-1] == 4:
        return frames[..., 3].astype(np.float32) / 255.0
    alpha = np.empty(frames.shape[:4], np.float32)
    for view in range(len(frames)):
        away = np.abs(frames[view].astype(np.float32) / 255.0 - GREY).max(axis=-1)
        low, high = _key_range(away[0], first_alpha[view])
        area = float((first_alpha[view] > 0.5).sum())
        for frame in range(frames.shape[1]):
            soft = np.clip((away[frame] - low) / (high - low), 0.0, 1.0)
            alpha[view, frame] = clean_matte(soft, area)
        alpha[view, 0] = first_alpha[view]
    return alpha


def _key_range(away: np.ndarray, alpha: np.ndarray) -> tuple[float, float]:
    """Differences from grey [H, W] that mean empty and opaque, read off frame 0 with its alpha [H, W]."""
    empty, full = away[alpha < 0.02], away[alpha > 0.98]
    low = max(float(np.percentile(empty, 99)) if empty.size else 0.0, NOISE_FLOOR)
    typical = float(np.percentile(full, 10)) if full.size else 0.2
    # An object about as grey as its background can't be keyed there: holes are filled afterwards.
    return low, max(typical, low + 0.04)


def clean_matte(alpha: np.ndarray, area: float) -> np.ndarray:
    """Removes specks and fills holes of alpha [H, W], measured against the object's `area` in pixels."""
    solid = alpha > 0.5
    specks, count = ndimage.label(solid, structure=np.ones((3, 3)))
    if count:
        sizes = np.bincount(specks.ravel())
        small = sizes < max(MIN_SPECK * area, 2.0)
        small[0] = False
        alpha = np.where(ndimage.binary_dilation(small[specks]) & ~(solid & ~small[specks]), 0.0, alpha)
    # What is far from anything solid is noise, however soft.
    alpha = np.where(ndimage.binary_dilation(alpha > 0.5, iterations=2), alpha, 0.0)
    holes, count = ndimage.label(alpha <= 0.5)
    if count:
        sizes = np.bincount(holes.ravel())
        border = np.unique(np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]]))
        small = sizes <= max(MAX_HOLE * area, 4.0)
        small[0] = False
        small[border] = False
        alpha = np.where(small[holes], 1.0, alpha)
    return alpha.astype(np.float32)
