"""The starter model's recipe: everything small, from scratch, on procedural position-coded motion.

Paper section 4.1 trains only the new layers of a big model on rendered clips. Here all layers train, so what makes a
small network learn motion fastest decides; each such choice is a field of `StarterSettings` with its reason.

    python -m backend train codec --out runs/starter --minutes 15
    python -m backend train video --out runs/starter --minutes 90
    python -m backend train export --out runs/starter --to weights/starter
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from backend.mv_vdm.cameras import camera_vectors
from backend.mv_vdm.unet import MVVDMUNet
from backend.protocol import condition_cameras
from backend.training.captions import MAX_TOKENS, build_tokenizer
from backend.training.clips import HELD_OUT_SEED
from backend.training.latents import LatentStore
from backend.training.loop import Average, RunLog, cosine_rate, load_state, save_state

VIEWS = 4
SAVE_SECONDS = 480
HELD_OUT_BATCHES = 3  # of 4 clips: measuring must not eat the time for training


@dataclass(frozen=True)
class StarterSettings:
    """Sizes and schedule; the figures are for two CPU cores and an hour or two."""

    size: int = 64  # pixels; 8 x 8 latents
    frames: int = 16
    width: tuple[int, ...] = (64, 96)  # many cheap samples beat a big model at this budget
    text_width: int = 96
    image_width: int = 64
    batch: int = 1  # on a CPU a batch gains nothing, and steps are what is scarce
    learning_rate: float = 1.2e-3
    warmup: int = 150
    average_decay: float = 0.999
    text_dropout: float = 0.1  # as the paper; lets the sampler use classifier-free guidance
    pure_noise_share: float = 0.6  # most draws at the last timestep: motion is decided there
    moving_weight: float = 3.0  # extra weight of cells that move; still ones keep 1, or they would stay grainy
    sparse_share: float = (
        0.75  # first part of the run on half of each clip's frames, drawn anew each time: half the cost
    )
    repeats: int = 3  # times that each rendered clip is used
    seed: int = 0


class StarterModel(torch.nn.Module):
    """The three networks that train together; the codec is frozen by then."""

    def __init__(self, settings: StarterSettings, latent_channels: int, vocabulary: dict[str, int]) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(vocabulary),
                hidden_size=settings.text_width,
                intermediate_size=2 * settings.text_width,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=MAX_TOKENS,
                projection_dim=settings.text_width,
                pad_token_id=vocabulary["<pad>"],
                bos_token_id=vocabulary["<start>"],
                eos_token_id=vocabulary["<end>"],
            )
        )
        self.image_encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                image_size=settings.size,
                patch_size=settings.size // 4,
                hidden_size=settings.image_width,
                intermediate_size=2 * settings.image_width,
                num_hidden_layers=2,
                num_attention_heads=4,
                projection_dim=settings.image_width,
                num_channels=3,
            )
        )
        self.unet = MVVDMUNet(
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=settings.width,
            down_block_types=("CrossAttn",) * len(settings.width),
            up_block_types=("CrossAttn",) * len(settings.width),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=settings.text_width,
            num_attention_heads=2,  # on a CPU attention costs by the head, not by the width
            motion_num_attention_heads=2,
            image_embed_dim=settings.image_width,
            first_frame_concat=True,  # without access to frame 0 nothing moves
            i2v_cond_time_zero=True,
            pooled_text=True,
            pooled_text_with_frame=True,  # else the moment is known only behind the first motion module
            i2v_near_identity_init=True,
        )
        torch.nn.init.zeros_(self.unet.conv_out.weight)  # start from an object that stands still
        torch.nn.init.zeros_(self.unet.conv_out.bias)

    def forward(
        self,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        tokens: torch.Tensor,
        images: torch.Tensor,
        frame_numbers: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predicted difference to frame 0, [(b n), c, f, h, w].

        noisy [(b n), c, f, h, w] with frame 0 clean, timestep [b], tokens [b, MAX_TOKENS],
        images [(b n), 3, H, W] in -1..1, frame_numbers [f] where the frames are not 0, 1, 2, ...
        """
        text = self.text_encoder(input_ids=tokens)
        cameras = camera_vectors(condition_cameras()).repeat(len(tokens), 1)
        return self.unet(
            noisy,
            timestep.repeat_interleave(VIEWS),
            text.last_hidden_state.repeat_interleave(VIEWS, dim=0),
            cameras,
            self.image_encoder(pixel_values=images).image_embeds,
            pooled_text=text.pooler_output.repeat_interleave(VIEWS, dim=0),
            frame_numbers=frame_numbers,
        )


def build_scheduler() -> DDIMScheduler:
    """The released betas with zero signal at the last timestep, predicting clean latents."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        clip_sample=False,
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )


def denoise(
    model: StarterModel,
    scheduler: DDIMScheduler,
    batch: dict[str, torch.Tensor],
    timestep: torch.Tensor,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The model's clean latents [(b n), c, f, h, w] from noise at `timestep` [b]; frame 0 stays clean."""
    clean = batch["latents"].flatten(0, 1)
    noise = torch.randn(clean.shape, generator=generator)
    noisy = scheduler.add_noise(clean, noise, timestep.repeat_interleave(VIEWS))
    noisy = torch.cat([clean[:, :, :1], noisy[:, :, 1:]], dim=2)
    images, numbers = batch["images"].flatten(0, 1), batch.get("frame_numbers")
    return clean[:, :, :1] + model(noisy, timestep, batch["tokens"], images, numbers)


