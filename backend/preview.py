"""The generated video as people look at it: the four views in a looping picture."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from backend.protocol import Video

GREY = 128
FRAME_MILLISECONDS = 125  # the video model's 8 frames per second
MIN_WIDTH = 256  # pixels; small models' pictures are enlarged to it


def write_preview(video: Video, job: Path) -> Path:
    """Writes `video/preview.gif`, views 0 and 1 above 2 and 3, and returns its path."""
    path = Path(job) / "video" / "preview.gif"
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [Image.fromarray(frame) for frame in contact_sheets(video.frames)]
    scale = max(1, -(-MIN_WIDTH // frames[0].width))
    frames = [frame.resize((frame.width * scale, frame.height * scale), Image.Resampling.BICUBIC) for frame in frames]
    part = path.with_name(path.name + ".part")
    frames[0].save(
        part, format="GIF", save_all=True, append_images=frames[1:], duration=FRAME_MILLISECONDS, loop=0, disposal=2
    )
    os.replace(part, path)
    return path


def contact_sheets(frames: np.ndarray) -> np.ndarray:
    """[4, F, H, W, C] uint8 to [F, 2 H, 2 W, 3] uint8, over grey where there is alpha."""
    rgb = frames[..., :3].astype(np.float32)
    if frames.shape[-1] == 4:
        alpha = frames[..., 3:].astype(np.float32) / 255.0
        rgb = alpha * rgb + (1.0 - alpha) * GREY
    _, count, height, width, _ = rgb.shape
    grid = rgb.reshape(2, 2, count, height, width, 3).transpose(2, 0, 3, 1, 4, 5)
    return np.round(grid.reshape(count, 2 * height, 2 * width, 3)).astype(np.uint8)
