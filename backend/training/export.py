"""From a training run to a folder of weights that the pipeline loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffusers import AutoencoderKL
from transformers import PreTrainedTokenizerFast

from backend.mv_vdm.pipeline import MVVDM, ModelInfo
from backend.mv_vdm.sampling import SamplerSettings
from backend.training.captions import motion_words
from backend.training.codec import run_codec
from backend.training.loop import Average, build_optimizers, load_state
from backend.training.starter import StarterModel, StarterSettings, build_scheduler, read_settings
from backend.training.video import STATE, run_tokenizer


def load_run(run: Path, settings: StarterSettings) -> MVVDM:
    """The averaged weights of a run, finished or not, as a pipeline that takes prompts for `settings.motions`."""
    codec = run_codec(run)
    tokenizer = run_tokenizer(run)
    model = StarterModel(settings, codec.config.latent_channels, tokenizer.get_vocab())
    average = Average(model, settings.average_decay)
    load_state(run / STATE, model, build_optimizers(model, settings.learning_rate), average.shadow)
    average.copy_to(model)
    model.eval().requires_grad_(False)
    return as_pipeline(model, codec, tokenizer, settings)


def as_pipeline(
    model: StarterModel, codec: AutoencoderKL, tokenizer: PreTrainedTokenizerFast, settings: StarterSettings
) -> MVVDM:
    """The networks together, as users sample them."""
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
            # Measured on eight motions of an unseen object (benchmarks/starter.py): one step leaves as little of the
            # motion unexplained as two (.20, .21) and is .25 dB nearer to the truth; guidance 1.5 is worse than none
            # (three motions: .27, .22).
            sampler=SamplerSettings(steps=1, guidance_scale=1.0, freeinit_iterations=1, solver="ddim"),
            motions={name: words for name, words in motion_words().items() if name in settings.motions},
        ),
    )


def export_starter(run: Path, folder: Path, motions: Sequence[str]) -> None:
    """Writes the run's averaged weights to `folder`, in half precision: that is exact enough, and half the size.

    `motions` are those that a prompt may ask for: of the trained ones those that benchmarks/starter.py finds good.
    """
    model = load_run(run, replace(read_settings(run), motions=tuple(motions)))
    for network in (model.unet, model.vae, model.text_encoder, model.image_encoder):
        network.half()
    model.save_pretrained(folder)
