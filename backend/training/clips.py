"""Clips of the procedural data set: a seed names an object, a motion, a caption and a multi-view video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backend.protocol import POSITION_CODE_RANGE, condition_cameras, position_code
from backend.training.captions import STRENGTH_SHARES, STRENGTHS, TIMING_SHARES, caption
from backend.training.motions import MOTIONS, TIMINGS, animate
from backend.training.render import render
from backend.training.shapes import random_object
from backend.training.shards import read_shards

HELD_OUT_SEED = 1_000_000_000  # seeds from here on are never trained on


@dataclass(frozen=True)
class Clip:
    """What one seed gives."""

    rest: np.ndarray  # [V, 3] float64, subject space
    faces: np.ndarray  # [T, 3] int64
    trajectories: np.ndarray  # [F, V, 3] float64
    motion: str  # of the procedural ones; "" where it is none of them
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


@dataclass(frozen=True)
class ClipSource:
    """Which clips the shards of a run are made of. Needs no networks: other processes draw with it."""

    size: int  # pixels
    frames: int
    shard_clips: int  # clips of each shard
    motions: tuple[str, ...] = tuple(MOTIONS)
    first_seed: int = 0
    balanced: bool = False  # the motions in turn instead of drawn ones
    rendered: tuple[Clip, ...] = ()
    rendered_share: float = 0.0  # of the clips, where there are rendered ones

    def pictures(self, shard: int) -> list[tuple[np.ndarray, str, str]]:
        """Pictures [4, F, size, size, 4] uint8, premultiplied, caption and motion of each clip of a shard."""
        first = self.first_seed + shard * self.shard_clips
        clips = [self._clip(seed) for seed in range(first, first + self.shard_clips)]
        return [(render_clip(clip, self.size), clip.caption, clip.motion) for clip in clips]

    def _clip(self, seed: int) -> Clip:
        rng = np.random.default_rng((seed, 1))
        if self.rendered and rng.random() < self.rendered_share:
            return self.rendered[rng.integers(len(self.rendered))]
        turn = (seed - self.first_seed) % len(self.motions)
        return make_clip(seed, self.frames, self.motions[turn : turn + 1] if self.balanced else self.motions)


def rendered_clips(folder: Path) -> list[Clip]:
    """The clips of a folder of shards (tools/render_dataset.py), each once however many rigs saw it."""
    found = {clip.key.rpartition("-")[0]: clip for clip in read_shards(folder, pictures=False)}
    return [
        Clip(clip.vertices[0].astype(np.float64), clip.faces.astype(np.int64), clip.vertices.astype(np.float64),
             "", 1.0, "once", clip.caption)
        for clip in found.values()
    ]  # fmt: skip


def shuffled_code(rest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colours [V, 3] that vary as smoothly over the object as its position code, but along other directions.

    In true pictures the colour is nearly the place in the picture, as long as little moves. A codec that only ever sees
    those learns to guess the colour from the place, and draws what has moved with the colours of what stands there.
    """
    unit = (rest - rest.min(axis=0)) / np.maximum(np.ptp(rest, axis=0), 1e-9) - 0.5
    mixed = unit @ (rng.normal(size=(3, 3)) * 0.8) + rng.uniform(-0.3, 0.3, 3)
    low, high = POSITION_CODE_RANGE
    return low + (high - low) * np.clip(mixed + 0.5, 0.0, 1.0)


def render_clip(
    clip: Clip, size: int, views_and_frames: list[tuple[int, int]] | None = None, colors: np.ndarray | None = None
) -> np.ndarray:
    """Position-coded pictures [4, F, size, size, 4] uint8, premultiplied; or [K, ...] of the listed (view, frame).

    `colors` [V, 3] in 0..1 take the place of the position code.
    """
    cameras = condition_cameras()
    if colors is None:
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


def straight(premultiplied: np.ndarray) -> np.ndarray:
    """uint8 pictures [..., 4] from premultiplied to straight alpha."""
    alpha = premultiplied[..., 3:].astype(np.float32) / 255
    color = np.where(alpha > 0, premultiplied[..., :3] / np.maximum(alpha, 1 / 255), 0.0)
    return np.concatenate([color.clip(0, 255).round().astype(np.uint8), premultiplied[..., 3:]], axis=-1)
