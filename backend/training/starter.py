"""The starter model's recipe: its networks, everything small, and what each choice in it is for.

Paper section 4.1 trains only the new layers of a big model on rendered clips. Here all layers train, so what makes a
small network learn motion fastest decides; each such choice is a field of `StarterSettings` with its reason.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from backend.mv_vdm.cameras import camera_vectors
from backend.mv_vdm.unet import MVVDMUNet
from backend.protocol import UserError, condition_cameras, write_json
from backend.training.captions import MAX_TOKENS
from backend.training.motions import MOTIONS

VIEWS = 4
CLIPS_OF_A_SEED = 1_000_000
SETTINGS = "settings.json"


@dataclass(frozen=True)
class StarterSettings:
    """Sizes and schedule; the figures are for seven minutes of one large GPU (for a CPU see `for_cpu`)."""

    motions: tuple[str, ...] = tuple(MOTIONS)  # the fewer, the sooner they are learnt
    size: int = 128  # pixels; 16 x 16 latents
    frames: int = 16
    width: tuple[int, ...] = (96, 160)  # 13 M parameters: what two cores sample in half a minute
    text_width: int = 128
    image_width: int = 64
    batch: int = 16  # clips a step; 64 take 2.5 times as long on an H200, and steps are what is scarce
    learning_rate: float = 2e-3
    warmup: int = 150
    average_decay: float = 0.998
    text_dropout: float = 0.1  # as the paper; lets the sampler use classifier-free guidance
    pure_noise_share: float = 0.6  # most draws at the last timestep: motion is decided there
    moving_weight: float = 3.0  # extra weight of cells that move; still ones keep 1, or they would stay grainy
    least_motion: float = 0.1  # a clip counts by its error over this and what it moves: small motions like large ones
    sparse_share: float = 0.92  # first part of the run, on
    sparse_frames: int = 6  # frames of each clip, drawn anew each time: more clips in the same time
    whole_share: float = 0.375  # of the batch, in the last part of the run: as many pictures a step as before
    rendered_share: float = 0.3  # of the clips, where there are rendered ones
    shard_clips: int = 32  # clips in each file of prepared ones
    shards_in_use: int = 400  # from which a step draws, held in the device's memory: 42 MB each
    repeats: int = 4  # times that each rendered clip is used
    log_steps: int = 50
    save_seconds: float = 180.0
    measure_steps: int = 1000
    seed: int = 0  # another one draws other clips too: for a run that goes on from finished weights


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
            pooled_text_with_camera=True,  # else what goes left in one view and right in another is never learnt
            i2v_near_identity_init=True,
        )
        self.register_buffer("cameras", camera_vectors(condition_cameras()), persistent=False)  # [n, 16]
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
        return self.unet(
            noisy,
            timestep.repeat_interleave(VIEWS),
            text.last_hidden_state.repeat_interleave(VIEWS, dim=0),
            self.cameras.repeat(len(tokens), 1),
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


def for_cpu(settings: StarterSettings) -> StarterSettings:
    """The same recipe for an hour or two of a CPU: many cheap steps beat a big model and a big batch there."""
    small = {"size": 64, "width": (64, 96), "text_width": 96, "shards_in_use": 60, "learning_rate": 1.2e-3}
    return replace(settings, **small, batch=2, whole_share=1.0, repeats=8, measure_steps=600)


def first_clip(settings: StarterSettings) -> int:
    """The seed of a run's first clip."""
    return settings.seed * CLIPS_OF_A_SEED


def write_settings(run: Path, settings: StarterSettings) -> None:
    write_json(run / SETTINGS, asdict(settings))


def read_settings(run: Path) -> StarterSettings:
    """Those that a run was trained with. Raises `UserError` where there is no run."""
    if not (run / SETTINGS).is_file():
        raise UserError(f"There is no training run in “{run}”.", "Give --out the folder of one.")
    values = json.loads((run / SETTINGS).read_text(encoding="utf-8"))
    return StarterSettings(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def quick(settings: StarterSettings) -> StarterSettings:
    """The same recipe at the smallest size that runs: for tests."""
    small = {"frames": 4, "sparse_frames": 3, "width": (16, 16), "text_width": 16, "image_width": 16, "shard_clips": 2}
    small |= {"warmup": 2, "log_steps": 2, "save_seconds": 0.3, "measure_steps": 4}
    return replace(for_cpu(settings), **small)
