"""Colours, sizes and opacities of bound Gaussians from pictures of the object at rest."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .gaussians import Gaussians
from .rasterize import rasterize
from .reference import quaternions_to_matrices


@dataclass(frozen=True)
class AppearanceSettings:
    shape_steps: int = 30
    """Adam steps on sizes and opacities, so that the silhouette is right: a soft rim pulls a motion fit inwards."""
    views_per_step: int = 4
    scale_rate: float = 0.03
    opacity_rate: float = 0.1
    offset_rate: float = 0.1
    """Of bound splats along the normal, in units of their size."""
    largest_change: float = 3.0
    """Sizes stay within this factor of where they began, offsets within this many sizes."""
    color_steps: int = 4
    """Conjugate gradient steps on the colours."""
    faithfulness: float = 0.05
    """Weight that holds the colours at the views' average; keeps splats that are hardly seen from running away."""
    seen: float = 0.05
    """A splat that fills less than this fraction of the pixels that a splat fills on average counts as hidden."""
    neighbours: int = 4
    seed: int = 0


DEFAULTS = AppearanceSettings()


def solve_colors(
    gaussians: Gaussians,
    images: Tensor,  # [K, H, W, 4] premultiplied RGBA in 0..1
    c2w: Tensor,  # [K, 4, 4] OpenGL cameras
    fovy_degrees: float | Tensor,  # one number or [K]
    settings: AppearanceSettings = DEFAULTS,
) -> Gaussians:
    """The Gaussians in the colours of the views, with sizes and opacities that reproduce the silhouette.

    Splats that no view sees take the mean colour of the nearest ones that are seen.

    Raises:
        ValueError: the images do not fit the cameras, or no splat is seen in any of them.
    """
    views = _views(images, c2w, fovy_degrees)
    average, weight = _average_colors(gaussians, views)
    if not bool((weight > 0).any()):
        raise ValueError("None of the appearance views shows the object.")
    gaussians = _fill_hidden(gaussians.with_colors(average), _is_seen(weight, settings), settings)
    gaussians = refine_shape(gaussians, images, c2w, fovy_degrees, settings)
    average, weight = _average_colors(gaussians, views)
    seen = _is_seen(weight, settings)
    colors = _least_squares(gaussians.with_colors(average), weight, seen, views, settings)
    return _fill_hidden(gaussians.with_colors(colors), seen, settings)


def refine_shape(
    gaussians: Gaussians,
    images: Tensor,  # [K, H, W, 4] premultiplied RGBA in 0..1
    c2w: Tensor,  # [K, 4, 4] OpenGL cameras
    fovy_degrees: float | Tensor,  # one number or [K]
    settings: AppearanceSettings = DEFAULTS,
) -> Gaussians:
    """Fits sizes, opacities and (bound splats only) offsets to the views; colours stay (known, or nearly right).

    Raises:
        ValueError: the images do not fit the cameras.
    """
    views = _views(images, c2w, fovy_degrees)
    shape = _Shape(gaussians, settings)
    adam = torch.optim.Adam(shape.groups, betas=(0.8, 0.95))
    generator = torch.Generator().manual_seed(settings.seed)
    touched = torch.zeros_like(gaussians.opacities)
    for step in range(settings.shape_steps):
        if step > settings.shape_steps // 2:
            for group in adam.param_groups:
                group["lr"] *= 0.9
        part = views.some(torch.randperm(len(c2w), generator=generator)[: settings.views_per_step])
        rgb, alpha = _draw(shape.gaussians(), part)
        adam.zero_grad()
        (torch.cat([rgb, alpha[..., None]], -1) - part.images).square().sum().backward()
        touched += shape.opacity.grad.abs()
        adam.step()
    # Adam moves a splat by full steps however faint its gradient is: what no view shows stays as it was.
    return shape.gaussians(moved=touched > 1e-3 * touched.mean())


class _Shape:
    """What `refine_shape` varies, as unbounded parameters."""

    def __init__(self, start: Gaussians, settings: AppearanceSettings):
        self.start, self.bound = start, settings.largest_change
        self.scale = torch.zeros_like(start.scales).requires_grad_()
        self.opacity = torch.logit(start.opacities.clamp(0.01, 0.99)).requires_grad_()
        self.offset = torch.zeros_like(start.opacities).requires_grad_()
        self.normal = quaternions_to_matrices(start.quats)[..., 2]
        self.groups = [
            {"params": [self.scale], "lr": settings.scale_rate},
            {"params": [self.opacity], "lr": settings.opacity_rate},
        ]
        if start.offset is not None:
            self.groups.append({"params": [self.offset], "lr": settings.offset_rate})

    def gaussians(self, moved: Tensor | None = None) -> Gaussians:
        """The present state; with moved [N] bool a final one, without gradients and changed only where true."""
        start, bound = self.start, self.bound
        factor = self.scale.exp().clamp(1 / bound, bound)
        opacity = self.opacity.sigmoid()
        offset = self.offset.clamp(-bound, bound) * start.scales[:, 0]
        if moved is not None:
            factor = torch.where(moved[:, None], factor.detach(), 1.0)
            opacity = torch.where(moved, opacity.detach(), start.opacities)
            offset = torch.where(moved, offset.detach(), 0.0)
        now = replace(start, scales=start.scales * factor, opacities=opacity)
        if start.offset is None:
            return now
        return replace(now, means=start.means + offset[:, None] * self.normal, offset=start.offset + offset)


