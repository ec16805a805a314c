"""Clips of the procedural data set: a seed names an object, a motion, a caption and a multi-view video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backend.protocol import condition_cameras, position_code
from backend.training.captions import STRENGTH_SHARES, STRENGTHS, TIMING_SHARES, caption
from backend.training.motions import MOTIONS, TIMINGS, animate
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
    timing: str
    caption: str


def make_clip(seed: int, frames: int, motions: Sequence[str] = tuple(MOTIONS), unseen: bool = False) -> Clip:
    """The clip of a seed, with one of `motions`; for evaluation `unseen` says it in untrained words."""
    rng = np.random.default_rng(seed)
    rest, faces = random_object(rng)
    motion = str(rng.choice(motions))
    strength = float(rng.choice(list(STRENGTHS), p=STRENGTH_SHARES))
    timing = str(rng.choice(list(TIMINGS), p=TIMING_SHARES))
    said = caption(motion, strength, rng, timing, unseen)
    return Clip(rest, faces, animate(motion, rest, frames, strength, timing), motion, strength, timing, said)


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
