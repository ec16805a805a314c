"""What a model in training makes of objects that it never saw: the picture that is drawn at each measurement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from backend.protocol import condition_cameras
from backend.training.charts import grid
from backend.training.clips import HELD_OUT_SEED, make_clip, render_clip, straight
from backend.training.codec import run_codec
from backend.training.export import as_pipeline
from backend.training.loop import RunLog
from backend.training.starter import StarterModel, StarterSettings
from backend.training.video import run_tokenizer

FIRST_SEED = HELD_OUT_SEED + 5_000  # apart from what the errors are measured on
SHOWN = 4  # clips
FIGURES = ("loss", "right_prompt", "wrong_prompt")


def sampler_of(run: Path, settings: StarterSettings, shown: int = SHOWN) -> Callable[[int, StarterModel, RunLog], None]:
    """Draws `video.png` of a run: some motions in turn, each of an object and a sentence that are always the same."""
    motions = [settings.motions[index * len(settings.motions) // shown] for index in range(shown)]

    @torch.no_grad()
    def show(step: int, model: StarterModel, log: RunLog) -> None:
        codec = run_codec(run).to(next(model.parameters()).device)
        pipeline = as_pipeline(model, codec, run_tokenizer(run), settings)
        clips = []
        for index, motion in enumerate(motions):
            clip = make_clip(FIRST_SEED + index, settings.frames, (motion,), unseen=True)
            views = straight(render_clip(clip, 2 * settings.size, [(view, 0) for view in range(4)]))
            generated = pipeline.generate(clip.caption, views, condition_cameras())
            clips.append((clip.caption, straight(render_clip(clip, settings.size)), generated))
        log.show(step, np.ascontiguousarray(grid(clips)), FIGURES)

    return show