def training_loss(
    model: StarterModel, scheduler: DDIMScheduler, batch: dict[str, torch.Tensor], settings: StarterSettings
) -> torch.Tensor:
    """Weighted squared error of frames 1.. (as the paper: frame 0 is given, never learnt)."""
    count = len(batch["tokens"])
    timestep = torch.randint(0, scheduler.config.num_train_timesteps, (count,))
    timestep[torch.rand(count) < settings.pure_noise_share] = scheduler.config.num_train_timesteps - 1
    dropped = torch.rand(count) < settings.text_dropout
    batch = batch | {"tokens": torch.where(dropped[:, None], batch["empty"], batch["tokens"])}
    predicted = denoise(model, scheduler, batch, timestep)[:, :, 1:]
    clean = batch["latents"].flatten(0, 1)
    moved = (clean[:, :, 1:] - clean[:, :, :1]).square().mean(dim=1, keepdim=True).clamp(max=1.0)
    weight = 1.0 + settings.moving_weight * moved
    return (weight * (predicted - clean[:, :, 1:]).square()).mean()


@torch.no_grad()
def pure_noise_error(model: StarterModel, scheduler: DDIMScheduler, batches: list[dict]) -> tuple[float, float]:
    """Error of one step from pure noise over that of standing still: (right prompt, another clip's prompt).

    The gap between the two is what the model knows of words.
    """
    model.eval()
    right = wrong = still = 0.0
    last = scheduler.config.num_train_timesteps - 1
    for batch in batches:
        clean = batch["latents"].flatten(0, 1)
        timestep = torch.full((len(batch["tokens"]),), last)
        generator = torch.Generator().manual_seed(0)
        right += float((denoise(model, scheduler, batch, timestep, generator) - clean).square().sum())
        other = batch | {"tokens": batch["other_tokens"]}
        wrong += float((denoise(model, scheduler, other, timestep, generator) - clean).square().sum())
        still += float((clean[:, :, :1] - clean).square().sum())
    model.train()
    return right / still, wrong / still


def draw_frames(batch: dict[str, torch.Tensor], count: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """The batch with frame 0 and `count` - 1 others of each clip, in order."""
    frames = batch["latents"].shape[3]
    others = 1 + np.sort(rng.choice(frames - 1, count - 1, replace=False))
    numbers = torch.from_numpy(np.concatenate([[0], others]))
    return batch | {"latents": batch["latents"][:, :, :, numbers], "frame_numbers": numbers}


def train_video(out: Path, minutes: float, settings: StarterSettings) -> None:
    """Trains for `minutes` in all, resumes from `out`, keeps the averaged weights beside the state."""
    torch.manual_seed(settings.seed)
    codec = AutoencoderKL.from_pretrained(out / "vae").eval()
    tokenizer = build_tokenizer()
    model = StarterModel(settings, codec.config.latent_channels, tokenizer.get_vocab())
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-2)
    scheduler = build_scheduler()
    average = Average(model, settings.average_decay)
    state = load_state(out / "video.state.safetensors", model, optimizer, average.shadow)
    store = LatentStore(out / "clips", codec, tokenizer, settings.size, settings.frames)
    held_out = LatentStore(out / "held_out", codec, tokenizer, settings.size, settings.frames, HELD_OUT_SEED)
    held_out = held_out.all(HELD_OUT_BATCHES)
    log = RunLog(out / "video.csv")
    started, saved = time.monotonic() - state.seconds, time.monotonic()
    losses: list[float] = []
    while (progress := (time.monotonic() - started) / (60 * minutes)) < 1.0:
        rng = np.random.default_rng(state.step)
        batch = store.draw(rng, settings.batch, state.step, settings.repeats)
        if progress < settings.sparse_share:
            batch = draw_frames(batch, settings.frames // 2, rng)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * cosine_rate(state.step, settings.warmup, progress)
        loss = training_loss(model, scheduler, batch, settings)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model, state.step)
        state.step += 1
        losses.append(loss.item())
        if state.step % 50 == 0:
            state.seconds = time.monotonic() - started
            log.write(step=state.step, seconds=round(state.seconds), loss=float(np.mean(losses[-50:])))
        if time.monotonic() - saved > SAVE_SECONDS:
            state.seconds = time.monotonic() - started
            save_state(out / "video.state.safetensors", model, optimizer, state, average.shadow)
            right, wrong = pure_noise_error(averaged(model, average), scheduler, held_out)
            log.write(step=state.step, samples=state.step * settings.batch, right_prompt=right, wrong_prompt=wrong)
            saved = time.monotonic()
    state.seconds = time.monotonic() - started
    save_state(out / "video.state.safetensors", model, optimizer, state, average.shadow)
    right, wrong = pure_noise_error(averaged(model, average), scheduler, held_out)
    log.write(step=state.step, samples=state.step * settings.batch, right_prompt=right, wrong_prompt=wrong)


def averaged(model: StarterModel, average: Average) -> StarterModel:
    """A copy of the model that holds the averaged weights."""
    twin = copy.deepcopy(model)
    average.copy_to(twin)
    return twin


def quick(settings: StarterSettings) -> StarterSettings:
    """The same recipe at the smallest size that runs: for tests."""
    return replace(settings, frames=4, width=(16, 16), text_width=16, image_width=16, batch=2, warmup=2)
