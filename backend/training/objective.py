"""What the video model is trained for, and how well it does: errors against the clean latents of whole clips.

As in the paper frame 0 is given clean and never learnt. All that is random about a step follows from its number, so a
run that was killed goes on with the very same draws, and each of several processes can take its part of one batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDIMScheduler

from backend.training.motions import MOTIONS
from backend.training.starter import VIEWS, StarterModel, StarterSettings

Batch = dict[str, torch.Tensor]
MEAN_MOTION = 0.4  # what latents change, squared, in the mean of all motions: keeps the loss's size


@dataclass(frozen=True)
class Draw:
    """What chance decides about a batch of b clips."""

    timestep: torch.Tensor  # [b]
    without_text: torch.Tensor  # [b] bool
    noise: torch.Tensor  # [(b n), c, f, h, w]

    def __getitem__(self, clips: slice) -> Draw:
        noise = self.noise.unflatten(0, (-1, VIEWS))[clips].flatten(0, 1)
        return Draw(self.timestep[clips], self.without_text[clips], noise)


def draw_noise(
    clips: torch.Size, steps: int, settings: StarterSettings, step: int, device: torch.device | str = "cpu"
) -> Draw:
    """The draw of training step `step` for clips [b, n, c, f, h, w], at `steps` noise levels."""
    generator = torch.Generator(device).manual_seed(settings.seed * 2**32 + step)
    any_level = torch.randint(0, steps, clips[:1], generator=generator, device=device)
    at_pure_noise = torch.rand(clips[:1], generator=generator, device=device) < settings.pure_noise_share
    without_text = torch.rand(clips[:1], generator=generator, device=device) < settings.text_dropout
    noise = torch.randn((clips[0] * clips[1], *clips[2:]), generator=generator, device=device)
    return Draw(torch.where(at_pure_noise, steps - 1, any_level), without_text, noise)


def draw_frames(batch: Batch, count: int, rng: np.random.Generator) -> Batch:
    """The batch with frame 0 and `count` - 1 others of each clip, in order."""
    frames = batch["latents"].shape[3]
    others = 1 + np.sort(rng.choice(frames - 1, count - 1, replace=False))
    numbers = torch.from_numpy(np.concatenate([[0], others])).to(batch["latents"].device)
    return batch | {"latents": batch["latents"][:, :, :, numbers], "frame_numbers": numbers}


def denoise(
    model: StarterModel, scheduler: DDIMScheduler, batch: Batch, timestep: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """The model's clean latents [(b n), c, f, h, w] from noise at `timestep` [b]; frame 0 stays clean."""
    clean = batch["latents"].flatten(0, 1)
    noisy = scheduler.add_noise(clean, noise, timestep.repeat_interleave(VIEWS))
    noisy = torch.cat([clean[:, :, :1], noisy[:, :, 1:]], dim=2)
    images, numbers = batch["images"].flatten(0, 1), batch.get("frame_numbers")
    return clean[:, :, :1] + model(noisy, timestep, batch["tokens"], images, numbers)


def training_loss(
    model: StarterModel, scheduler: DDIMScheduler, batch: Batch, draw: Draw, settings: StarterSettings
) -> torch.Tensor:
    """Weighted squared error of frames 1.. (as the paper: frame 0 is given, never learnt)."""
    tokens = torch.where(draw.without_text[:, None], batch["empty"], batch["tokens"])
    predicted = denoise(model, scheduler, batch | {"tokens": tokens}, draw.timestep, draw.noise)[:, :, 1:]
    clean = batch["latents"].flatten(0, 1)
    moved = (clean[:, :, 1:] - clean[:, :, :1]).square().mean(dim=1, keepdim=True).clamp(max=1.0)
    weight = 1.0 + settings.moving_weight * moved
    whole = moved.unflatten(0, (-1, VIEWS)).mean(dim=(1, 2, 3, 4, 5))  # [b]
    of_clip = (MEAN_MOTION / (whole + settings.least_motion)).repeat_interleave(VIEWS)
    weight = weight * of_clip[:, None, None, None, None]
    return (weight * (predicted - clean[:, :, 1:]).square()).mean()


@torch.no_grad()
def pure_noise_error(model: StarterModel, scheduler: DDIMScheduler, batches: list[Batch]) -> dict[str, float]:
    """Error of one step from pure noise over that of standing still.

    `right_prompt` and `wrong_prompt` (another clip's) are over all motions, the gap between the two is what the model
    knows of words; then the right prompt's for each motion.
    """
    errors = {name: np.zeros(3) for name in MOTIONS}  # right, wrong, still
    last = scheduler.config.num_train_timesteps - 1
    for batch in batches:
        clean = batch["latents"].flatten(0, 1)
        timestep = torch.full((len(batch["tokens"]),), last, device=clean.device)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean.device)
        right = denoise(model, scheduler, batch, timestep, noise)
        wrong = denoise(model, scheduler, batch | {"tokens": batch["other_tokens"]}, timestep, noise)
        squares = [
            (guess - clean).square().unflatten(0, (-1, VIEWS)).flatten(1).sum(1)
            for guess in (right, wrong, clean[:, :, :1])
        ]
        for motion, figures in zip(batch["motions"].tolist(), torch.stack(squares, 1).tolist(), strict=True):
            errors[list(MOTIONS)[motion]] += figures
    right, wrong, still = sum(errors.values())
    each = {name: float(sums[0] / sums[2]) for name, sums in errors.items() if sums[2] > 0}
    return {"right_prompt": float(right / still), "wrong_prompt": float(wrong / still), **each}
