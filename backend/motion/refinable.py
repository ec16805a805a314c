"""Motions that gradients can change, as the 4D-SDS stage needs them: a HexPlane, or bones on top of any motion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from backend.motion.arap import Neighbourhood, edge_rotations
from backend.motion.bones import CHUNK, blend, bone_affine, build_rig
from backend.motion.fields import frame_times
from backend.motion.graph import build_graph, nearest_owner
from backend.motion.hexplane import HexPlane
from backend.motion.rotations import (
    matrix_to_quaternion,
    quaternion_product,
    quaternion_to_matrix,
    rotation_vector_to_quaternion,
)
from backend.protocol import Subject
from backend.splats.gaussians import Gaussians

NEIGHBOURS = 8  # of a free Gaussian, whose motion says how it turns


@dataclass(frozen=True)
class Pose:
    """N Gaussians in frames 1.. (T of them); in frame 0 they are at rest."""

    means: Tensor  # [T, N, 3]
    quats: Tensor  # [T, N, 4] wxyz
    scales: Tensor  # [T, N, 3], or [N, 3] where they stay


@dataclass(frozen=True)
class Rates:
    """Step sizes of Adam. The planes' are the paper's; bones turn by radians and shift by subject units."""

    grid: float = 0.01
    network: float = 1e-4
    global_network: float = 1e-3  # not in the text
    bone: float = 2e-3


class Refinable(Protocol):
    """A motion of some Gaussians and of the subject's vertices."""

    def pose(self) -> Pose:
        """The Gaussians now, with gradients to the motion's parameters."""
        ...

    def roughness(self) -> Tensor:
        """How much the refinement shakes: mean square of its second difference in time; 0 where it can't."""
        ...

    def parameter_groups(self, rates: Rates) -> list[dict]:
        """For the optimiser."""
        ...

    def offsets(self) -> np.ndarray:
        """[F, V, 3] float32 of the subject's vertices, subject space; frame 0 exactly zero."""
        ...


class PlaneMotion:
    """A fitted HexPlane, which goes on where reconstruction left it; now the Gaussians' sizes may change too."""

    def __init__(self, field: HexPlane, subject: Subject, splats: Gaussians, frames: int) -> None:
        self.field, self.subject, self.splats = field, subject, splats
        self.times = frame_times(frames, splats.means.device)
        # The field reads its anchors anyway: where they are these Gaussians, once is enough.
        self.means = field.anchors if torch.equal(field.anchors, splats.means) else splats.means

    def pose(self) -> Pose:
        moved = self.field.deform_gaussians(self.means, self.splats.quats, self.splats.scales, self.times[1:])
        return Pose(*moved)

    def roughness(self) -> Tensor:
        return self.times.new_zeros(())

    def parameter_groups(self, rates: Rates) -> list[dict]:
        field = self.field
        local = (field.delta_xyz, field.delta_rotation, field.delta_scale)
        whole = (field.global_rotation, field.global_translation)
        return [
            {"params": list(field.grids.parameters()), "lr": rates.grid},
            {"params": [value for net in local for value in net.parameters()], "lr": rates.network},
            {"params": [value for net in whole for value in net.parameters()], "lr": rates.global_network},
        ]

    @torch.no_grad()
    def offsets(self) -> np.ndarray:
        vertices = self.subject.vertices
        result = np.zeros((len(self.times), len(vertices), 3), np.float32)
        for part in _chunks(len(vertices)):
            rest = torch.from_numpy(vertices[part]).to(self.times.device)
            result[1:, part] = (self.field.positions(rest, self.times[1:]) - rest).cpu().numpy()
        return result


