"""Parts that grow or shrink as a whole: what rigid bones can't do, and a scale along three axes of the part can."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backend.motion.bones import Rig
from backend.motion.evidence import Pose
from backend.motion.observations import Observations, pixel_errors
from backend.motion.rig_fit import joint_gaps

SOFT = 1e-3  # pull of the shifts to none
LARGEST = 0.3  # change of size in one step


@dataclass(frozen=True)
class Hold:
    """What keeps parts from changing, beside the pixels."""

    size: float  # pull to the size at rest
    steady: float  # to the mean size of the frames before and after
    contact: float  # stiffness of the contacts
    tears: float  # subject units by which one may open before it holds half as much


def stretched(
    rig: Rig, seen: Observations, turns: Tensor, shifts: Tensor, axes: Tensor, robust: float, hold: Hold
) -> Pose:
    """Matrices [F, B, 3, 3] and shifts [F, B, 3], frame 0 the rest, with sizes that explain the pixels better.

    One Gauss-Newton step in three sizes, along the bone's axes [B, 3, 3] at rest, and shift, of each bone and frame
    for itself; Geman-McClure of width `robust`.
    """
    frames, bones = shifts.shape[0] - 1, shifts.shape[1]
    system = _Sums(frames * bones, shifts)
    _add_pixels(system, rig, seen, turns[1:], shifts[1:], axes, robust)
    _add_contacts(system, rig, turns[1:], shifts[1:], axes, hold)
    size = torch.linalg.norm(turns @ axes.transpose(-1, -2), dim=-2) - 1.0  # [F, B, 3]
    around = torch.cat([0.5 * (size[:-2] + size[2:]), size[-2:-1]])
    pull = hold.size * size[1:] + hold.steady * (size[1:] - around)
    system.pull(pull.flatten(0, 1), hold.size + hold.steady)
    step = system.solve().view(frames, bones, 6)
    grown = (axes.transpose(-1, -2) * step[..., None, :3].clamp(-LARGEST, LARGEST)) @ axes
    turns, shifts = turns.clone(), shifts.clone()
    turns[1:] = turns[1:] + turns[1:] @ grown
    shifts[1:] += step[..., 3:]
    return turns, shifts


def _add_pixels(
    system: _Sums, rig: Rig, seen: Observations, turns: Tensor, shifts: Tensor, axes: Tensor, robust: float
) -> None:
    """Reprojection errors; poses of the moving frames."""
    error = pixel_errors(rig, seen, turns, shifts)[0]
    along = seen.camera[:, :2, :3] + seen.target[..., None] * seen.camera[:, 2:, :3]  # [N, 2, 3]
    bone = seen.bones[:, 0]
    rows = along @ _levers(turns[seen.frame, bone], axes[bone], seen.rest - rig.centres[bone])
    if seen.information is not None:
        rows, error = seen.information @ rows, (seen.information @ error[..., None])[..., 0]
    weight = seen.confidence * (robust**2 / (robust**2 + (error**2).sum(dim=-1))) ** 2
    system.add(seen.frame * shifts.shape[1] + bone, rows, error, weight)


def _add_contacts(system: _Sums, rig: Rig, turns: Tensor, shifts: Tensor, axes: Tensor, hold: Hold) -> None:
    """Gaps between parts where they touch at rest, each side as if the other stayed."""
    frames, bones = shifts.shape[:2]
    gaps = joint_gaps(rig, turns, shifts)  # [T, E, 3]
    held = hold.contact * rig.strength / (1 + (gaps**2).sum(dim=-1) / hold.tears**2)
    for side, bone in zip((1.0, -1.0), rig.links.unbind(-1), strict=True):
        arm = (rig.joints - rig.centres[bone]).expand(frames, -1, 3)
        rows = _levers(turns[:, bone], axes[bone].expand(frames, -1, 3, 3), arm).flatten(0, 1)
        index = torch.arange(frames)[:, None] * bones + bone
        system.add(index.flatten(), rows, side * gaps.flatten(0, 1), held.flatten())


def _levers(turn: Tensor, axes: Tensor, arm: Tensor) -> Tensor:
    """d(position) / d(sizes, shift) [..., 3, 6] of points at `arm` [..., 3] from their bone's centre, at rest."""
    along = (axes @ arm[..., None]) * (turn @ axes.transpose(-1, -2)).transpose(-1, -2)  # [..., k, 3]
    return torch.cat([along.transpose(-1, -2), torch.eye(3).to(arm).expand(*arm.shape, 3)], dim=-1)


class _Sums:
    """Normal equations of groups with six unknowns each."""

    def __init__(self, groups: int, like: Tensor) -> None:
        self.matrix = torch.zeros(groups, 6, 6).to(like)
        self.right = torch.zeros(groups, 6).to(like)

    def add(self, group: Tensor, rows: Tensor, error: Tensor, weight: Tensor) -> None:
        """group [N], rows [N, R, 6], error [N, R], weight [N]."""
        weighted = (rows * weight[:, None, None]).transpose(1, 2)
        self.matrix.index_add_(0, group, weighted @ rows)
        self.right.index_add_(0, group, -(weighted @ error[..., None])[..., 0])

    def pull(self, gradient: Tensor, weight: float) -> None:
        """Of the sizes, gradient [groups, 3]."""
        diagonal = self.matrix.diagonal(dim1=-2, dim2=-1)
        diagonal[:, :3] += weight
        diagonal[:, 3:] += SOFT
        self.right[:, :3] -= gradient

    def solve(self) -> Tensor:
        """[groups, 6]."""
        return torch.linalg.solve(self.matrix, self.right)
