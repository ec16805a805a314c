"""4D-SDS: what a video model thinks of renders of a moving object (paper section 4.3, the released form).

One noise level t is drawn for a whole multi-view clip. Its latents are noised (frame 0 stays clean, as the model was
trained), denoised in one step with guidance, and pulled towards the result, which counts as a constant:

    loss = 1/2 sum (latents - target)^2 / (n f) * f / (f - 1)

The gradient flows through the VAE's encoder into the renders; frame 0 gets none.
Shapes: n views, f frames, c latent channels of h x w cells; C picture channels (RGB on grey, or premultiplied RGBA).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from backend.mv_vdm.images import write_pictures
from backend.mv_vdm.pipeline import MVVDM
from backend.mv_vdm.sampling import Conditions, Denoiser
from backend.protocol import orbit_c2w

Encoder = Callable[[Tensor], Tensor]  # pixels [k, C, H, W] in -1..1 -> scaled latents [k, c, h, w], differentiable


@dataclass(frozen=True)
class GuidanceSettings:
    """The defaults are the released code's.

    min_noise, max_noise: the range of t as shares of the schedule, both ends included (t = 20..200 of 1000).
    anneal: the upper end falls to the lower one with the square root of the run's progress (HiFA); off as released.
    guidance_scale: s in eps_text + s (eps_text - eps_uncond): 5 equals an ordinary guidance scale of 6. At 0 the
        unconditional half is not asked, which halves the work.
    std_rescale: share of the target whose spread is brought back to that without guidance; 0 turns it off.
    negative_prompt: what the unconditional half is told.
    encode_batch: pictures that go through the VAE's encoder at once. With more, activations are computed anew for the
        gradient instead of kept.
    """

    min_noise: float = 0.02
    max_noise: float = 0.2
    anneal: bool = False
    guidance_scale: float = 5.0
    std_rescale: float = 0.25
    negative_prompt: str = ""
    encode_batch: int = 64

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_noise <= self.max_noise < 1.0:
            raise ValueError("The noise levels of the guidance must lie in order between 0 and 1.")

    def timestep_range(self, timesteps: int, progress: float) -> tuple[int, int]:
        """Lowest and highest t, both included, of a schedule of so many, at ``progress`` 0..1 of the run."""
        low, high = int(self.min_noise * timesteps), int(self.max_noise * timesteps)
        return low, low + round((high - low) * (1 - math.sqrt(progress))) if self.anneal else high


def sds_target(
    denoiser: Denoiser,
    latents: Tensor,
    noise: Tensor,
    timestep: int,
    conditional: Conditions,
    unconditional: Conditions,
    settings: GuidanceSettings,
) -> Tensor:
    """What the model would rather see: latents [n, c, f, h, w] -> the same shape; frame 0 as it was, no gradient.

    noise [n, c, f - 1, h, w] is for frames 1.. .
    """
    with torch.no_grad():
        signal = denoiser.scheduler.alphas_cumprod[timestep].to(latents.device)
        rest = signal.sqrt() * latents[:, :, 1:] + (1 - signal).sqrt() * noise
        noisy = torch.cat([latents[:, :, :1], rest], dim=2)
        if settings.guidance_scale > 0:
            without, with_text = denoiser.paired(noisy, timestep, conditional, unconditional)
        else:
            with_text = without = conditional.predict(denoiser.unet, noisy, timestep, len(noisy))
        guided = with_text + settings.guidance_scale * (with_text - without)
        plain, target = (denoiser.to_clean(output, noisy, timestep)[:, :, 1:] for output in (with_text, guided))
        if settings.std_rescale > 0:
            # Guidance inflates contrast: part of the way back to the spread over everything that moves.
            factor = (plain.std() + 1e-8) / (target.std() + 1e-8)
            target = settings.std_rescale * factor * target + (1 - settings.std_rescale) * target
        return torch.cat([latents[:, :, :1], target], dim=2)


def sds_loss(latents: Tensor, target: Tensor) -> Tensor:
    """The loss above, of latents [n, c, f, h, w] with gradient and the constant target."""
    views, frames = latents.shape[0], latents.shape[2]
    squared = (latents - target.detach()).square().sum()
    return 0.5 * squared / (views * frames) * frames / (frames - 1)


class VideoGuidance:
    """A video model's opinion on renders, for one prompt. Any `MVVDM`: colour or position, RGB or RGBA."""

    def __init__(
        self, model: MVVDM, prompt: str, settings: GuidanceSettings | None = None, encoder: Encoder | None = None
    ) -> None:
        """``encoder`` replaces the model's VAE, for example by a tiny one that is trained to give the same latents."""
        self.model, self.settings, self.encoder = model, settings or GuidanceSettings(), encoder
        self.text = model.encode_prompt([prompt, self.settings.negative_prompt])

    def __call__(
        self, renders: Tensor, c2w: np.ndarray | Tensor, generator: torch.Generator, progress: float = 0.0
    ) -> Tensor:
        """The loss of one clip.

        Args:
            renders: [n, f, C, S, S] in 0..1: RGB on grey for models with 3 channels, premultiplied RGBA for 4.
            c2w: camera-to-world [n, 4, 4].
            generator: on the CPU; draws the posterior's noise, then t, then the noise, as the released code does.
            progress: share of the run that is done, for ``anneal``.
        """
        latents = self.encode(renders, generator)
        low, high = self.settings.timestep_range(self.model.scheduler.config.num_train_timesteps, progress)
        timestep = int(torch.randint(low, high + 1, (), generator=generator))
        noise = torch.randn(latents[:, :, 1:].shape, generator=generator).to(latents)
        image = self.model.encode_images(as_pictures(renders[:, 0]))
        conditions = self.model.combine_conditions(self.text, image, c2w)
        return sds_loss(latents, sds_target(self.model.denoiser, latents, noise, timestep, *conditions, self.settings))

    def encode(self, renders: Tensor, generator: torch.Generator) -> Tensor:
        """Renders [n, f, C, S, S] in 0..1 -> latents [n, c, f, h, w], float32; frame 0 without gradient."""
        views, frames = renders.shape[:2]
        renders = torch.cat([renders[:, :1].detach(), renders[:, 1:]], dim=1)
        size = self.model.info.resolution
        pixels = 2 * F.interpolate(renders.flatten(0, 1), (size, size), mode="bilinear", align_corners=False) - 1
        if self.encoder is not None:
            latents = self._in_batches(self.encoder, pixels)
        elif self.model.info.posterior_sample:
            noise = torch.randn(self.model.latent_shape(views * frames), generator=generator).to(pixels)
            latents = self._in_batches(self.model.encode_pixels, pixels, noise)
        else:
            latents = self._in_batches(self.model.encode_pixels, pixels)
        return latents.float().unflatten(0, (views, frames)).transpose(1, 2)

    def _in_batches(self, encode: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        batch = self.settings.encode_batch
        if len(inputs[0]) <= batch:
            return encode(*inputs)
        parts = zip(*(tensor.split(batch) for tensor in inputs), strict=True)
        return torch.cat([checkpoint(encode, *part, use_reentrant=False) for part in parts])


def pictures_at_once(model: MVVDM, free_gb: float) -> int:
    """How many pictures may go through the VAE's encoder together, their activations kept, in so much free memory.

    One picture tells: its activations are counted as it passes.
    """
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    size = model.info.resolution
    picture = torch.zeros(1, model.info.image_channels, size, size, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model.encode_pixels(picture)
    weights = {value.untyped_storage().data_ptr() for value in model.vae.parameters()}
    used = sum(nbytes for place, nbytes in sizes.items() if place not in weights)
    return max(1, int(free_gb * 1024**3 / max(used, 1)))


def as_pictures(renders: Tensor) -> np.ndarray:
    """Renders [n, C, S, S] in 0..1 as capture's pictures: uint8 [n, S, S, 4], straight alpha."""
    renders = renders.detach().clamp(0, 1)
    if renders.shape[1] == 4:
        return write_pictures(2 * renders - 1)
    pictures = (renders * 255).byte().movedim(1, -1).cpu().numpy()  # cut off, as the released code does
    return np.concatenate([pictures, np.full_like(pictures[..., :1], 255)], axis=-1)


@dataclass(frozen=True)
class CameraRange:
    """Where random cameras stand; the defaults are the released code's.

    The distance is given as the half height of the picture at the origin: the object fills it whatever the field of
    view. Angles in degrees.
    """

    elevation: tuple[float, float] = (0.0, 30.0)
    fovy: tuple[float, float] = (15.0, 60.0)
    half_height: tuple[float, float] = (0.8, 1.0)


def random_cameras(
    generator: torch.Generator, views: int = 4, ranges: CameraRange | None = None
) -> tuple[np.ndarray, float]:
    """Cameras of one clip, evenly round the object from a random azimuth: c2w [views, 4, 4] and fovy in degrees.

    Elevation is uniform in angle half of the time and uniform on the sphere otherwise, as in MVDream.
    """
    ranges = ranges or CameraRange()
    kind, up, turn, wide, far = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    low, high = ranges.elevation
    if kind < 0.5:
        elevation = low + up * (high - low)
    else:
        sines = math.sin(math.radians(low)), math.sin(math.radians(high))
        elevation = math.degrees(math.asin(sines[0] + up * (sines[1] - sines[0])))
    fovy = ranges.fovy[0] + wide * (ranges.fovy[1] - ranges.fovy[0])
    half_height = ranges.half_height[0] + far * (ranges.half_height[1] - ranges.half_height[0])
    distance = half_height / math.tan(math.radians(fovy) / 2)
    azimuths = [(turn + view) / views * 360.0 - 180.0 for view in range(views)]
    return np.stack([orbit_c2w(azimuth, elevation, distance) for azimuth in azimuths]), fovy
