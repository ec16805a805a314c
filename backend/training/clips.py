"""Clips of the procedural data set: a seed names an object, a motion, a caption and a multi-view video."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backend.protocol import condition_cameras, position_code
from backend.training.captions import STRENGTH_SHARES, STRENGTHS, caption
from backend.training.motions import MOTIONS, animate
from backend.training.render import render
from backend.training.shapes import random_object

HELD_OUT_SEED = 1_000_000_000  # seeds from here on are never trained on


@dataclass(frozen=True)
class Clip:
    """What one seed gives."""

    rest: np.ndarray  # [V, 3] float64, subject space
    faces: np.ndarray  # [T, 3] int64
    trajectories: np.ndarray  # [F, V, 3] float64
    motion: str
    strength: float
    caption: str


def make_clip(seed: int, frames: int, motion: str | None = None) -> Clip:
    """The clip of a seed; `motion` overrides the drawn one (for evaluation)."""
    rng = np.random.default_rng(seed)
    rest, faces = random_object(rng)
    drawn = str(rng.choice(list(MOTIONS)))
    motion = motion or drawn
    strength = float(rng.choice(list(STRENGTHS), p=STRENGTH_SHARES))
    return Clip(rest, faces, animate(motion, rest, frames, strength), motion, strength, caption(motion, strength, rng))


def render_clip(clip: Clip, size: int, views_and_frames: list[tuple[int, int]] | None = None) -> np.ndarray:
    """Position-coded pictures [4, F, size, size, 4] uint8, premultiplied; or [K, ...] of the listed (view, frame)."""
    cameras = condition_cameras()
    colors = position_code(clip.rest, clip.rest.min(axis=0), clip.rest.max(axis=0))
    everything = [(view, frame) for view in range(len(cameras)) for frame in range(len(clip.trajectories))]
    pictures = [
        render(clip.trajectories[frame], clip.faces, colors, cameras[view], size)
        for view, frame in views_and_frames or everything
    ]
    images = np.round(np.stack(pictures) * 255).astype(np.uint8)
    if views_and_frames:
        return images
    return images.reshape(len(cameras), len(clip.trajectories), *images.shape[1:])
