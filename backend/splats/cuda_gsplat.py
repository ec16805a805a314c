"""The CUDA rasterizer: gsplat's kernels behind our arguments. See `rasterize.rasterize`.

Not tested yet: it was written where there is no GPU. gsplat cuts a splat off where its alpha falls below 1/255 (our
definition fades out there instead), so values may differ from the CPU's by up to 1/255 per splat. gsplat imports
without CUDA and fails on use, and builds its kernels on first use: hence the import inside the function.
"""

import logging
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from .definitions import EPS2D, NEAR

log = logging.getLogger(__name__)


@cache
def gsplat_usable() -> bool:
    """Whether gsplat's kernels can be had: built already, or built now, which takes minutes and NVIDIA's compiler.

    Asked once; the answer stays.
    """
    if find_spec("gsplat") is None:
        return False
    try:
        from gsplat.cuda._backend import _C
    except Exception as error:  # whatever a failed build raises
        log.warning("gsplat's kernels can't be built (%s); Gaussians are drawn on the CPU", error)
        return False
    if _C is None:
        log.warning("gsplat has no kernels and there is no nvcc to build them; Gaussians are drawn on the CPU")
    return _C is not None


def rasterize_gsplat(
    means: Tensor,  # [Bx, N, 3], each Bx being 1 or B; CUDA
    quats: Tensor,  # [Bx, N, 4]
    scales: Tensor,  # [Bx, N, 3]
    opacities: Tensor,  # [Bx, N]
    colors: Tensor,  # [Bx, N, 3]
    view: Tensor,  # [B, 4, 4] world to camera, OpenCV frame
    focal: Tensor,  # [B] px
    width: int,
    height: int,
) -> tuple[Tensor, Tensor]:
    """Premultiplied rgb [B, H, W, 3] and alpha [B, H, W], float32, differentiable in the first five arguments."""
    if not torch.cuda.is_available():
        raise RuntimeError("The gsplat rasterizer needs a CUDA device.")
    from gsplat import rasterization

    device, images = means.device, len(focal)
    inputs = [t.float() for t in (means, quats, scales, opacities, colors)]
    camera = view.float().to(device)
    intrinsics = _intrinsics(focal.float().to(device), width, height)
    settings = {"near_plane": NEAR, "eps2d": EPS2D, "packed": False, "rasterize_mode": "classic", "render_mode": "RGB"}
    if all(len(t) == 1 for t in inputs):  # one scene, many cameras: gsplat shares the work
        scene = [t[0] for t in inputs]
        rgb, alpha, _ = rasterization(*scene, camera, intrinsics, width, height, **settings)
        return rgb, alpha[..., 0]
    scenes = [t.expand(images, *t.shape[1:]).contiguous() for t in inputs]  # one scene and one camera per image
    rgb, alpha, _ = rasterization(*scenes, camera[:, None], intrinsics[:, None], width, height, **settings)
    return rgb[:, 0], alpha[:, 0, ..., 0]


def _intrinsics(focal: Tensor, width: int, height: int) -> Tensor:
    """Focal lengths [B] in px to pinhole matrices [B, 3, 3]."""
    matrix = torch.zeros(len(focal), 3, 3, dtype=focal.dtype, device=focal.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = focal
    matrix[:, 0, 2], matrix[:, 1, 2], matrix[:, 2, 2] = width / 2, height / 2, 1.0
    return matrix
