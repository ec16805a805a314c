"""Whether a video only seems to move: views that drift apart pull a still object along, each its own way.

Generated views come to show the object a little larger or farther to a side. A motion that explains less of what has
changed than such a drift of the rest picture does is none.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import affine_transform
from torch import Tensor

SCALE = 0.06  # a view that grows or shrinks by more does not drift
SHIFT = 0.03  # and one that moves by more, in x / depth
SHARE = 0.75  # of what drift explains, below which a motion is none


def drifted(pictures: np.ndarray, drift: Tensor, focal: float) -> np.ndarray:
    """Pictures [K, S, S, C] of the rest as drifting views show it; drift [K, 3] as of `view_drift`, focal in pixels."""
    limit = torch.tensor([SCALE, SHIFT, SHIFT])
    result = np.empty_like(pictures)
    middle = 0.5 * pictures.shape[1] - 0.5
    for view, (scale, x, y) in enumerate(drift.clamp(-limit, limit).tolist()):
        matrix = np.full(2, 1.0 / (1.0 + scale))
        offset = middle - (middle + np.array([-y, x]) * focal) / (1.0 + scale)  # rows run down
        for channel in range(pictures.shape[3]):
            there = affine_transform(pictures[view, ..., channel], matrix, offset, order=1, mode="nearest")
            result[view, ..., channel] = there
    return result


def only_drifts(still: np.ndarray, moved: np.ndarray, drifting: np.ndarray) -> bool:
    """By how much each frame [F] departs from the rest, from the motion found, and from the rest in drifting views."""
    return float((still - moved).sum()) < SHARE * float((still - drifting).sum())
