"""The paper's motion field: a HexPlane with global rigid motion and small networks, sized as released."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.motion.rotations import in_reference_sign, matrix_to_quaternion, quaternion_product
from backend.protocol import UserError, read_npz, write_npz

PLANES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))  # xy, xz, xt, yz, yt, zt
PAPER_RESOLUTIONS = ((50, 50, 50, 8), (100, 100, 100, 16))
CHUNK = 65536  # points read at once: bounds memory for meshes of any size


class HexPlane(nn.Module):
    """`fields.MotionField`. Points are raw subject coordinates; outside [-1, 1] the border's feature counts."""

    def __init__(
        self,
        anchors: Tensor,
        resolutions: tuple[tuple[int, int, int, int], ...] = PAPER_RESOLUTIONS,
        channels: int = 16,
        hidden: int = 32,
        generator: torch.Generator | None = None,
    ) -> None:
        """anchors [A, 3]: the points whose mean feature drives the global motion (the paper's: all Gaussians)."""
        super().__init__()
        self.register_buffer("anchors", anchors)
        self.grids = nn.ModuleList(
            nn.ParameterList(_new_plane(size, pair, channels, generator) for pair in PLANES) for size in resolutions
        )
        width = channels * len(resolutions)
        self.delta_xyz, self.delta_rotation, self.delta_scale, self.global_rotation, self.global_translation = (
            _new_network(width, hidden, out, generator) for out in (3, 4, 3, 3, 3)
        )
        self.to(anchors.device)

    def save(self, path: Path) -> None:
        """Everything, anchors included, in one `.npz`."""
        write_npz(path, **{name: value.cpu().numpy() for name, value in self.state_dict().items()})

    def restore(self, path: Path) -> None:
        """Takes over what a field of the same sizes saved. Raises `UserError` where the file is none such."""
        arrays = read_npz(path, tuple(self.state_dict()))
        state = {name: torch.from_numpy(value).to(self.anchors.device) for name, value in arrays.items()}
        self.anchors = state["anchors"]
        try:
            self.load_state_dict(state)
        except RuntimeError:
            raise UserError(f"The file {path.name} in the job folder is damaged.", "Start the job again.") from None

    def features(self, points: Tensor, times: Tensor) -> Tensor:
        """Points [N, 3] at times [T] -> [T, N, scales * channels]: product over planes, scales side by side."""
        return self._features(points, times).permute(1, 2, 0)

    def _features(self, points: Tensor, times: Tensor) -> Tensor:
        """The same, channels first: [scales * channels, T, N]."""
        result = []
        for planes in self.grids:
            read = [
                self._read(plane, points[:, i], points[:, j] if j < 3 else None, times)
                for plane, (i, j) in zip(planes, PLANES, strict=True)
            ]
            still, moving = (read[k] for k in (0, 1, 3)), (read[k] for k in (2, 4, 5))
            result.append(math.prod(still) * math.prod(moving))
        return torch.cat(result)

    @staticmethod
    def _read(plane: Tensor, width: Tensor, height: Tensor | None, times: Tensor) -> Tensor:
        """Bilinear samples of plane [1, C, H, W] at (width, height) [N], or at every (width [N], time [T]).

        -> [C, 1 or T, N]
        """
        if height is None:
            grid = torch.stack(torch.broadcast_tensors(width[None, :], times[:, None]), dim=-1)
        else:
            grid = torch.stack([width, height], dim=-1)[None]
        sampled = functional.grid_sample(
            plane, grid[None].to(plane.dtype), mode="bilinear", padding_mode="border", align_corners=True
        )
        return sampled[0]

    def global_motion(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """One rigid motion per time [T]: matrices [T, 3, 3] and translations [T, 3]; the identity at the start."""
        return self._whole(self._features(self.anchors, times))

    def _whole(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`global_motion` from the anchors' features [scales * channels, T, N]."""
        mean = features.mean(dim=2).T
        roll, pitch, yaw = (2 * math.pi * self.global_rotation(mean).sigmoid() - math.pi).unbind(-1)
        return euler_matrix(roll, pitch, yaw), 2 * self.global_translation(mean).sigmoid() - 1

    def positions(self, points: Tensor, times: Tensor) -> Tensor:
        """Points [N, 3] at times [T] -> [T, N, 3]."""
        return self.deform(points, times)[0]

    def deform(self, points: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Points [N, 3] at times [T] -> positions [T, N, 3], rotations [T, N, 4] of points at rest orientation."""
        turn, shift = self.global_motion(times)
        parts = [self._deform(points[k : k + CHUNK], times, turn, shift) for k in range(0, len(points), CHUNK)]
        return torch.cat([p[0] for p in parts], dim=1), torch.cat([p[1] for p in parts], dim=1)

    def _deform(self, points: Tensor, times: Tensor, turn: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        feature = self._features(points, times)
        whole = matrix_to_quaternion(turn)[:, None]
        rotations = functional.normalize(whole + _apply(self.delta_rotation, feature), dim=-1)
        return self._places(points, feature, turn, shift), rotations

    def _places(self, points: Tensor, feature: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
        """[T, N, 3]: the whole's motion, then each point's own."""
        return points @ turn.transpose(-1, -2) + shift[:, None] + _apply(self.delta_xyz, feature)

    def deform_gaussians(
        self, means: Tensor, quaternions: Tensor, scales: Tensor | None, times: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """means [N, 3], quaternions [N, 4], scales [N, 3] at times [T] -> the same with a leading [T].

        Exactly as the reference: the global rotation turns the Gaussian, then the rotation delta is added to its
        quaternion. Scales are for refinement; reconstruction, which keeps the static ones, gives None and gets None.
        """
        feature = self._features(means, times)
        turn, shift = self._whole(feature) if means is self.anchors else self.global_motion(times)
        whole = quaternion_product(matrix_to_quaternion(turn)[:, None], functional.normalize(quaternions, dim=-1))
        turned = in_reference_sign(whole)
        rotations = functional.normalize(turned + _apply(self.delta_rotation, feature), dim=-1)
        places = self._places(means, feature, turn, shift)
        return places, rotations, None if scales is None else scales * _apply(self.delta_scale, feature).exp()


def _apply(network: nn.Sequential, features: Tensor) -> Tensor:
    """Features [C, T, N] -> [T, N, out], without a copy of them that has the channels last."""
    first, activation, last = network
    hidden = activation(first.weight @ features.flatten(1))
    return (last.weight @ hidden).unflatten(1, features.shape[1:]).permute(1, 2, 0)


def euler_matrix(roll: Tensor, pitch: Tensor, yaw: Tensor) -> Tensor:
    """Rz(yaw) Ry(pitch) Rx(roll), each [...], as [..., 3, 3]."""
    cr, sr, cp, sp, cy, sy = roll.cos(), roll.sin(), pitch.cos(), pitch.sin(), yaw.cos(), yaw.sin()
    rows = [
        cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr,
        sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr,
        -sp, cp * sr, cp * cr,
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def _new_plane(
    size: tuple[int, int, int, int], pair: tuple[int, int], channels: int, generator: torch.Generator | None
) -> nn.Parameter:
    """[1, C, size_j, size_i]: space planes start random in 0.1..0.5, those with time at 1 (no motion anywhere)."""
    shape = (1, channels, size[pair[1]], size[pair[0]])
    if 3 in pair:
        return nn.Parameter(torch.ones(shape))
    return nn.Parameter(torch.rand(shape, generator=generator) * 0.4 + 0.1)


def _new_network(width: int, hidden: int, out: int, generator: torch.Generator | None) -> nn.Sequential:
    """Linear, ReLU, Linear without biases; the last one starts at zero, so that nothing moves."""
    first, last = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, out, bias=False)
    nn.init.kaiming_uniform_(first.weight, a=math.sqrt(5), generator=generator)
    nn.init.zeros_(last.weight)
    return nn.Sequential(first, nn.ReLU(), last)
