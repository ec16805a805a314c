"""What MV-VDM is told about a camera (as the released model was told).

World: z up, right handed. A camera is a camera-to-world matrix with columns (right, up, -lookat, position), i.e. it
looks along its own -z. The network sees the direction only: the position is scaled to length 1, and neither distance
nor field of view enters.
"""

import numpy as np
import torch

LENGTH_EPSILON = 1e-8


def camera_vectors(c2w: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Conditioning vectors of cameras: c2w [..., 4, 4] -> float32 [..., 16], row by row, the position of length 1."""
    matrix = torch.as_tensor(c2w).double().clone()
    position = matrix[..., :3, 3]
    matrix[..., :3, 3] = position / (position.norm(dim=-1, keepdim=True) + LENGTH_EPSILON)
    return matrix.flatten(-2).float()
