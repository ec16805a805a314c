"""The paper's road: a HexPlane fitted by rendering (Animate3D, section 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from backend import protocol
from backend.motion.arap import Neighbourhood, arap_loss
from backend.motion.fields import frame_times
from backend.motion.hexplane import HexPlane
from backend.motion.settings import FitSettings
from backend.splats.gaussians import Gaussians
from backend.splats.rasterize import rasterize

GREY = 0.5  # background of renders and targets


@dataclass(frozen=True)
class Targets:
    """What the renders should look like; V views, F frames."""

    rgb: Tensor  # [V, F, S, S, 3] on grey
    mask: Tensor  # [V, F, S, S] 0 or 1


def make_targets(frames: np.ndarray, matte: np.ndarray, size: int, device: torch.device) -> Targets:
    """frames [V, F, H, W, C] uint8 and matte [V, F, H, W]: composed with the binary matte on grey, at `size` pixels."""
    views, count = frames.shape[:2]
    mask = torch.from_numpy(matte > 0.5).to(device).float()[..., None]
    rgb = torch.from_numpy(frames[..., :3]).to(device).float() / 255.0
    image = torch.cat([rgb * mask + GREY * (1 - mask), mask], dim=-1).flatten(0, 1).permute(0, 3, 1, 2)
    if image.shape[-1] > size:
        image = functional.interpolate(image, size=(size, size), mode="area")
    elif image.shape[-1] < size:
        image = functional.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)
    image = image.permute(0, 2, 3, 1).unflatten(0, (views, count))
    return Targets(image[..., :3].contiguous(), (image[..., 3] > 0.5).float())


def thin_out(gaussians: Gaussians, limit: int, seed: int) -> Gaussians:
    """At most `limit` of the Gaussians, by chance, grown so that they still cover the surface."""
    count = len(gaussians.means)
    if count <= limit:
        return gaussians
    keep = torch.from_numpy(np.random.default_rng(seed).permutation(count)[:limit]).to(gaussians.means.device)
    picked = {name: value[keep] for name, value in vars(gaussians).items() if value is not None}
    picked["scales"] = picked["scales"] * (count / limit) ** 0.5
    return replace(gaussians, **picked)


class _Rigidity:
    """The ARAP term on what it is measured on: the Gaussians (paper) or the welded mesh's vertices."""

    def __init__(
        self, subject: protocol.Subject, means: Tensor, settings: FitSettings, rng: np.random.Generator
    ) -> None:
        self.settings, self.rng = settings, rng
        self.on_mesh = settings.arap_on_mesh and len(subject.faces) > 0
        if self.on_mesh:
            first = np.unique(subject.weld, return_index=True)[1]
            self.rest = torch.from_numpy(subject.vertices[first]).to(means)
            self.neighbours = Neighbourhood.of_mesh(subject.faces, subject.weld)
        else:
            self.rest = means
            self.neighbours = Neighbourhood.nearest(means.cpu().numpy(), settings.arap_neighbours)

    def __call__(self, field: HexPlane, times: Tensor, moved_means: Tensor) -> Tensor:
        """times [T], positions [T, N, 3] of the Gaussians -> loss."""
        count = len(self.rest)
        sample: Tensor | None = None
        if count > self.settings.arap_sample:
            sample = torch.from_numpy(self.rng.integers(0, count, self.settings.arap_sample)).to(moved_means.device)
        quirk = self.settings.arap_quirk
        if not self.on_mesh:
            return arap_loss(self.rest, moved_means, self.neighbours, sample, quirk)
        # Only the sampled vertices and their neighbours are read from the field.
        around = self.neighbours.index.to(moved_means.device)
        around = around if sample is None else around[sample]
        centre = torch.arange(count, device=around.device) if sample is None else sample
        used, place = torch.unique(torch.cat([centre[:, None], around], dim=1), return_inverse=True)
        index = torch.arange(len(used), device=around.device)[:, None].repeat(1, around.shape[1])
        index[place[:, 0]] = place[:, 1:]
        small = Neighbourhood(index)
        moved, _ = field.deform(self.rest[used], times)
        return arap_loss(self.rest[used], moved, small, place[:, 0], quirk)


def fit_by_rendering(
    subject: protocol.Subject,
    gaussians: Gaussians,
    frames: np.ndarray,
    matte: np.ndarray,
    settings: FitSettings,
    device: torch.device,
    callback: Callable[[int, int], None],
) -> tuple[HexPlane, list[float]]:
    """frames [V, F, H, W, C] uint8, matte [V, F, H, W] -> the fitted field and the loss of each step."""
    generator = torch.Generator().manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    targets = make_targets(frames, matte, settings.image_size, device)
    splats = thin_out(gaussians.to(device), settings.max_gaussians, settings.seed)
    means = splats.means.detach()
    field = HexPlane(means, settings.resolutions, settings.channels, settings.hidden, generator)
    optimiser = make_optimiser(field, settings)
    rigidity = _Rigidity(subject, means, settings, rng)
    times = frame_times(frames.shape[1], device)
    cameras = torch.from_numpy(subject.condition_c2w).float().to(device)
    losses = []
    for step in range(settings.iterations):
        # Frame 0 is the rest pose and never rendered; the others join one by one.
        last = min(step // settings.frames_every, len(times) - 2) + 1
        active = slice(1, last + 1)  # of which indexing makes no copies
        means_now, quats_now, _ = field.deform_gaussians(means, splats.quats, None, times[active])
        rgb, alpha = render(splats, means_now, quats_now, cameras, subject.fovy, settings, generator)
        shape = (len(cameras), last)
        loss = settings.rgb_weight * functional.mse_loss(rgb.unflatten(0, shape), targets.rgb[:, active])
        loss = loss + settings.mask_weight * functional.mse_loss(alpha.unflatten(0, shape), targets.mask[:, active])
        loss = loss + settings.arap_weight * rigidity(field, times[active], means_now)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        callback(step + 1, settings.iterations)
    return field, losses


def make_optimiser(field: HexPlane, settings: FitSettings) -> torch.optim.Adam:
    """Adam at constant rates; the scale network takes no part in reconstruction."""
    groups = [
        {"params": list(field.grids.parameters()), "lr": settings.grid_rate},
        {
            "params": [*field.delta_xyz.parameters(), *field.delta_rotation.parameters()],
            "lr": settings.network_rate,
        },
        {
            "params": [*field.global_rotation.parameters(), *field.global_translation.parameters()],
            "lr": settings.global_rate,
        },
    ]
    return torch.optim.Adam(groups, eps=settings.adam_epsilon)


def render(
    splats: Gaussians,
    means: Tensor,
    quats: Tensor,
    cameras: Tensor,
    fovy: float,
    settings: FitSettings,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """means [T, N, 3], quats [T, N, 4], cameras [V, 4, 4] -> rgb [V T, S, S, 3] on grey and alpha [V T, S, S].

    All views of all frames in one call. Each Gaussian keeps its gradient in an image only by chance
    (`gradient_share`); values are the same with and without.
    """
    views, frames = len(cameras), len(means)
    means, quats = means.repeat(views, 1, 1), quats.repeat(views, 1, 1)
    keep = None
    if settings.gradient_share < 1.0:
        chance = torch.rand(views * frames, means.shape[1], generator=generator).to(means.device)
        keep = chance < settings.gradient_share
    return rasterize(
        means,
        quats,
        splats.scales,
        splats.opacities,
        splats.colors,
        cameras.repeat_interleave(frames, dim=0),
        fovy,
        settings.image_size,
        settings.image_size,
        background=torch.full((3,), GREY, device=means.device),
        keep=keep,
    )
