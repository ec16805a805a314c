"""The starter model's codec: a small `AutoencoderKL` for position-coded RGBA pictures, trained from scratch.

64 x 64 x 4 pixels (premultiplied) become 8 x 8 x 32 latents. Pictures are one smooth field inside a silhouette, so a
few hundred thousand parameters are enough; what costs is the silhouette and the sub-pixel place of the colours.

    python -m backend train codec --out runs/mine --steps 2200
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from backend.device import multiplies_bfloat16
from backend.protocol import UserError
from backend.training.clips import HELD_OUT_SEED, make_clip, render_clip, shuffled_code
from backend.training.loop import RunLog, cosine_rate, load_state, save_state

STATE = "codec.state.safetensors"


@dataclass(frozen=True)
class CodecSettings:
    """Sizes and schedule; the figures are for two CPU cores."""

    size: int = 64  # pixels
    latent_channels: int = 32
    channels: tuple[int, ...] = (16, 32, 64, 96)  # the first levels see every pixel: keep them thin
    clips_per_batch: int = 8
    pictures_per_clip: int = 4
    learning_rate: float = 2e-3
    warmup: int = 50
    kl_weight: float = 1e-6  # keeps latents bounded, no more
    latent_noise: float = 0.1  # of the latents' spread: what is nearly right must look nearly right
    inside_weight: float = 2.0  # extra weight of covered pixels: their colours are read as places
    shuffled_share: float = 0.5  # of the clips, in colours that do not follow from the place (`shuffled_code`)
    shift: int = 6  # pixels up to which pictures are moved, for the same reason
    save_steps: int = 50
    seed: int = 0


def build_codec(settings: CodecSettings) -> AutoencoderKL:
    depth = len(settings.channels)
    return AutoencoderKL(
        in_channels=4,
        out_channels=4,
        latent_channels=settings.latent_channels,
        block_out_channels=settings.channels,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        layers_per_block=1,
        norm_num_groups=4,  # more would make nearly every thin channel a group, and lose its strength
        sample_size=settings.size,
        mid_block_add_attention=False,
    )


def picture_batch(settings: CodecSettings, first_seed: int) -> torch.Tensor:
    """Pictures [B, 4, size, size] in -1..1, premultiplied, of `clips_per_batch` objects at random views and frames."""
    pictures = []
    for seed in range(first_seed, first_seed + settings.clips_per_batch):
        rng = np.random.default_rng(seed)
        chosen = [(int(rng.integers(4)), int(rng.integers(16))) for _ in range(settings.pictures_per_clip)]
        clip = make_clip(seed, 16)
        colors = shuffled_code(clip.rest, rng) if rng.random() < settings.shuffled_share else None
        moved = tuple(rng.integers(-settings.shift, settings.shift + 1, 2))
        pictures.append(np.roll(render_clip(clip, settings.size, chosen, colors), moved, axis=(1, 2)))
    return to_model_range(np.concatenate(pictures))


def to_model_range(pictures: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 [..., H, W, 4] premultiplied to float [..., 4, H, W] in -1..1."""
    return torch.as_tensor(pictures).movedim(-1, -3).float() / 127.5 - 1.0


def codec_loss(codec: AutoencoderKL, pictures: torch.Tensor, settings: CodecSettings) -> tuple[torch.Tensor, float]:
    """The loss and the plain mean squared error (of the 0..1 range)."""
    posterior = codec.encode(pictures).latent_dist
    latents = posterior.sample()
    latents = latents + settings.latent_noise * latents.detach().std() * torch.randn_like(latents)
    decoded = codec.decode(latents).sample.float()
    error = decoded - pictures
    weight = 1.0 + settings.inside_weight * (pictures[:, 3:] > 0)
    # L1 keeps edges crisp, L2 keeps large errors away.
    loss = (weight * (error.abs() + 4.0 * error.square())).mean() + settings.kl_weight * posterior.kl().mean()
    return loss, float(error.detach().square().mean()) / 4.0


@torch.no_grad()
def codec_psnr(codec: AutoencoderKL, settings: CodecSettings, clips: int = 16) -> float:
    """PSNR in dB over all four channels on objects that were never trained on; the posterior's mode."""
    settings = replace(settings, shuffled_share=0.0, shift=0)
    pictures = torch.cat(
        [picture_batch(settings, HELD_OUT_SEED + i) for i in range(0, clips, settings.clips_per_batch)]
    )
    decoded = codec.decode(codec.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)
    return -10.0 * float(torch.log10(F.mse_loss(decoded, pictures) / 4.0))


def train_codec(out: Path, steps: int, settings: CodecSettings) -> AutoencoderKL:
    """Trains up to step `steps`, resumes exactly from `out`, ends with `out/vae` in diffusers' layout.

    A fresh run in a folder that has a `vae` begins with that one.
    """
    torch.manual_seed(settings.seed)
    codec = (
        AutoencoderKL.from_pretrained(out / "vae", local_files_only=True)
        if (out / "vae").exists()
        else build_codec(settings)
    )
    codec.train()
    optimizer = torch.optim.AdamW(codec.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    state = load_state(out / STATE, codec, [optimizer])
    log = RunLog(out / "codec.csv", after_step=state.step)
    started = time.monotonic() - state.seconds
    while state.step < steps:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * cosine_rate(state.step, settings.warmup, state.step / steps)
        pictures = picture_batch(settings, state.step * settings.clips_per_batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16(torch.device("cpu"))):
            loss, error = codec_loss(codec, pictures, settings)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
        state.step += 1
        state.seconds = time.monotonic() - started
        if state.step % settings.save_steps == 0 or state.step == steps:
            log.write(step=state.step, seconds=round(state.seconds), loss=loss.item(), psnr_batch=-10 * np.log10(error))
            save_state(out / STATE, codec, [optimizer], state)
    codec.eval()
    codec.register_to_config(scaling_factor=1.0 / latent_spread(codec, settings))
    codec.save_pretrained(out / "vae")
    log.write(step=state.step, held_out_psnr=codec_psnr(codec, settings))
    return codec


def run_codec(run: Path) -> AutoencoderKL:
    """The codec that a run began with, to encode and decode. Raises `UserError` where there is none."""
    if not (run / "vae" / "config.json").is_file():
        raise UserError(
            f"There is no codec in “{run}”.", "Train one: python -m backend train codec --out with this folder."
        )
    return AutoencoderKL.from_pretrained(run / "vae", local_files_only=True).eval()


@torch.no_grad()
def latent_spread(codec: AutoencoderKL, settings: CodecSettings) -> float:
    """Standard deviation of the latents: the codec's scaling factor is one over it."""
    settings = replace(settings, shuffled_share=0.0, shift=0)
    pictures = torch.cat([picture_batch(settings, settings.clips_per_batch * i) for i in range(16)])
    return float(codec.encode(pictures).latent_dist.mode().std())
