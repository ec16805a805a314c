"""From a training run to a folder of weights that the pipeline loads."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from backend.mv_vdm.pipeline import MVVDM, ModelInfo
from backend.mv_vdm.sampling import SamplerSettings
from backend.training.captions import motion_words
from backend.training.loop import Average, load_state
from backend.training.starter import StarterModel, StarterSettings, build_scheduler
from backend.training.video import STATE, run_tokenizer

# What a prompt may ask for. Twist is trained too, but hardly visible so far (benchmarks/starter.py).
PROMISED = ("bounce", "sway", "stretch", "nod")


def load_run(run: Path, settings: StarterSettings) -> MVVDM:
    """The averaged weights of a run, finished or not, as a pipeline."""
    codec = AutoencoderKL.from_pretrained(run / "vae").eval()
    tokenizer = run_tokenizer(run)
    model = StarterModel(settings, codec.config.latent_channels, tokenizer.get_vocab())
    average = Average(model, settings.average_decay)
    load_state(run / STATE, model, torch.optim.AdamW(model.parameters()), average.shadow)
    average.copy_to(model)
    model.eval().requires_grad_(False)
    return MVVDM(
        unet=model.unet,
        vae=codec,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        image_encoder=model.image_encoder,
        scheduler=build_scheduler(),
        info=ModelInfo(
            name="starter",
            licence="GPL-3.0-or-later",
            appearance="position",
            image_channels=4,
            resolution=settings.size,
            num_frames=settings.frames,
            residual_to_first_frame=True,
            posterior_sample=False,
            image_mean=(0.5, 0.5, 0.5),
            image_std=(0.5, 0.5, 0.5),
            # Clean latents are predicted nearly right in one step: few steps, little guidance.
            sampler=SamplerSettings(steps=4, guidance_scale=1.0, freeinit_iterations=1, solver="ddim"),
            motions={name: words for name, words in motion_words().items() if name in PROMISED},
        ),
    )


def export_starter(run: Path, folder: Path) -> None:
    """Writes the run's averaged weights to `folder`, in half precision: that is exact enough, and half the size."""
    model = load_run(run, StarterSettings())
    for network in (model.unet, model.vae, model.text_encoder, model.image_encoder):
        network.half()
    model.save_pretrained(folder)
