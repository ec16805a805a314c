"""Points that hang on a few bones each, in numpy: what is drawn on the CPU moves so."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from backend.motion.observations import BONES_PER_POINT


def posed(points: np.ndarray, skin: tuple[np.ndarray, np.ndarray], affine: np.ndarray) -> np.ndarray:
    """Points [N, 3] hung on bones by (weights [N, K], bones [N, K]), posed by matrices [B, 3, 4] -> [N, 3]."""
    weights, bones = skin
    result = np.zeros_like(points)
    for k in range(weights.shape[1]):
        one = affine[bones[:, k]]
        result += weights[:, k : k + 1] * ((one[:, :, :3] @ points[..., None])[..., 0] + one[:, :, 3])
    return result


def heaviest(skin: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Weights [N, K] and bones [N, K] of skin [N, B]."""
    weights, bones = skin.topk(min(BONES_PER_POINT, skin.shape[1]), dim=1)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return weights.numpy().astype(np.float64), bones.numpy()
