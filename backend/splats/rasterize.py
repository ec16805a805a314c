"""The one way to draw Gaussians: gsplat draws CUDA tensors where it has kernels, numba's kernels all the others."""

import torch
from torch import Tensor

from .cpu import rasterize_cpu
from .cuda_gsplat import gsplat_usable, rasterize_gsplat
from .definitions import focal_length, world_to_camera
from .reference import rasterize_reference


def rasterize(
    means: Tensor,  # [B, N, 3] or [N, 3] world units
    quats: Tensor,  # [B, N, 4] or [N, 4] wxyz, any length
    scales: Tensor,  # [B, N, 3] or [N, 3] standard deviations, world units
    opacities: Tensor,  # [B, N] or [N] in 0..1
    colors: Tensor,  # [B, N, 3] or [N, 3]
    c2w: Tensor,  # [B, 4, 4] camera to world, OpenGL frame
    fovy_degrees: float | Tensor,  # one number or [B]
    width: int,
    height: int,
    background: Tensor | None = None,  # [3] or [B, 3]
    keep: Tensor | None = None,  # [B, N] bool: who gets gradients in which image; all where None
    reference: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draws B images of N Gaussians; image b has camera b and its own row of every input that has a leading B.

    Cameras look along their -z with x right and y up (OpenGL); z is up in the world. Definitions: see `definitions`.

    Returns:
        rgb [B, H, W, 3], premultiplied by alpha (plus the background seen through it, if one is given), and alpha
        [B, H, W] in 0..1; top row first. Differentiable in means, quats, scales, opacities, colors and background, not
        in the cameras. With `reference`, from the slow float64 implementation for small inputs.

    Raises:
        ValueError: shapes that do not fit together.
    """
    images = len(c2w)
    inputs = [
        _with_images(name, tensor, rank, images)
        for name, tensor, rank in (
            ("means", means, 3),
            ("quats", quats, 3),
            ("scales", scales, 3),
            ("opacities", opacities, 2),
            ("colors", colors, 3),
        )
    ]
    _check_shapes(inputs, c2w)
    on_cuda = means.is_cuda and gsplat_usable()
    draw = rasterize_reference if reference else rasterize_gsplat if on_cuda else rasterize_cpu
    camera = (world_to_camera(c2w.detach().double()), focal_length(fovy_degrees, height, images))
    if keep is None:
        rgb, alpha = draw(*inputs, *camera, width, height)
    elif draw is rasterize_cpu:  # saves the work of the others
        rgb, alpha = draw(*inputs, *camera, width, height, keep)
    else:
        rgb, alpha = draw(*_kept(inputs, keep), *camera, width, height)
    if background is not None:
        rgb = rgb + (1 - alpha[..., None]) * background.reshape(-1, 1, 1, 3)
    return rgb, alpha


def _with_images(name: str, tensor: Tensor, rank: int, images: int) -> Tensor:
    """Gives the tensor its leading dimension: 1 where all images share it."""
    batched = tensor if tensor.dim() == rank else tensor[None]
    if batched.dim() != rank or len(batched) not in (1, images):
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, which does not fit {images} images.")
    return batched


def _kept(inputs: list[Tensor], keep: Tensor) -> list[Tensor]:
    """The same values, of which only those that keep [B, N] holds have gradients."""
    masks = (keep.reshape(*keep.shape, *[1] * (t.dim() - 2)) for t in inputs)
    return [torch.where(mask, t, t.detach()) if t.requires_grad else t for mask, t in zip(masks, inputs, strict=True)]


def _check_shapes(inputs: list[Tensor], c2w: Tensor) -> None:
    means, quats, scales, opacities, colors = inputs
    count = means.shape[1]
    wanted = ((means, (3,)), (quats, (4,)), (scales, (3,)), (opacities, ()), (colors, (3,)))
    if any(tuple(t.shape[1:]) != (count, *tail) for t, tail in wanted):
        shapes = ", ".join(str(tuple(t.shape)) for t in inputs)
        raise ValueError(f"The Gaussians' tensors do not fit together: {shapes}.")
    if c2w.dim() != 3 or c2w.shape[1:] != (4, 4):
        raise ValueError(f"c2w has the shape {tuple(c2w.shape)}, but [B, 4, 4] is wanted.")
