"""Colours that depend on the direction of view: real spherical harmonics up to degree 3, in the signs of 3DGS."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .ply import SH_C0


def basis(directions: Tensor, degree: int) -> Tensor:
    """Unit directions [..., 3] -> the functions of one degree [..., 2 degree + 1]."""
    x, y, z = directions.unbind(-1)
    if degree == 0:
        return torch.full_like(x, SH_C0)[..., None]
    if degree == 1:
        return 0.4886025119029199 * torch.stack([-y, z, -x], -1)
    xx, yy, zz = x * x, y * y, z * z
    if degree == 2:
        return torch.stack(
            [
                1.0925484305920792 * x * y,
                -1.0925484305920792 * y * z,
                0.31539156525252005 * (2 * zz - xx - yy),
                -1.0925484305920792 * x * z,
                0.5462742152960396 * (xx - yy),
            ],
            -1,
        )
    return torch.stack(
        [
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ],
        -1,
    )


def colors(flat: Tensor, rest: Tensor, directions: Tensor) -> Tensor:
    """Colours [N, 3], clamped below at 0 as in 3DGS.

    Args:
        flat: `f_dc` [N, 3].
        rest: higher coefficients [N, 3, K] for K = 0, 3, 8 or 15, channel first as in the files.
        directions: [N, 3] from the camera to the Gaussian, unit length, in the file's own axes.
    """
    total, start = 0.5 + SH_C0 * flat, 0
    for degree in range(1, degree_of(rest.shape[-1]) + 1):
        part = rest[..., start : start + 2 * degree + 1]
        total = total + (part * basis(directions, degree)[:, None]).sum(-1)
        start += 2 * degree + 1
    return total.clamp_min(0.0)


def degree_of(coefficients: int) -> int:
    """The highest degree of so many coefficients beyond the first."""
    return {0: 0, 3: 1, 8: 2, 15: 3}[coefficients]


def rotate(rest: Tensor, rotations: Tensor) -> Tensor:
    """Coefficients [N, 3, K] of Gaussians that were turned by rotations [N, 3, 3], exact.

    Seen from a turned direction, the turned ones look as the others did: c'(R d) = c(d). A degree's functions of turned
    directions are mixtures of themselves, so a few directions tell the mixture.
    """
    parts, start = [], 0
    for degree in range(1, degree_of(rest.shape[-1]) + 1):
        directions, inverse = _probes(degree)
        before = torch.einsum("nji,dj->ndi", rotations, directions.to(rotations))  # R^T d
        mixture = inverse.to(rotations) @ basis(before, degree)  # [N, 2l + 1, 2l + 1]
        parts.append(rest[..., start : start + 2 * degree + 1] @ mixture.transpose(1, 2))
        start += 2 * degree + 1
    return torch.cat(parts, -1) if parts else rest


@lru_cache(maxsize=4)
def _probes(degree: int) -> tuple[Tensor, Tensor]:
    """Directions [D, 3] and the matrix [2l + 1, D] from values there to coefficients."""
    generator = torch.Generator().manual_seed(degree)
    directions = torch.nn.functional.normalize(torch.randn(4 * degree + 4, 3, generator=generator).double(), dim=-1)
    return directions, torch.linalg.pinv(basis(directions, degree))
