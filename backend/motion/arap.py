"""As-rigid-as-possible loss (Animate3D, section 4.3), batched, with closed-form rotations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from backend.motion.graph import edges_of
from backend.motion.rotations import nearest_rotation


@dataclass(frozen=True)
class Neighbourhood:
    """Up to K neighbours of each of V points; missing ones repeat the point itself, whose edge is zero."""

    index: Tensor  # [V, K] int

    @staticmethod
    def nearest(points: np.ndarray, k: int = 3) -> Neighbourhood:
        """The k nearest points [V, 3] of each, as the reference does for Gaussians."""
        count = min(k + 1, len(points))
        found = cKDTree(points).query(points, k=count)[1].reshape(len(points), count)
        itself = np.arange(len(points))[:, None]
        # A twin at the same place may come first: the point itself goes to the end, and is cut off there.
        order = np.argsort(found == itself, axis=1, kind="stable")
        found = np.take_along_axis(found, order, axis=1)[:, : max(count - 1, 1)]
        return Neighbourhood(torch.from_numpy(np.ascontiguousarray(found)).long())

    @staticmethod
    def of_mesh(faces: np.ndarray, weld: np.ndarray, k: int = 8) -> Neighbourhood:
        """Edge neighbours on the welded mesh: faces [T, 3], weld [V] -> [U, K] over the distinct positions."""
        count = int(weld.max()) + 1
        start, end = edges_of(weld[faces])
        source, other = np.concatenate([start, end]), np.concatenate([end, start])
        order = np.argsort(source, kind="stable")
        source, other = source[order], other[order]
        place = np.arange(len(source)) - np.searchsorted(source, source)
        index = np.repeat(np.arange(count)[:, None], k, axis=1)
        keep = place < k
        index[source[keep], place[keep]] = other[keep]
        return Neighbourhood(torch.from_numpy(index).long())


def edge_rotations(rest: Tensor, moved: Tensor, reference_quirk: bool = False) -> Tensor:
    """Best rotation of each point's edges: rest [V, K, 3], moved [T, V, K, 3] -> [T, V, 3, 3], without gradient.

    `reference_quirk`: where all edges of a point are exactly unchanged along some axis, the reference takes the
    identity instead, so that it punishes a pure turn about z. On for the paper preset only.
    """
    rest, moved = rest.detach(), moved.detach()
    rotation = nearest_rotation(torch.einsum("tvki,vkj->tvij", moved, rest))
    if reference_quirk:
        unchanged = (moved == rest).all(dim=-2).any(dim=-1)
        rotation = torch.where(unchanged[..., None, None], torch.eye(3).to(rotation), rotation)
    return rotation


def arap_loss(
    rest: Tensor,
    moved: Tensor,
    neighbours: Neighbourhood,
    sample: Tensor | None = None,
    reference_quirk: bool = False,
) -> Tensor:
    """Sum over frames, points and neighbours of |e' - R e|^2, not averaged; rest [V, 3], moved [T, V, 3].

    sample [S]: the points whose neighbourhoods count (the reference draws 512 with replacement), all by default.
    """
    index = neighbours.index.to(rest.device)
    centre = torch.arange(len(index), device=rest.device) if sample is None else sample
    index = index[centre]
    rest_edges = rest[centre][:, None] - rest[index]
    moved_edges = moved[:, centre][:, :, None] - moved[:, index]
    rotation = edge_rotations(rest_edges, moved_edges, reference_quirk)
    expected = torch.einsum("tvij,vkj->tvki", rotation, rest_edges)
    return ((moved_edges - expected) ** 2).sum()