class BoneMotion(nn.Module):
    """Any known motion with small rigid corrections on top, those of bones, smoothly blended over the surface.

    In frame t a bone turns by `turns` about the place to which the known motion takes its centre, and shifts by
    `shifts`; both start at zero. So touching limbs stay apart and rigid parts rigid, whatever the video model wants.
    """

    def __init__(
        self,
        subject: Subject,
        offsets: np.ndarray,
        splats: Gaussians,
        bones: int = 24,
        large_part: float = float("inf"),
    ) -> None:
        """offsets [F, V, 3] float32 of the known motion, subject space; the others as in `bones.build_rig`."""
        super().__init__()
        self.subject, self.known, self.splats = subject, offsets, splats
        device = splats.means.device
        self.graph = build_graph(subject.vertices, subject.faces, subject.weld)
        self.rig = build_rig(self.graph, bones, large_part, device)
        frames, count = len(offsets) - 1, len(self.rig.centres)
        self.turns = nn.Parameter(torch.zeros(frames, count, 3, device=device))
        self.shifts = nn.Parameter(torch.zeros(frames, count, 3, device=device))
        self.means, self.quats = _known_pose(subject, offsets, splats)
        points = splats.means.detach().cpu().numpy().astype(np.float64)
        self.skin = self.rig.weights(points, nearest_owner(self.graph, points)).to(self.means)
        share = self.skin / self.skin.sum(dim=0).clamp_min(1e-6)
        self.centres = torch.einsum("nb,tnk->tbk", share, self.means)

    def pose(self) -> Pose:
        turned = torch.nn.functional.normalize(self.skin @ rotation_vector_to_quaternion(self.turns), dim=-1)
        return Pose(self._corrected(self.skin, self.means), quaternion_product(turned, self.quats), self.splats.scales)

    def _corrected(self, skin: Tensor, places: Tensor) -> Tensor:
        """Places [T, N, 3] of points with weights [N, B] -> the same, corrected."""
        turns = quaternion_to_matrix(rotation_vector_to_quaternion(self.turns))
        affine = blend(skin, bone_affine(self.centres, turns, self.shifts))
        return (affine[..., :3] @ places[..., None])[..., 0] + affine[..., 3]

    def roughness(self) -> Tensor:
        if len(self.turns) < 2:
            return self.turns.new_zeros(())
        # The frame before the first is the rest pose, which has no correction.
        tracks = torch.cat([torch.cat([values[:1] * 0, values]) for values in (self.turns, self.shifts)], dim=-1)
        return tracks.diff(n=2, dim=0).square().mean()

    def parameter_groups(self, rates: Rates) -> list[dict]:
        return [{"params": [self.turns, self.shifts], "lr": rates.bone}]

    @torch.no_grad()
    def offsets(self) -> np.ndarray:
        vertices = self.subject.vertices
        result = np.zeros_like(self.known)
        for part in _chunks(len(vertices)):
            skin = self.rig.weights(vertices[part].astype(np.float64), self.graph.owner[part]).to(self.skin)
            known = torch.from_numpy(self.known[1:, part] + vertices[part]).to(self.skin)
            result[1:, part] = self._corrected(skin, known).cpu().numpy() - vertices[part]
        return result


def _known_pose(subject: Subject, offsets: np.ndarray, splats: Gaussians) -> tuple[Tensor, Tensor]:
    """Means [F - 1, N, 3] and quaternions [F - 1, N, 4] of Gaussians that go with the vertices."""
    device = splats.means.device
    if splats.face is not None:
        vertices = torch.from_numpy(subject.vertices + offsets[1:]).to(device)
        return splats.follow(vertices, torch.from_numpy(subject.faces).long().to(device))
    points = splats.means.detach().cpu().numpy()
    nearest = cKDTree(subject.vertices).query(points)[1]
    means = splats.means + torch.from_numpy(offsets[1:, nearest]).to(device)
    around = Neighbourhood.nearest(points, NEIGHBOURS).index.to(device)
    edges, moved = splats.means[:, None] - splats.means[around], means[:, :, None] - means[:, around]
    return means, quaternion_product(matrix_to_quaternion(edge_rotations(edges, moved)), splats.quats)


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, count, CHUNK))
