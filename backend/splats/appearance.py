"""Colours, sizes and opacities of bound Gaussians from pictures of the object at rest."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .gaussians import Gaussians
from .rasterize import rasterize


@dataclass(frozen=True)
class AppearanceSettings:
    shape_steps: int = 30
    """Adam steps on sizes and opacities, so that the silhouette is right: a soft rim pulls a motion fit inwards."""
    views_per_step: int = 4
    scale_rate: float = 0.03
    opacity_rate: float = 0.1
    largest_change: float = 3.0
    """Sizes stay within this factor of where they began."""
    color_steps: int = 6
    """Conjugate gradient steps on the colours."""
    faithfulness: float = 0.02
    """Weight that holds the colours at the views' average; keeps splats that are hardly seen from running away."""
    seen: float = 0.5
    """A splat that fills less than this many pixels, all views together, counts as hidden."""
    neighbours: int = 4
    seed: int = 0


def solve_colors(
    gaussians: Gaussians,
    images: Tensor,  # [K, H, W, 4] premultiplied RGBA in 0..1
    c2w: Tensor,  # [K, 4, 4] OpenGL cameras
    fovy_degrees: float | Tensor,  # one number or [K]
    settings: AppearanceSettings = AppearanceSettings(),
) -> Gaussians:
    """The Gaussians in the colours of the views, with sizes and opacities that reproduce the silhouette.

    Splats that no view sees take the mean colour of the nearest ones that are seen.

    Raises:
        ValueError: the images do not fit the cameras, or no splat is seen in any of them.
    """
    _check(images, c2w)
    views = _Views(images, c2w, torch.as_tensor(fovy_degrees).expand(len(c2w)))
    average, weight = _average_colors(gaussians, views)
    if not bool((weight > settings.seen).any()):
        raise ValueError("None of the appearance views shows the object.")
    gaussians = _fill_hidden(gaussians.with_colors(average), weight, settings)
    gaussians = refine_shape(gaussians, images, c2w, fovy_degrees, settings)
    return _fill_hidden(*_solve_linear(gaussians, views, settings), settings)


def refine_shape(
    gaussians: Gaussians,
    images: Tensor,  # [K, H, W, 4] premultiplied RGBA in 0..1
    c2w: Tensor,  # [K, 4, 4] OpenGL cameras
    fovy_degrees: float | Tensor,  # one number or [K]
    settings: AppearanceSettings = AppearanceSettings(),
) -> Gaussians:
    """Fits sizes and opacities to the views and leaves the colours alone (they are known, or nearly right)."""
    _check(images, c2w)
    views = _Views(images, c2w, torch.as_tensor(fovy_degrees).expand(len(c2w)))
    start = gaussians.scales.log()
    scale = torch.zeros_like(start).requires_grad_()
    opacity = torch.logit(gaussians.opacities.clamp(0.01, 0.99)).requires_grad_()
    groups = [
        {"params": [scale], "lr": settings.scale_rate},
        {"params": [opacity], "lr": settings.opacity_rate},
    ]
    adam = torch.optim.Adam(groups, betas=(0.8, 0.95))
    bound = torch.tensor(settings.largest_change).log()
    generator = torch.Generator().manual_seed(settings.seed)
    touched = torch.zeros_like(opacity)
    for step in range(settings.shape_steps):
        for group in adam.param_groups:
            group["lr"] *= 0.93 if step > settings.shape_steps // 2 else 1.0
        part = views.some(torch.randperm(len(c2w), generator=generator)[: settings.views_per_step])
        now = replace(gaussians, scales=(start + scale).exp(), opacities=opacity.sigmoid())
        rgb, alpha = _draw(now, part)
        difference = torch.cat([rgb, alpha[..., None]], -1) - part.images
        adam.zero_grad()
        difference.square().sum().backward()
        touched += opacity.grad.abs()
        adam.step()
        with torch.no_grad():
            scale.clamp_(-bound, bound)
    # Adam moves a splat by full steps however faint its gradient is: what no view shows stays as it was.
    still = touched < 1e-3 * touched.median()
    scales = torch.where(still[:, None], gaussians.scales, (start + scale).exp().detach())
    return replace(
        gaussians, scales=scales, opacities=torch.where(still, gaussians.opacities, opacity.sigmoid().detach())
    )


@dataclass(frozen=True)
class _Views:
    images: Tensor  # [K, H, W, 4]
    c2w: Tensor  # [K, 4, 4]
    fovy: Tensor  # [K]

    def some(self, index: Tensor) -> "_Views":
        return _Views(self.images[index], self.c2w[index], self.fovy[index])


def _check(images: Tensor, c2w: Tensor) -> None:
    if images.dim() != 4 or images.shape[-1] != 4 or len(images) != len(c2w):
        raise ValueError(f"{len(c2w)} cameras want images [K, H, W, 4], not {tuple(images.shape)}.")


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


def _solve_linear(gaussians: Gaussians, views: _Views, settings: AppearanceSettings) -> tuple[Gaussians, Tensor]:
    """Least-squares colours by conjugate gradients, preconditioned with each splat's weight; also returns that weight [N]."""
    average, weight = _average_colors(gaussians, views)
    seen = (weight > settings.seen)[:, None]
    diagonal = weight.clamp_min(settings.seen)[:, None]

    def normal_equations(colors: Tensor, target: Tensor | float) -> Tensor:
        colors = colors.detach().requires_grad_()
        rgb, _ = _draw(gaussians.with_colors(colors), views)
        return torch.autograd.grad(rgb, colors, rgb.detach() - target)[0]

    change = torch.zeros_like(average)
    residual = -normal_equations(average, views.images[..., :3].to(average)) * seen
    direction = residual / diagonal
    power = (residual * direction).sum(0)
    for _ in range(settings.color_steps):
        image = (normal_equations(direction, 0.0) + settings.faithfulness * diagonal * direction) * seen
        step = power / (direction * image).sum(0).clamp_min(1e-12)
        change = change + step * direction
        residual = residual - step * image
        new_power = (residual.square() / diagonal).sum(0)
        direction = residual / diagonal + new_power / power.clamp_min(1e-12) * direction
        power = new_power
    return gaussians.with_colors((average + change).clamp(0, 1)), weight


def _fill_hidden(gaussians: Gaussians, weight: Tensor, settings: AppearanceSettings) -> Gaussians:
    """Gives splats with less than `seen` pixels of weight [N] the mean colour of the nearest ones with more."""
    hidden = torch.nonzero(weight <= settings.seen)[:, 0]
    seen = torch.nonzero(weight > settings.seen)[:, 0]
    colors = gaussians.colors.clone()
    nearest = min(settings.neighbours, len(seen))
    for part in hidden.split(2048):  # bounds the distance matrix
        distance = torch.cdist(gaussians.means[part], gaussians.means[seen])
        colors[part] = gaussians.colors[seen[distance.topk(nearest, largest=False).indices]].mean(1)
    return gaussians.with_colors(colors)


def with_colors(gaussians: Gaussians, colors: Tensor) -> Gaussians:
    """The same Gaussians in known colours [N, 3], for instance the code of each one's rest position."""
    return gaussians.with_colors(colors)
