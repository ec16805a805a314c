"""What a Gaussian looks like on the screen: the numbers that every rasterizer here shares, and the cameras.

World: right handed, z up. Camera: `c2w` in the OpenGL frame (x right, y up, looks along -z). Pixel (0, 0) is the top
left one and its centre lies at (0.5, 0.5). Pixels are square, the optical axis goes through the middle of the image.

A splat's alpha at Mahalanobis distance d is ``min(ALPHA_MAX, opacity * (exp(-d²/2) - TAIL) / (1 - TAIL))`` inside
``d²/2 < CUT`` and 0 outside. The usual 3DGS definition is the same without TAIL and jumps from 1/255 to 0 at that
radius. The jump is invisible, but no analytic gradient knows about it, so sizes and positions get gradients that
disagree with finite differences (much so once the gradients of many splats nearly cancel). Subtracting the tail makes
alpha continuous: values differ from 3DGS by less than 1/255 per splat, gradients are exact, and no splat needs a larger
radius.
"""

import math

import torch
from torch import Tensor

EPS2D = 0.3
"""Added to both screen variances, in px²: no splat is narrower than about a pixel."""
TAIL = 1.0 / 255.0
CUT = math.log(255.0)
"""The exponent d²/2 at which the Gaussian has fallen to TAIL (d = 3.33 sigma)."""
ALPHA_MAX = 0.999
MIN_TRANSMITTANCE = 1e-4
"""A pixel takes no further splat once the next one would leave less light than this."""
NEAR = 0.01
"""Splats whose centre is nearer than this (world units, along the axis) are not drawn."""
FRUSTUM_MARGIN = 1.3
"""The perspective Jacobian is taken at most this far out, in half images: beyond, its linearisation explodes."""


def world_to_camera(c2w: Tensor) -> Tensor:
    """OpenGL camera-to-world [..., 4, 4] to OpenCV world-to-camera [..., 4, 4] (y down, looks along +z)."""
    flip = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=c2w.dtype, device=c2w.device)
    return torch.linalg.inv(c2w * flip)


def focal_length(fovy_degrees: float | Tensor, height: int, images: int) -> Tensor:
    """Vertical field of view in degrees (a number or [B]) to focal lengths in pixels [B], float64."""
    fovy = torch.deg2rad(torch.as_tensor(fovy_degrees, dtype=torch.float64))
    return (0.5 * height / torch.tan(0.5 * fovy)).expand(images)
