"""The paper's second stage: a fitted motion is refined by what the video model thinks of it (Animate3D, section 4.3).

Each iteration renders all frames from four random cameras a quarter turn apart and follows the model's gradient
(`guidance`). Two more terms hold on to what is there: the four views of the video, as they were rendered when the stage
began, and ARAP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from backend.motion.arap import Neighbourhood, arap_loss
from backend.motion.guidance import CameraRange, GuidanceSettings, VideoGuidance, random_cameras
from backend.motion.refinable import Pose, Rates, Refinable
from backend.protocol import Subject, UserError
from backend.splats.gaussians import Gaussians
from backend.splats.rasterize import rasterize

GREY = 0.5  # background of the renders


@dataclass(frozen=True)
class SdsSettings:
    """All that the stage depends on; the defaults are the paper's, or the released code's where the text says nothing.

    iterations: 250 in the text, 200 in the code.
    sds_weight, arap_weight: text; the code has 12 for ARAP.
    rgb_weight, mask_weight: of the views as they were at the start, as in the code; the mask's is not in the text.
    anchor_size: pixels of those views. The code has 1024, for sharper silhouettes; the video has 256.
    supersampling: pixels of the renders that the model sees, in its own: they are averaged.
    cameras: where they stand; None for the video's own four, for a model that knows no others.
    bones, bone_part, smoothness: of the corrections, where the motion is no HexPlane; weight of their roughness.
    """

    iterations: int = 250
    sds_weight: float = 0.01
    rgb_weight: float = 100.0
    mask_weight: float = 100.0
    anchor_size: int = 256
    arap_weight: float = 10.0
    arap_sample: int = 512  # neighbourhoods drawn at each step, with replacement
    arap_neighbours: int = 3
    arap_quirk: bool = True  # see `arap.edge_rotations`
    supersampling: int = 1
    max_gaussians: int = 1_000_000  # the paper uses all
    guidance: GuidanceSettings = field(default_factory=GuidanceSettings)
    cameras: CameraRange | None = field(default_factory=CameraRange)
    rates: Rates = field(default_factory=Rates)
    adam_epsilon: float = 1e-15
    bones: int = 24
    bone_part: float = float("inf")
    smoothness: float = 0.0


@dataclass(frozen=True)
class Views:
    """Pictures of V views and F frames."""

    rgb: Tensor  # [V, F, S, S, 3], premultiplied
    alpha: Tensor  # [V, F, S, S]

    @property
    def on_grey(self) -> Tensor:
        """[V, F, S, S, 3]."""
        return self.rgb + GREY * (1 - self.alpha[..., None])

    def for_model(self, channels: int) -> Tensor:
        """[V, F, C, S, S]: on grey for 3 channels, premultiplied with alpha for 4."""
        picture = self.on_grey if channels == 3 else torch.cat([self.rgb, self.alpha[..., None]], dim=-1)
        return picture.movedim(-1, 2)


def refine(
    motion: Refinable,
    splats: Gaussians,
    subject: Subject,
    guidance: VideoGuidance,
    settings: SdsSettings,
    seed: int,
    callback: Callable[[int, int], None],
) -> list[float]:
    """Changes the motion of the splats; returns the model's loss of each iteration.

    Args:
        callback: called after every iteration (step, steps), may raise to end the stage.

    Raises:
        UserError: a gradient is no number any more.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(motion.parameter_groups(settings.rates), eps=settings.adam_epsilon)
    with torch.no_grad():
        anchors = _anchor_views(splats, motion.pose(), subject, settings.anchor_size)
    rigidity = _Rigidity(splats, settings, generator)
    losses = []
    for step in range(settings.iterations):
        pose = motion.pose()
        opinion = _opinion(splats, pose, subject, guidance, settings, generator, step / settings.iterations)
        views = _anchor_views(splats, pose, subject, settings.anchor_size)
        loss = settings.sds_weight * opinion + settings.arap_weight * rigidity(pose.means)
        loss = loss + settings.rgb_weight * functional.mse_loss(views.on_grey, anchors.on_grey)
        loss = loss + settings.mask_weight * functional.mse_loss(views.alpha, anchors.alpha)
        loss = loss + settings.smoothness * motion.roughness()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        _check_numbers(optimiser)
        optimiser.step()
        losses.append(float(opinion.detach()))
        callback(step + 1, settings.iterations)
    return losses


def _opinion(
    splats: Gaussians,
    pose: Pose,
    subject: Subject,
    guidance: VideoGuidance,
    settings: SdsSettings,
    generator: torch.Generator,
    progress: float,
) -> Tensor:
    """The model's loss of all frames, seen by cameras drawn now."""
    c2w, fovy = subject.condition_c2w, subject.fovy
    if settings.cameras is not None:
        c2w, fovy = random_cameras(generator, guidance.model.info.num_views, settings.cameras)
    info = guidance.model.info
    views = draw(splats, with_rest(pose, splats), c2w, fovy, settings.supersampling * info.resolution)
    return guidance(views.for_model(info.image_channels), c2w, generator, progress)


def _anchor_views(splats: Gaussians, pose: Pose, subject: Subject, size: int) -> Views:
    """Frames 1.. as the video's cameras see them."""
    return draw(splats, pose, subject.condition_c2w, subject.fovy, size)


def with_rest(pose: Pose, splats: Gaussians) -> Pose:
    """All frames: the first one is the rest pose."""
    scales = pose.scales if pose.scales.dim() == 2 else torch.cat([splats.scales[None], pose.scales])
    return Pose(torch.cat([splats.means[None], pose.means]), torch.cat([splats.quats[None], pose.quats]), scales)


def draw(splats: Gaussians, pose: Pose, c2w: np.ndarray, fovy: float, size: int) -> Views:
    """All views [V, 4, 4] of all frames [F] in one call of the rasterizer."""
    views, frames = len(c2w), len(pose.means)
    cameras = torch.from_numpy(np.asarray(c2w)).float().to(pose.means.device).repeat_interleave(frames, dim=0)
    scales = pose.scales if pose.scales.dim() == 2 else pose.scales.repeat(views, 1, 1)
    means, quats = pose.means.repeat(views, 1, 1), pose.quats.repeat(views, 1, 1)
    rgb, alpha = rasterize(means, quats, scales, splats.opacities, splats.colors, cameras, fovy, size, size)
    return Views(rgb.unflatten(0, (views, frames)), alpha.unflatten(0, (views, frames)))


class _Rigidity:
    """ARAP on the Gaussians."""

    def __init__(self, splats: Gaussians, settings: SdsSettings, generator: torch.Generator) -> None:
        self.rest, self.settings, self.generator = splats.means, settings, generator
        self.neighbours = Neighbourhood.nearest(splats.means.cpu().numpy(), settings.arap_neighbours)

    def __call__(self, means: Tensor) -> Tensor:
        """means [T, N, 3] -> loss."""
        sample = None
        if len(self.rest) > self.settings.arap_sample:
            shape = (self.settings.arap_sample,)
            sample = torch.randint(len(self.rest), shape, generator=self.generator).to(means.device)
        return arap_loss(self.rest, means, self.neighbours, sample, self.settings.arap_quirk)


def _check_numbers(optimiser: torch.optim.Optimizer) -> None:
    parameters = [value for group in optimiser.param_groups for value in group["params"] if value.grad is not None]
    if not all(bool(value.grad.isfinite().all()) for value in parameters):
        sentence = "The video model's answer to the motion is no number, so it can't refine it."
        raise UserError(sentence, "Try the preset standard, which does without, or check the weights.")