@dataclass(frozen=True)
class _Views:
    images: Tensor  # [K, H, W, 4]
    c2w: Tensor  # [K, 4, 4]
    fovy: Tensor  # [K]

    def some(self, index: Tensor) -> "_Views":
        return _Views(self.images[index], self.c2w[index], self.fovy[index])


def _views(images: Tensor, c2w: Tensor, fovy_degrees: float | Tensor) -> _Views:
    if images.dim() != 4 or images.shape[-1] != 4 or len(images) != len(c2w):
        raise ValueError(f"{len(c2w)} cameras want images [K, H, W, 4], not {tuple(images.shape)}.")
    return _Views(images, c2w, torch.as_tensor(fovy_degrees).expand(len(c2w)))


def _draw(gaussians: Gaussians, views: _Views) -> tuple[Tensor, Tensor]:
    height, width = views.images.shape[1:3]
    g = gaussians
    return rasterize(g.means, g.quats, g.scales, g.opacities, g.colors, views.c2w, views.fovy, width, height)


def _average_colors(gaussians: Gaussians, views: _Views) -> tuple[Tensor, Tensor]:
    """Mean colour [N, 3] of the pixels that each splat shows up in, and how many pixels it fills [N].

    The picture is linear in the colours, so the transposed operator is one backward pass.
    """
    colors = torch.zeros_like(gaussians.colors, requires_grad=True)
    rgb, _ = _draw(gaussians.with_colors(colors), views)
    spread = [views.images[..., :3], views.images[..., 3:].expand_as(rgb)]
    shown, covered = (torch.autograd.grad(rgb, colors, image.to(rgb), retain_graph=True)[0] for image in spread)
    weight = covered[:, 0]
    return (shown / weight[:, None].clamp_min(1e-6)).clamp(0, 1), weight


def _is_seen(weight: Tensor, settings: AppearanceSettings) -> Tensor:
    """[N] bool: splats that fill a fair share of pixels, from their weight [N]."""
    return weight > settings.seen * weight[weight > 0].mean()


def _least_squares(
    gaussians: Gaussians,  # in colours to start from
    weight: Tensor,  # [N] pixels
    seen: Tensor,  # [N] bool; the others keep their colours
    views: _Views,
    settings: AppearanceSettings,
) -> Tensor:
    """Colours [N, 3] that reproduce the views best: conjugate gradients, preconditioned with each splat's weight."""
    diagonal = weight.clamp_min(1e-6)[:, None]

    def normal_equations(colors: Tensor, target: Tensor | float) -> Tensor:
        colors = colors.detach().requires_grad_()
        rgb, _ = _draw(gaussians.with_colors(colors), views)
        return torch.autograd.grad(rgb, colors, rgb.detach() - target)[0] * seen[:, None]

    start = gaussians.colors
    change = torch.zeros_like(start)
    residual = -normal_equations(start, views.images[..., :3].to(start))
    direction = residual / diagonal
    power = (residual * direction).sum(0)
    for _ in range(settings.color_steps):
        image = normal_equations(direction, 0.0) + settings.faithfulness * diagonal * direction
        step = power / (direction * image).sum(0).clamp_min(1e-12)
        change = change + step * direction
        residual = residual - step * image
        new_power = (residual.square() / diagonal).sum(0)
        direction = residual / diagonal + new_power / power.clamp_min(1e-12) * direction
        power = new_power
    return (start + change).clamp(0, 1)


def _fill_hidden(gaussians: Gaussians, is_seen: Tensor, settings: AppearanceSettings) -> Gaussians:
    """Gives splats that are not seen ([N] bool) the mean colour of the nearest ones that are."""
    hidden, seen = torch.nonzero(~is_seen)[:, 0], torch.nonzero(is_seen)[:, 0]
    colors = gaussians.colors.clone()
    nearest = min(settings.neighbours, len(seen))
    for part in hidden.split(2048):  # bounds the distance matrix
        distance = torch.cdist(gaussians.means[part], gaussians.means[seen])
        colors[part] = gaussians.colors[seen[distance.topk(nearest, largest=False).indices]].mean(1)
    return gaussians.with_colors(colors)
