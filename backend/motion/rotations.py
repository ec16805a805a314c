"""Batched rotations: quaternions (w, x, y, z), matrices, and the rotation nearest to a matrix in closed form."""

from __future__ import annotations

import torch
from torch import Tensor


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """[..., 4], of any length but zero -> [..., 3, 3]."""
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] -> unit quaternions [..., 4], in the reference's choice of sign.

    The four rows below are all multiples of the quaternion: the first is used where the trace is positive, else that
    of the largest diagonal entry, and the entry that names the row comes out positive.
    """
    m = matrix
    a, b, c = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    x, y, z = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    rows = torch.stack(
        [
            torch.stack([1 + a + b + c, x, y, z], dim=-1),
            torch.stack([x, 1 + a - b - c, xy, xz], dim=-1),
            torch.stack([y, xy, 1 - a + b - c, yz], dim=-1),
            torch.stack([z, xz, yz, 1 - a - b + c], dim=-1),
        ],
        dim=-2,
    )
    best = torch.where(a + b + c > 0, 0, 1 + torch.stack([a, b, c], dim=-1).argmax(dim=-1))
    picked = torch.gather(rows, -2, best[..., None, None].expand(*best.shape, 1, 4))[..., 0, :]
    return torch.nn.functional.normalize(picked, dim=-1)


def in_reference_sign(quaternion: Tensor) -> Tensor:
    """Unit quaternions [..., 4] with the sign that `matrix_to_quaternion` would give them."""
    q = quaternion.detach()
    largest = q[..., 1:].abs().argmax(dim=-1, keepdim=True)
    named = torch.where(q[..., :1].abs() > 0.5, q[..., :1], q[..., 1:].gather(-1, largest))
    return torch.where(named < 0, -quaternion, quaternion)


def rotation_vector_to_matrix(vector: Tensor) -> Tensor:
    """Axis times angle [..., 3] -> [..., 3, 3]."""
    return quaternion_to_matrix(rotation_vector_to_quaternion(vector))


def matrix_to_rotation_vector(matrix: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] to axis times angle [..., 3], at most half a turn."""
    quaternion = matrix_to_quaternion(matrix)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    sine = quaternion[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, quaternion[..., :1])
    return quaternion[..., 1:] * torch.where(sine > 1e-6, angle / sine.clamp_min(1e-12), torch.full_like(sine, 2.0))


def rotation_vector_to_quaternion(vector: Tensor) -> Tensor:
    """Axis times angle [..., 3] -> unit [..., 4]; differentiable everywhere, at no rotation too."""
    square = vector.square().sum(dim=-1, keepdim=True)
    small = square < 1e-12
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    scale = torch.where(small, 0.5 - square / 48, torch.sin(0.5 * angle) / angle)
    real = torch.where(small, 1 - square / 8, torch.cos(0.5 * angle))
    return torch.cat([real, vector * scale], dim=-1)


def quaternion_product(left: Tensor, right: Tensor) -> Tensor:
    """Hamilton product [..., 4] of [..., 4] and [..., 4]: turns by `right` first."""
    w, v = left[..., :1], left[..., 1:]
    s, u = right[..., :1], right[..., 1:]
    real = w * s - (v * u).sum(dim=-1, keepdim=True)
    return torch.cat([real, w * u + s * v + torch.linalg.cross(*torch.broadcast_tensors(v, u))], dim=-1)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation R [..., 3, 3] with the largest trace(R^T M) for M [..., 3, 3]: the polar one, never a mirror.

    Horn's quaternion form: the answer is the eigenvector of a symmetric 4 x 4 matrix to its largest eigenvalue, which
    Newton's method finds on the quartic, and the eigenvector is a row of the adjugate. No loop over matrices, and on
    any device; only matrices without a unique answer (rank below 2, ties) are given to the SVD.
    """
    m = matrix.detach().double()
    size = m.flatten(-2).norm(dim=-1).clamp_min(1e-300)
    m = m / size[..., None, None]
    horn = _horn(m)
    largest = _largest_root(m)
    shifted = horn - largest[..., None, None] * torch.eye(4, dtype=m.dtype, device=m.device)
    adjugate = _adjugate(shifted)
    length = adjugate.norm(dim=-1)
    best = length.argmax(dim=-1)
    quaternion = torch.gather(adjugate, -2, best[..., None, None].expand(*best.shape, 1, 4))[..., 0, :]
    rotation = quaternion_to_matrix(quaternion)
    unsure = length.amax(dim=-1) < 1e-6
    if unsure.any():
        rotation[unsure] = nearest_rotation_svd(m[unsure])
    return rotation.to(matrix.dtype)


def nearest_rotation_svd(matrix: Tensor) -> Tensor:
    """The same by singular values, the axis of the smallest flipped where needed; [N, 3, 3] -> [N, 3, 3]."""
    u, _, vh = torch.linalg.svd(matrix)
    sign = torch.ones_like(matrix[..., 0])
    sign[..., 2] = torch.where(torch.linalg.det(u @ vh) > 0, 1.0, -1.0)
    return (u * sign[..., None, :]) @ vh


def _horn(m: Tensor) -> Tensor:
    """Symmetric [..., 4, 4] with q^T N q = trace(R(q)^T M) for unit q."""
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    x, y, z = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    rows = [xx + yy + zz, x, y, z, x, xx - yy - zz, xy, xz, y, xy, yy - xx - zz, yz, z, xz, yz, zz - xx - yy]
    return torch.stack(rows, dim=-1).unflatten(-1, (4, 4))


def _largest_root(m: Tensor) -> Tensor:
    """Largest eigenvalue [...] of `_horn(m)`: root of l^4 - 2 |M|^2 l^2 - 8 det(M) l + det(N), by Newton from above."""
    square = (m * m).flatten(-2).sum(dim=-1)
    gram = m.transpose(-1, -2) @ m
    minors = 0.5 * (square**2 - (gram * gram).flatten(-2).sum(dim=-1))  # sum of squared products of singular values
    det = torch.linalg.det(m)
    c2, c1, c0 = -2 * square, -8 * det, square**2 - 4 * minors
    root = (3 * square).sqrt()  # no sum of three singular values is larger
    for _ in range(50):
        value = ((root * root + c2) * root + c1) * root + c0
        slope = (4 * root * root + 2 * c2) * root + c1
        root = root - torch.where(slope > 1e-12, value / slope.clamp_min(1e-12), torch.zeros_like(value))
    return root


def _adjugate(a: Tensor) -> Tensor:
    """Adjugate [..., 4, 4] of symmetric [..., 4, 4], from 2 x 2 minors."""

    def minor(rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        (i, j), (k, n) = rows, columns
        return a[..., i, k] * a[..., j, n] - a[..., i, n] * a[..., j, k]

    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    top = {p: minor((0, 1), p) for p in pairs}
    low = {p: minor((2, 3), p) for p in pairs}

    def cofactor(row: int, column: int) -> Tensor:
        """Signed determinant of `a` without this row and column."""
        c = [k for k in range(4) if k != column]
        other = {0: 1, 1: 0, 2: 3, 3: 2}[row]
        half = low if row < 2 else top
        value = (
            a[..., other, c[0]] * half[(c[1], c[2])]
            - a[..., other, c[1]] * half[(c[0], c[2])]
            + a[..., other, c[2]] * half[(c[0], c[1])]
        )
        return value if (row + column) % 2 == 0 else -value

    return torch.stack([torch.stack([cofactor(i, j) for j in range(4)], dim=-1) for i in range(4)], dim=-2)
