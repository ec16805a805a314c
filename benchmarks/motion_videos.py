"""Four-view videos of true animations, made with our own capture; and what generated videos look like beside them.

Assets lie in a folder with `manifest.json`, `NAME.glb` and `gt/NAME.npz`: `vertices` [16, V, 3] in world space, `faces`
and `frames`. Making a video needs the bpy package (`motion_capture`), taking one from the cache does not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import affine_transform, gaussian_filter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from backend import protocol  # noqa: E402

SIZE = 256


@dataclass(frozen=True)
class Asset:
    """One animated asset with its truth."""

    name: str
    path: Path
    vertices: np.ndarray  # [F, V, 3] float32, world space
    faces: np.ndarray  # [T, 3] int32
    frames: np.ndarray  # [F] float32, frames of the scene


@dataclass(frozen=True)
class TrueVideo:
    """What a perfect model would make of the asset, and what the fit is given beside it."""

    subject: protocol.Subject
    frames: np.ndarray  # [4, F, S, S, 4] uint8, straight alpha
    ring: np.ndarray  # [K, S, S, 4] uint8: the captured appearance views; empty for position-coded videos


def assets(folder: Path, names: Sequence[str]) -> list[Asset]:
    """The animated assets of a folder, all of them where no names are given. Raises SystemExit for an unknown name."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    animated = {entry["name"]: entry for entry in manifest["assets"] if entry["animated"]}
    if unknown := set(names) - set(animated):
        raise SystemExit(f"{folder} has no animated asset {', '.join(sorted(unknown))}.")
    found = []
    for name, entry in animated.items():
        if not names or name in names:
            with np.load(folder / "gt" / f"{name}.npz") as truth:
                found.append(Asset(name, folder / entry["file"], truth["vertices"], truth["faces"], truth["frames"]))
    return found


def true_video(asset: Asset, appearance: str, cache: Path) -> TrueVideo:
    """Renders the asset's video (color | position), or takes it from the cache folder."""
    job = cache / f"{asset.name}_{appearance}"
    if not (job / "video" / "video.npz").is_file():
        from motion_capture import render_asset  # the only one that needs bpy

        render_asset(asset.path, asset.frames, asset.vertices, appearance, SIZE, job)
    subject, video = protocol.Subject.load(job), protocol.Video.load(job)
    paths = [protocol.Subject.image_path(job, "appearance", index) for index in range(len(subject.appearance_c2w))]
    ring = [np.asarray(Image.open(path).convert("RGBA")) for path in paths]
    return TrueVideo(subject, video.frames, np.stack(ring) if ring else np.zeros((0, SIZE, SIZE, 4), np.uint8))


def resize(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames [..., S, S, 4] uint8, straight alpha, to [..., size, size, 4]: premultiplied means over each pixel."""
    factor = frames.shape[-2] // size
    if factor == 1:
        return frames
    straight = frames.astype(np.float32) / 255.0
    premultiplied = np.concatenate([straight[..., :3] * straight[..., 3:], straight[..., 3:]], axis=-1)
    shape = (*frames.shape[:-3], size, factor, size, factor, 4)
    return _straight(premultiplied.reshape(shape).mean(axis=(-4, -2)))


def _straight(premultiplied: np.ndarray) -> np.ndarray:
    alpha = premultiplied[..., 3:]
    colour = np.where(alpha > 1e-3, premultiplied[..., :3] / np.maximum(alpha, 1e-3), 0.0)
    return np.round(255.0 * np.clip(np.concatenate([colour, alpha], axis=-1), 0.0, 1.0)).astype(np.uint8)


def over_grey(frames: np.ndarray) -> np.ndarray:
    """Frames [..., 4] uint8 to [..., 3] uint8 on grey .5: what a model without alpha makes."""
    alpha = frames[..., 3:].astype(np.float32) / 255.0
    return np.round(frames[..., :3] * alpha + 127.5 * (1.0 - alpha)).astype(np.uint8)


@dataclass(frozen=True)
class Degradation:
    """How a generated video differs from a rendered one."""

    blur: float = 1.0  # pixels, standard deviation
    noise: float = 0.03  # of the full range, each pixel and channel for itself
    drift: float = 0.05  # each view comes to show the object up to this much larger or smaller, brighter or darker


def degrade(frames: np.ndarray, how: Degradation, seed: int = 0) -> np.ndarray:
    """Blur, noise and drift between the views, growing from nothing at frame 0; [4, F, S, S, 4] uint8 both."""
    rng = np.random.default_rng(seed)
    straight = frames.astype(np.float32) / 255.0
    images = np.concatenate([straight[..., :3] * straight[..., 3:], straight[..., 3:]], axis=-1)
    views, count, size = frames.shape[:3]
    scale, shift, gain = (rng.uniform(-how.drift, how.drift, (views, *shape)) for shape in ((), (2,), (3,)))
    for view in range(views):
        for frame in range(count):
            grown = frame / max(count - 1, 1)
            images[view, frame] = _warp(images[view, frame], 1 + grown * scale[view], 0.25 * grown * shift[view] * size)
            images[view, frame, ..., :3] *= 1 + grown * gain[view]
    images = gaussian_filter(images, (0, 0, how.blur, how.blur, 0))
    noisy = _straight(images).astype(np.float32) / 255.0 + how.noise * rng.standard_normal(images.shape)
    return np.round(255.0 * np.clip(noisy, 0.0, 1.0)).astype(np.uint8)


def _warp(image: np.ndarray, scale: float, shift: np.ndarray) -> np.ndarray:
    """A picture [S, S, 4] larger by `scale` about its middle and moved by `shift` [2] pixels."""
    middle = 0.5 * (np.array(image.shape[:2]) - 1)
    offset = middle - (middle + shift) / scale
    parts = [affine_transform(image[..., k], np.full(2, 1 / scale), offset, order=1) for k in range(image.shape[-1])]
    return np.stack(parts, axis=-1)
