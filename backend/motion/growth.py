"""Where within a part its growth takes place: what one scale of the whole part leaves open, the mesh says.

Pictures of a plain post that gets longer show its two ends. A scale would stretch its bevels like its shaft; a modeller
moves the upper end. So the growth along an axis goes where it costs the edges least of their own length: it is the
potential of a net of resistors between the two ends, each edge conducting as the inverse square of its length.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import spsolve
from torch import Tensor

from backend.motion.bones import Rig, RigField, apply_affine
from backend.motion.evidence import Pose
from backend.motion.graph import nearest_owner

END = 0.02  # of a part's length: nodes nearer than this to its ends are moved with them
LEAST = 0.01  # growth below which a part counts as rigid
FAINT = 1e-6  # of the mean conductance: islands keep their place


class GrowingField(RigField):
    """A rig whose bones may have grown along axes of their parts: `fields.MotionField`."""

    def __init__(self, rig: Rig, poses: Pose, part_of_bone: Tensor, axes: Tensor) -> None:
        """poses: matrices [F, B, 3, 3], rotations unless a bone has grown, and translations; axes [P, 3, 3] at rest."""
        super().__init__(rig, *poses)
        self.axes, self.part = axes, part_of_bone[rig.node_weights.argmax(dim=1)]  # part [M] of the nodes
        along = (axes[self.part] @ torch.from_numpy(rig.graph.nodes).to(axes)[..., None])[..., 0]  # [M, 3]
        self.low, self.length = torch.zeros(len(axes), 3), torch.zeros(len(axes), 3)
        self.shares = torch.zeros_like(along)
        size = torch.linalg.norm(poses[0] @ axes[part_of_bone].transpose(-1, -2), dim=-2)  # [F, B, axis]
        grown = (size - 1.0).abs().amax(dim=(0, 2)) > LEAST
        for k in part_of_bone[grown].unique().tolist():
            mine = self.part == k
            edges = rig.graph.edges[mine.numpy()][:, mine.numpy()]
            self.low[k] = along[mine].amin(dim=0)
            self.length[k] = along[mine].amax(dim=0) - self.low[k]
            place = (along[mine] - self.low[k]) / self.length[k].clamp_min(1e-6)
            self.shares[mine] = torch.stack([_shares(edges, one) for one in place.double().T.numpy()], dim=1).to(along)

    def positions(self, points: Tensor, owner: np.ndarray, times: Tensor) -> Tensor:
        """Positions [T, N, 3] of points [N, 3] whose graph nodes are `owner` [N]."""
        part = self.part[owner]
        along = (self.axes[part] @ points[..., None])[..., 0] - self.low[part]
        shares = self.rig.at_points(self.shares, points.numpy().astype(np.float64), owner)
        beyond = torch.where(self.length[part] > 0, shares * self.length[part] - along, 0.0)  # what a scale does
        affine = self._affine(points, owner, times)
        axes = affine[..., :3] @ self.axes[part].transpose(-1, -2)  # [T, N, 3, axis]
        size = torch.linalg.norm(axes, dim=-2, keepdim=True)
        return apply_affine(affine, points) + (axes / size * (size - 1.0) @ beyond[..., None])[..., 0]

    def deform(self, points: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Points [N, 3] anywhere near the surface at times [T] in -1..1 -> positions [T, N, 3], rotations [T, N, 4]."""
        owner = nearest_owner(self.rig.graph, points.detach().cpu().numpy().astype(np.float64))
        return self.positions(points, owner, times), super().deform(points, times)[1]


def _shares(edges: csr_matrix, place: np.ndarray) -> Tensor:
    """Share [n] of the growth that lies below each node; edges [n, n] lengths, place [n] from 0 to 1."""
    net = edges.copy()
    net.data = 1.0 / np.maximum(net.data, 1e-6) ** 2
    laplacian = (diags(np.asarray(net.sum(axis=1))[:, 0]) - net).tocsr()
    share = (place > 0.5).astype(np.float64)
    free = (place >= END) & (place <= 1 - END)
    if free.any():
        faint = FAINT * laplacian.diagonal().mean() or 1.0  # loose points have no net at all
        matrix = laplacian[free][:, free] + faint * diags(np.ones(free.sum()))
        share[free] = spsolve(matrix.tocsc(), faint * place[free] - laplacian[free][:, ~free] @ share[~free])
    return torch.from_numpy(share)
