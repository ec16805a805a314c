"""Views that disagree: in generated videos each view comes to show the object a little larger or farther to a side.

What no pose explains but a scaling and shift of a whole view does is that view's own; it is taken off its pixels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from backend.motion.bones import Rig
from backend.motion.observations import Observations, before_camera

SLOW = 2  # frames before and after that a view's drift is told from, too
ROUNDS = 3  # of reweighting
# Pulls to no drift, in pixels of a 64 pixel picture: of the scale (whose lever is about .2) and of the shift.
PULL = (1.0, 20.0, 20.0)


def no_drift(seen: Observations, frames: int) -> Tensor:
    """Zero for all moving frames: [T, views, 3]."""
    views = int(seen.view.max()) + 1 if len(seen.view) else 1
    return torch.zeros(frames, views, 3).to(seen.target)


def estimate_drift(
    rig: Rig, seen: Observations, rotations: Tensor, translations: Tensor, last: Tensor, robust: float
) -> Tensor:
    """Scale - 1 and shift (of x / depth, y / depth) by which each view departs from the pose, [T, views, 3].

    rotations [F, B, 3, 3], translations [F, B, 3], the first frame the rest, T = F - 1; `seen` as the video shows it,
    nothing taken off; last: an estimate to start from; robust: width of the robust error, a length beside the object.
    """
    place = before_camera(rig, seen, rotations[1:], translations[1:])[0]
    depth = -place[:, 2]
    place = place[:, :2] / depth[:, None]
    rows = torch.cat([place[..., None], torch.eye(2).to(place).expand(len(place), 2, 2)], dim=-1)  # [N, 2, 3]
    away = seen.target - place
    if seen.information is not None:
        rows, away = seen.information @ rows, (seen.information @ away[..., None])[..., 0]
    views = last.shape[1]
    index = seen.frame * views + seen.view
    drift = last.flatten(0, 1)
    pull = torch.diag(torch.tensor(PULL)).to(rows).expand(len(drift), 3, 3)
    for _ in range(ROUNDS):
        left = away - (rows @ drift[index][..., None])[..., 0]
        squared = (left**2).sum(dim=-1) * depth**2
        weighted = rows * (seen.confidence * (robust**2 / (robust**2 + squared)) ** 2)[:, None, None]
        matrix = torch.zeros_like(pull).index_add(0, index, weighted.transpose(1, 2) @ rows)
        right = torch.zeros_like(drift).index_add(0, index, (weighted.transpose(1, 2) @ away[..., None])[..., 0])
        drift = torch.linalg.solve(pull + _around(matrix, views), _around(right, views))
    return drift.view_as(last)


def _around(sums: Tensor, views: int) -> Tensor:
    """Sums [T views, ...] of each frame and view, averaged over the frames about it: views drift slowly."""
    by_frame = sums.view(-1, views, *sums.shape[1:])
    total = torch.stack([by_frame[max(k - SLOW, 0) : k + SLOW + 1].mean(dim=0) for k in range(len(by_frame))])
    return total.view_as(sums)


def take_off_drift(seen: Observations, drift: Tensor) -> Observations:
    """The observations as they would be if no view had drifted; drift [T, views, 3]."""
    own = drift[seen.frame, seen.view]
    return replace(seen, target=(seen.target - own[:, 1:]) / (1 + own[:, :1]))
