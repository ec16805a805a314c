"""What the solver of a rig's poses is given: which point of the rest surface is seen where, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.motion.bones import Rig
from backend.motion.correspondence import Correspondences

BONES_PER_POINT = 4  # the others' weights are negligible


@dataclass(frozen=True)
class Observations:
    """N correspondences of all frames, ready for the solver; each hangs on K bones."""

    frame: Tensor  # [N] int, 0 for the first moving frame
    rest: Tensor  # [N, 3]
    bones: Tensor  # [N, K] int
    weights: Tensor  # [N, K]
    view: Tensor  # [N] int: whose camera
    camera: Tensor  # [N, 3, 4] subject space to camera
    target: Tensor  # [N, 2]: x / depth and y / depth at which the camera sees it
    confidence: Tensor  # [N]
    information: Tensor | None = None  # [N, 2, 2]: square root of how well each direction in the picture is known


def observe(
    found: Correspondences, samples: np.ndarray, skin: Tensor, cameras: np.ndarray, fovy: float, limit: int
) -> Observations:
    """samples [M, 3] at rest, skin [M, B] their weights, cameras [4, 4, 4]; at most `limit` per frame, by chance."""
    focal = 0.5 * found.size / np.tan(np.radians(fovy) / 2)
    shuffled = np.random.default_rng(0).permutation(len(found.frame))
    order = shuffled[np.argsort(found.frame[shuffled], kind="stable")]
    frame = found.frame[order]
    count = np.bincount(frame, minlength=1)
    place = np.arange(len(frame)) - (np.cumsum(count) - count)[frame]
    index, frame = order[place < limit], frame[place < limit]
    # Density as in a 64 pixel picture, whatever the resolution: keeps the balance with the links.
    density = (64.0 / found.size) ** 2 * np.maximum(count[frame] / limit, 1.0)
    target = (found.pixel[index] - 0.5 * found.size) * np.array([1.0, -1.0]) / focal
    sample = torch.from_numpy(found.sample[index]).to(skin.device)
    weights, bones = skin[sample].topk(min(BONES_PER_POINT, skin.shape[1]), dim=1)
    make = {"dtype": skin.dtype, "device": skin.device}
    return Observations(
        torch.tensor(frame - 1, device=skin.device),
        torch.tensor(samples[found.sample[index]], **make),
        bones,
        weights / weights.sum(dim=1, keepdim=True),
        torch.tensor(found.view[index], device=skin.device),
        torch.tensor(np.linalg.inv(cameras)[found.view[index], :3], **make),
        torch.tensor(target, **make),
        torch.tensor(found.weight[index] * density, **make),
    )


def pixel_errors(rig: Rig, seen: Observations, rotations: Tensor, translations: Tensor) -> tuple[Tensor, Tensor]:
    """Errors [N, 2] and the observed points' arms from their bones' centres [N, K, 3].

    rotations [T, B, 3, 3], translations [T, B, 3]. The error is linear in the position: what the camera sees minus
    the target's ray, both at the position's depth. So it is a length beside the object, not an angle.
    """
    place, arms = before_camera(rig, seen, rotations, translations)
    return place[:, :2] + seen.target * place[:, 2:], arms


def before_camera(rig: Rig, seen: Observations, rotations: Tensor, translations: Tensor) -> tuple[Tensor, Tensor]:
    """Where the observed points are as their cameras see them [N, 3], and their arms as in `pixel_errors`."""
    at = seen.frame[:, None], seen.bones
    centres = rig.centres[seen.bones]
    arms = (rotations[at] @ (seen.rest[:, None] - centres)[..., None])[..., 0]
    moved = (seen.weights[..., None] * (arms + centres + translations[at])).sum(dim=1)
    return (seen.camera[..., :3] @ moved[..., None])[..., 0] + seen.camera[..., 3], arms
