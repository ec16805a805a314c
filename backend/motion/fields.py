"""What every motion field can do: tell where rest points are at any time, and how they are turned."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class MotionField(Protocol):
    """A map from (rest point, time) to (position, rotation). Time -1 is the first frame, 1 the last."""

    def deform(self, points: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Rest points [N, 3] at times [T] -> positions [T, N, 3], unit quaternions (w, x, y, z) [T, N, 4]."""
        ...


def frame_times(frames: int, device: torch.device | None = None) -> Tensor:
    """Times [F] of the frames: frame k of F is at -1 + 2 k / (F - 1)."""
    return torch.linspace(-1.0, 1.0, frames, device=device)
