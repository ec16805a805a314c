"""The rasterizer in plain torch, for tests and small inputs: float64, every splat against every pixel, autograd.

Same arguments and definitions as `rasterize.rasterize`; memory is N * H * W * 8 bytes per image and intermediate.
"""

import torch
from torch import Tensor

from .definitions import (
    ALPHA_MAX,
    CUT,
    EPS2D,
    FRUSTUM_MARGIN,
    MIN_TRANSMITTANCE,
    NEAR,
    TAIL,
)


def rasterize_reference(
    means: Tensor,  # [Bx, N, 3], each Bx being 1 or B
    quats: Tensor,  # [Bx, N, 4]
    scales: Tensor,  # [Bx, N, 3]
    opacities: Tensor,  # [Bx, N]
    colors: Tensor,  # [Bx, N, 3]
    view: Tensor,  # [B, 4, 4] world to camera, OpenCV frame
    focal: Tensor,  # [B] px
    width: int,
    height: int,
) -> tuple[Tensor, Tensor]:
    """Premultiplied rgb [B, H, W, 3] and alpha [B, H, W], float64, differentiable in the first five arguments."""
    images = len(focal)
    each = (t.double().expand(images, *t.shape[1:]) for t in (means, quats, scales, opacities, colors))
    rendered = [_render(*one, width, height) for one in zip(*each, view.double(), focal.double(), strict=True)]
    rgb, alpha = zip(*rendered, strict=True)
    return torch.stack(rgb), torch.stack(alpha)


def quaternions_to_matrices(quats: Tensor) -> Tensor:
    """wxyz quaternions [..., 4] of any length to rotation matrices [..., 3, 3]."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def _render(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, 3]
    view: Tensor,  # [4, 4]
    focal: Tensor,  # []
    width: int,
    height: int,
) -> tuple[Tensor, Tensor]:
    """One image: rgb [H, W, 3], alpha [H, W]."""
    points = means @ view[:3, :3].T + view[:3, 3]
    order = torch.argsort(points[:, 2], stable=True)
    order = order[points[order, 2] > NEAR]
    points, opacities, colors = points[order], opacities[order], colors[order]
    size = torch.tensor([width, height], dtype=points.dtype)
    centre = focal * points[:, :2] / points[:, 2:] + size / 2
    cov = _screen_covariance(points, quats[order], scales[order], view, focal, FRUSTUM_MARGIN * size / 2 / focal)

    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    offset = centre[:, None] - torch.stack([x, y], -1).reshape(1, -1, 2)  # [N, H * W, 2]
    exponent = 0.5 * torch.einsum("npi,nij,npj->np", offset, torch.linalg.inv(cov), offset)
    height_ = torch.where(exponent < CUT, (torch.exp(-exponent) - TAIL) / (1 - TAIL), 0.0)
    alpha = (opacities[:, None] * height_).clamp_max(ALPHA_MAX)
    after = torch.cumprod(1 - alpha, 0)
    before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    weight = torch.where(after > MIN_TRANSMITTANCE, before * alpha, 0.0)
    return (weight.T @ colors).reshape(height, width, 3), weight.sum(0).reshape(height, width)


def _screen_covariance(
    points: Tensor,  # [N, 3] camera frame
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    view: Tensor,  # [4, 4]
    focal: Tensor,  # []
    limit: Tensor,  # [2] largest slope for the Jacobian
) -> Tensor:
    """[N, 2, 2] px²."""
    axes = view[:3, :3] @ quaternions_to_matrices(quats) * scales[:, None]
    z = points[:, 2]
    slope = torch.clamp(points[:, :2] / z[:, None], -limit, limit)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([focal / z, zero, -focal * slope[:, 0] / z, zero, focal / z, -focal * slope[:, 1] / z], -1)
    on_screen = jacobian.unflatten(-1, (2, 3)) @ axes
    return on_screen @ on_screen.mT + EPS2D * torch.eye(2, dtype=z.dtype)
