"""3D Gaussians, free or bound to the triangles of a mesh."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .sampling import sample_surface, spacing

FLATNESS = 0.05
"""Thickness along the normal, as a fraction of the size on the surface."""
COVERAGE = 0.65
"""Standard deviation on the surface, as a fraction of the distance to the neighbours: they blend without holes."""
START_OPACITY = 0.95


@dataclass(frozen=True)
class Gaussians:
    """N Gaussians in world units. `face`, `barycentric` and `offset` bind them to a mesh; all are None for free ones.

    A bound Gaussian's axes are its triangle's: x along the first edge, z along the normal. Its mean lies on the
    triangle, or `offset` off it along the normal: the screen-space dilation makes every splat bulge, and sinking them a
    little under the surface puts the silhouette back where it belongs.
    """

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4] wxyz
    scales: Tensor  # [N, 3] standard deviations
    opacities: Tensor  # [N] in 0..1
    colors: Tensor  # [N, 3] in 0..1
    face: Tensor | None = None  # [N] int64
    barycentric: Tensor | None = None  # [N, 3]
    offset: Tensor | None = None  # [N] world units along the normal

    def __len__(self) -> int:
        return len(self.means)

    def to(self, device: torch.device | str) -> "Gaussians":
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)

    def with_colors(self, colors: Tensor) -> "Gaussians":
        """The same Gaussians in known colours [N, 3], for instance the code of each one's rest position."""
        return replace(self, colors=colors.to(self.means))

    def follow(self, vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Where the Gaussians are when the mesh's vertices are elsewhere.

        Args:
            vertices: [..., V, 3] world units; leading dimensions are frames.
            faces: [F, 3] int64, the faces that `from_mesh` was given.

        Returns:
            means [..., N, 3] and quats [..., N, 4] (unit, wxyz), differentiable in vertices.

        Raises:
            ValueError: the Gaussians are not bound to a mesh.
        """
        if self.face is None or self.barycentric is None or self.offset is None:
            raise ValueError("These Gaussians are not bound to a mesh, so vertices cannot move them.")
        corners = vertices[..., faces[self.face], :]  # [..., N, 3, 3]
        frames = _triangle_frames(corners)
        means = (self.barycentric[..., None].to(corners) * corners).sum(-2)
        means = means + self.offset[:, None].to(corners) * frames[..., 2]
        return means, matrices_to_quaternions(frames)


def from_mesh(vertices: Tensor, faces: Tensor, count: int, seed: int = 0) -> Gaussians:
    """Covers a mesh with `count` flat, grey Gaussians that are bound to it.

    Vertices that belong to no face, and faces without area, are not covered.

    Args:
        vertices: [V, 3] world units.
        faces: [F, 3] int64.
        count: how many, at least 1.
        seed: of the placement.

    Raises:
        ValueError: there is nothing to cover, or `faces` names vertices that are not there.
    """
    if count < 1:
        raise ValueError("At least one Gaussian is needed to cover a mesh.")
    if len(faces) == 0:
        raise ValueError("The mesh has no faces.")
    if int(faces.min()) < 0 or int(faces.max()) >= len(vertices):
        raise ValueError("The mesh has faces that refer to vertices it does not have.")
    corners = vertices.detach().cpu().double()[faces.cpu()]
    area = 0.5 * torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1)
    area = float(area[area.isfinite()].sum())
    if not area > 0:
        raise ValueError("The mesh has no surface: all its faces have zero area.")
    face, barycentric = sample_surface(corners.numpy(), count, seed)
    own = corners[torch.from_numpy(face)]
    means = (torch.from_numpy(barycentric)[..., None] * own).sum(1)
    frames = _triangle_frames(own)
    typical = (area / count) ** 0.5
    size = COVERAGE * torch.from_numpy(spacing(means.numpy(), np.ascontiguousarray(frames[..., 2]), typical))
    return Gaussians(
        means.float(),
        matrices_to_quaternions(frames).float(),
        torch.stack([size, size, FLATNESS * size], -1).float(),
        torch.full((count,), START_OPACITY),
        torch.full((count, 3), 0.5),
        torch.from_numpy(face),
        torch.from_numpy(barycentric).float(),
        torch.zeros(count),
    )


def _triangle_frames(corners: Tensor) -> Tensor:
    """Corners [..., 3, 3] to rotations [..., 3, 3] with columns (first edge, the third axis, normal).

    A triangle that has collapsed while moving has no frame; what comes out is finite, and that is all.
    """
    edge = corners[..., 1, :] - corners[..., 0, :]
    normal = torch.linalg.cross(edge, corners[..., 2, :] - corners[..., 0, :])
    edge, normal = _unit(edge), _unit(normal)
    return torch.stack([edge, torch.linalg.cross(normal, edge), normal], -1)


def _unit(vector: Tensor) -> Tensor:
    """[..., 3] to length 1; zero stays zero, with a zero gradient instead of NaN."""
    square = vector.square().sum(-1, keepdim=True)
    fine = square > torch.finfo(vector.dtype).tiny
    return torch.where(fine, vector / torch.where(fine, square, 1.0).sqrt(), 0.0)


def matrices_to_quaternions(matrices: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] to unit quaternions wxyz [..., 4], differentiable everywhere.

    Each of four formulas divides by one component; every matrix takes the one whose component is largest.
    """
    m = matrices
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    squares = torch.stack([1 + xx + yy + zz, 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz], -1)  # 4 q²
    x, y, z = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]  # 4 w (x, y, z)
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]  # 4 xy, ...
    w2, x2, y2, z2 = squares.unbind(-1)
    rows = torch.stack([w2, x, y, z, x, x2, xy, xz, y, xy, y2, yz, z, xz, yz, z2], -1).unflatten(-1, (4, 4))
    best = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    return torch.nn.functional.normalize(rows.gather(-2, best)[..., 0, :], dim=-1)
